import { createHash } from 'node:crypto';
import * as v from 'valibot';
import { permanent } from '../../domain/errors.ts';
import { fitsShard } from '../../domain/kubernetes/ledger.ts';
import type { Commit, RunPlan, RunWriter, Seal } from '../../domain/kubernetes/run-record.ts';
import type { ShardPlan } from '../../domain/plan.ts';

const VERSION = 1;
const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
const base64 = v.pipe(
  v.string(),
  v.transform((text) => Buffer.from(text, 'base64')),
);
const usage = v.object({
  inputTokens: count,
  cachedTokens: count,
  outputTokens: count,
  reasoningTokens: count,
});
const writer = v.object({ name: v.string(), index: count, attempt: count });

const planForm = v.object({
  version: v.literal(VERSION),
  input: v.object({ key: v.string(), bytes: count }),
  models: v.array(v.string()),
  lines: count,
  /** Lines, bytes and offset of each. */
  shards: v.array(v.tuple([count, count, count])),
  bad: v.array(v.tuple([count, base64])),
});

const partForm = v.object({
  n: count,
  offset: count,
  length: count,
  crc: count,
  mask: base64,
  ok: count,
  failed: count,
  usage,
  engines: v.array(v.object({ engine: v.string(), ok: count, failed: count })),
});

const commitForm = v.object({
  version: v.literal(VERSION),
  plan: v.string(),
  sequence: count,
  bytes: count,
  sha256: v.string(),
  parts: v.array(partForm),
});

const sealForm = v.object({
  version: v.literal(VERSION),
  outcome: v.picklist(['completed', 'expired', 'failed', 'cancelled']),
  writers: v.array(v.object({ ...writer.entries, commits: count, lost: v.array(count) })),
  usage,
  inProgressAt: v.nullable(count),
  at: count,
  errors: v.array(
    v.object({
      code: v.string(),
      message: v.string(),
      line: v.nullable(count),
      param: v.nullable(v.string()),
    }),
  ),
});

/** What is stored of a plan, the same bytes whoever made it. */
export function formatPlan(plan: Omit<RunPlan, 'sha256'>): Buffer {
  return bytesOf({
    version: VERSION,
    input: { key: plan.inputKey, bytes: plan.inputBytes },
    models: plan.models,
    lines: plan.lines,
    shards: plan.shards.map(({ lines, bytes, offset }) => [lines, bytes, offset]),
    bad: [...plan.bad].map(([n, bad]) => [n, bad.toString('base64')]),
  });
}

export function parsePlan(bytes: Buffer, key: string): RunPlan {
  const { input, models, lines, shards, bad } = parse(planForm, bytes, key);
  let first = 0;
  const plans = shards.map(([own, length, offset], n): ShardPlan => {
    const shard = { n, first, lines: own, offset, bytes: length };
    first += own;
    return shard;
  });
  const sha256 = createHash('sha256').update(bytes).digest('hex');
  const known = { inputKey: input.key, inputBytes: input.bytes, models, lines };
  return { sha256, ...known, shards: plans, bad: new Map(bad) };
}

export function formatWriter(own: RunWriter, more: { pod: string; at: number }): Buffer {
  return bytesOf({ ...own, ...more });
}

export function parseWriter(bytes: Buffer, key: string): RunWriter & { at: number } {
  return parse(v.object({ ...writer.entries, at: count }), bytes, key);
}

export function formatCommit(plan: RunPlan, { sequence, bytes, sha256, parts }: Commit): Buffer {
  const written = parts.map(({ mask, ...part }) => ({ ...part, mask: mask.toString('base64') }));
  return bytesOf({ version: VERSION, plan: plan.sha256, sequence, bytes, sha256, parts: written });
}

/** Null for a commit of another plan, which counts for nothing here. */
export function parseCommit(bytes: Buffer, key: string, plan: RunPlan): Commit | null {
  const { plan: of, version: _version, ...commit } = parse(commitForm, bytes, key);
  if (of !== plan.sha256) return null;
  for (const { n, mask, offset, length } of commit.parts) {
    const shard = plan.shards[n];
    if (shard === undefined || !fitsShard(mask, shard) || offset + length > commit.bytes) {
      throw damaged(key, `has a part of shard ${n} that cannot be`);
    }
  }
  return commit;
}

export function formatSeal(seal: Seal): Buffer {
  return bytesOf({ version: VERSION, ...seal });
}

export function parseSeal(bytes: Buffer, key: string): Seal {
  const { version: _version, ...seal } = parse(sealForm, bytes, key);
  return seal;
}

function bytesOf(value: unknown): Buffer {
  return Buffer.from(`${JSON.stringify(value)}\n`);
}

function parse<Schema extends v.GenericSchema>(
  schema: Schema,
  bytes: Buffer,
  key: string,
): v.InferOutput<Schema> {
  const parsed = v.safeParse(v.pipe(v.string(), v.parseJson(), schema), bytes.toString('utf8'));
  if (parsed.success) return parsed.output;
  throw damaged(key, `is not as it was written: ${parsed.issues[0].message}`);
}

function damaged(key: string, what: string) {
  return permanent('run.damaged', `The storage's object ${key} ${what}.`);
}
