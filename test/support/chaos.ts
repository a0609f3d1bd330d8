import { createHash } from 'node:crypto';
import { watch } from 'node:fs';
import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Redis } from 'ioredis';
import type OpenAI from 'openai';
import { expect } from 'vitest';
import { jobKey, recordKey } from '../../src/store/keys.ts';
import { SCRIPTS } from '../../src/store/scripts.ts';
import type { ScriptName } from '../../src/store/scripts.ts';
import { seededRandom } from '../simulators/vllm/digest.ts';
import {
  createBatch,
  download,
  expectExact,
  parseLines,
  say,
  submit,
  untilFinal,
} from './batch.ts';
import type { BatchOptions, Input } from './batch.ts';
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

/** Ends the locks that a dead process left, as if their seconds had run out. */
export async function endLocks(redis: Redis, pid: number): Promise<void> {
  for (const lock of await locksOf(redis)) {
    // A process's name has its id in it.
    const holder = await redis.hget(lock.replace(/:lock$/, ''), 'pb');
    if (holder?.includes(`-${pid}-`)) await redis.del(lock);
  }
}

/** Lets the locks of the dead never run out; the living renew theirs, which end as ever. */
export async function keepLocks(redis: Redis): Promise<void> {
  for (const lock of await locksOf(redis)) await redis.persist(lock);
}

/** BullMQ's, of all deliveries that somebody has in hand, or had when it died. */
function locksOf(redis: Redis): Promise<string[]> {
  return redis.keys('{sluice:*}:*:lock');
}

/**
 * Cuts a job's input into shards of so many lines, so that a few lines are many shards. Once it is planned, the cut is
 * fixed: nobody may plan before this is done.
 */
async function cutInto(redis: Redis, batchId: string, lines: number): Promise<void> {
  const cut = JSON.stringify({ lines, bytes: 8 * 2 ** 20 });
  await redis.hset(recordKey(batchId.replace('batch_', 'job_')), 'cut', cut);
}

/** Starts a batch that is cut into shards of so many lines, while these workers stand still. */
export async function submitInPieces(
  { url, redis, workers }: { url: string; redis: Redis; workers: readonly number[] },
  fileId: string,
  { pieceLines, ...options }: BatchOptions & { pieceLines: number },
): Promise<string> {
  for (const pid of workers) process.kill(pid, 'SIGSTOP');
  const { id } = await createBatch(url, fileId, options);
  await cutInto(redis, id, pieceLines);
  for (const pid of workers) process.kill(pid, 'SIGCONT');
  return id;
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
  const batch = await untilFinal(url, id, 120_000);
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
