import { tmpdir } from 'node:os';
import { readPlan } from '../../src/dispatcher/read-plan.ts';
import type { ReadPlan, ReadPlanOptions } from '../../src/dispatcher/read-plan.ts';
import { createUniqueIds } from '../../src/dispatcher/unique-ids.ts';
import type { JobError } from '../../src/domain/job.ts';
import { reportProblems } from '../../src/domain/plan.ts';
import type { ShardPlan } from '../../src/domain/plan.ts';

/** A plan with the shards that it handed over. */
export interface Read extends ReadPlan {
  plans: ShardPlan[];
  /** As the job shows them. */
  errors: JobError[];
}

async function* inChunks(bytes: Buffer, cuts: readonly number[]): AsyncGenerator<Uint8Array> {
  let from = 0;
  for (const cut of [...cuts].toSorted((a, b) => a - b)) {
    yield bytes.subarray(from, Math.min(cut, bytes.length));
    from = Math.min(cut, bytes.length);
  }
  yield bytes.subarray(from);
}

/** Reads a whole input, cut into chunks at `cuts`; a limit of 50,000 lines of 10,000 bytes unless `options` says otherwise. */
export async function read(
  input: string | Buffer,
  options: Partial<ReadPlanOptions> = {},
  cuts: readonly number[] = [],
): Promise<Read> {
  const plans: ShardPlan[] = [];
  const uniqueIds = createUniqueIds({ directory: tmpdir() });
  try {
    const plan = await readPlan(inChunks(Buffer.from(input), cuts), {
      endpoint: '/v1/chat/completions',
      pinnedModel: null,
      onBadLines: null,
      cut: { lines: 1_000, bytes: 8 * 1024 * 1024 },
      maxLines: 50_000,
      maxLineBytes: 10_000,
      uniqueIds,
      onShards: async (shards) => void plans.push(...shards),
      signal: new AbortController().signal,
      ...options,
    });
    return { ...plan, plans, errors: reportProblems(plan.problems, plan.total) };
  } finally {
    await uniqueIds.close();
  }
}

interface Line {
  custom_id?: unknown;
  method?: unknown;
  url?: unknown;
  body?: unknown;
}

/** A good chat request with the custom_id `id-<n>`, and what `change` and `body` make of it. */
export function line(n: number, change: Line = {}, body: object = {}): string {
  return JSON.stringify({
    custom_id: `id-${n}`,
    method: 'POST',
    url: '/v1/chat/completions',
    body: { model: 'm', messages: [], ...body },
    ...change,
  });
}

/** So many good requests. */
export function lines(count: number): string[] {
  return Array.from({ length: count }, (_, n) => line(n));
}

/** Code, physical line and field of each error. */
export function found({ errors }: Read): [string, number | null, string | null][] {
  return errors.map(({ code, line: number, param }) => [code, number, param]);
}
