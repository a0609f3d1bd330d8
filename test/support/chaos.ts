import { createHash } from 'node:crypto';
import { watch } from 'node:fs';
import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import type OpenAI from 'openai';
import { expect } from 'vitest';
import { jobKey } from '../../src/store/keys.ts';
import { SCRIPTS } from '../../src/store/scripts.ts';
import type { ScriptName } from '../../src/store/scripts.ts';
import { seededRandom } from '../simulators/vllm/digest.ts';
import { download, expectExact, parseLines, say, submit, untilFinal } from './batch.ts';
import type { Input } from './batch.ts';
import type { VllmProcess } from './vllm-process.ts';

/** `npm run test:chaos -- --long`: kills for minutes instead of seconds. */
export const LONG = process.env['CHAOS_LONG'] === '1';

/** Random numbers in [0, 1) of CHAOS_SEED, or of a fresh seed; it is printed, so that a run can be had again. */
export function chaosRandom(): () => number {
  const seed = Number(process.env['CHAOS_SEED'] ?? Math.floor(Math.random() * 2 ** 31));
  say(`CHAOS_SEED=${seed}`);
  return seededRandom(seed);
}

/** Tells whether bytes for Redis call a script: by its SHA-1, or at first with its text. */
export function callsScript(script: ScriptName): (chunk: Buffer) => boolean {
  const text = SCRIPTS.get(script) ?? '';
  const sha = createHash('sha1').update(text).digest('hex');
  const end = text.slice(-80);
  return (chunk) => chunk.includes(sha) || chunk.includes(end);
}

/** A client that ends with the test. */
export function openRedis(url: string): { client: Redis } & AsyncDisposable {
  const client = new Redis(url);
  client.on('error', () => undefined); // some tests take its server away
  return {
    client,
    async [Symbol.asyncDispose]() {
      client.disconnect();
    },
  };
}

function segmentFolder(dataDir: string, jobId: string): string {
  return join(dataDir, 'storage/jobs', jobId, 'segments');
}

/** Acts as soon as a file whose name matches appears in a folder, and resolves then. */
export async function onNewFile(folder: string, name: RegExp, act: () => void): Promise<void> {
  await mkdir(folder, { recursive: true });
  await new Promise<void>((resolve) => {
    const watcher = watch(folder, (_event, file) => {
      if (file === null || !name.test(file)) return;
      watcher.close();
      act();
      resolve();
    });
  });
}

/** An output file without the id of its job, which is all in which two runs over the same input differ. */
function withoutJobId(text: string, batchId: string): string {
  return text.replaceAll(batchId.slice('batch_'.length), 'ID');
}

/** The output of an undisturbed run over an input. */
export async function cleanOutput(url: string, engine: VllmProcess, input: Input): Promise<string> {
  await engine.setConfig({ latency_ms: 0 });
  const id = await submit(url, input);
  const batch = await untilFinal(url, id, 60_000);
  expect(batch.status).toBe('completed');
  return withoutJobId(await download(url, batch.output_file_id), id);
}

/** What a run cost. */
export interface Toll {
  lost: number;
  repeated: number;
  /** Segments in storage that the job's records do not know: those of refused, forgotten and forestalled commits. */
  orphans: number;
}

export interface Finished {
  url: string;
  batch: OpenAI.Batch;
  input: Input;
  dataDir: string;
  redis: Redis;
  /** What an undisturbed run writes. */
  clean?: string;
}

async function countToll({ url, batch, input, dataDir, redis }: Finished): Promise<Toll> {
  const texts = [batch.output_file_id, batch.error_file_id].map((file) => download(url, file));
  const ids = (await Promise.all(texts)).flatMap(parseLines).map((line) => line.custom_id);
  const seen = new Set(ids);
  const jobId = batch.id.replace('batch_', 'job_');
  const known = new Set(await redis.hkeys(jobKey(jobId, 'SEGMENTS')));
  const stored = await readdir(segmentFolder(dataDir, jobId));
  expect(
    [...known].filter((id) => !stored.includes(id)),
    'segments that storage has lost',
  ).toEqual([]);
  return {
    lost: input.customIds.filter((id) => !seen.has(id)).length,
    repeated: ids.length - seen.size,
    orphans: stored.filter((id) => !known.has(id)).length,
  };
}

/**
 * Prints what a run cost, and makes sure of what holds after every one: it completed, each custom_id exactly once,
 * counts equal to lines, the bytes of an undisturbed run, and hardly a segment left over.
 */
export async function expectUnharmed(
  run: Finished,
  what: {
    name: string;
    kills: number;
    askedTwice: number;
    takeovers?: readonly number[];
    /** How many segments may be left over; one a kill unless it says so. */
    mayLeave?: number;
  },
): Promise<void> {
  const { name, kills, askedTwice, takeovers = [], mayLeave = kills } = what;
  const { lost, repeated, orphans } = await countToll(run);
  const times = takeovers.map((ms) => Math.round(ms)).join(', ');
  say(
    `${name}: ${kills} kills, ${lost} lines lost, ${repeated} repeated, ${askedTwice} asked twice` +
      `, ${orphans} segments left over${times === '' ? '' : `, takeovers after ${times} ms`}`,
  );
  const { url, batch, input, clean } = run;
  expect(batch.status).toBe('completed');
  const { error } = await expectExact(url, batch, input);
  expect(error).toEqual([]);
  expect({ lost, repeated }).toEqual({ lost: 0, repeated: 0 });
  if (clean !== undefined) {
    const text = withoutJobId(await download(url, batch.output_file_id), batch.id);
    expect(text === clean, 'the bytes of an undisturbed run').toBe(true);
  }
  expect(orphans).toBeLessThanOrEqual(mayLeave);
}
