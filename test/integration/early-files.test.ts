import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { createEarlyFiles } from '../../processors/early-files.ts';
import type { EarlyFiles } from '../../processors/early-files.ts';
import { outputLine, requestId } from '../../src/dispatcher/answer-lines.ts';
import { assemble } from '../../src/dispatcher/assemble.ts';
import { transient } from '../../src/domain/errors.ts';
import { fileKey, outputFileId, segmentKey } from '../../src/domain/file.ts';
import type { Outcome } from '../../src/domain/job.ts';
import { createLocalStorage } from '../../src/storage/local.ts';
import type { Storage } from '../../src/storage/contract.ts';
import { encodeSegment } from '../support/encode-segment.ts';
import { openRecordWorld } from '../support/record-world.ts';
import type { RecordWorld } from '../support/record-world.ts';
import { newJob, partOf } from '../support/store-back-ends.ts';
import { until } from '../support/until.ts';

const SHARDS = 12;
/** Lines of a shard. */
const LINES = 4;
/** Each commit is enough to begin. */
const LEAST_BYTES = 1;
/** The answers of a few shards are more than is gathered before it is written. */
const PADDING = 'x'.repeat(50_000);

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});

/** A job in progress, and the process that writes its files while it runs. */
interface Running {
  world: RecordWorld;
  storage: Storage;
  id: string;
  early: EarlyFiles;
  /** Segments that were read since it was last emptied. */
  read: string[];
  /** Answers all lines of a shard, as the process that says so does. */
  answer(n: number, text?: string): Promise<void>;
  /** Resolves when the first shards were read, up to this one. */
  untilRead(n: number): Promise<void>;
  seal(outcome?: Outcome): Promise<void>;
  /** Resolves when no process writes its files while it runs. */
  untilLeft(): Promise<void>;
  output(): Promise<string>;
}

async function startJob(): Promise<Running> {
  const world = openRecordWorld();
  closers.push(async () => world[Symbol.dispose]());
  const folder = await mkdtemp(join(tmpdir(), 'sluice-early-'));
  closers.push(() => rm(folder, { recursive: true }));
  const storage = createLocalStorage({ directory: folder });
  const read: string[] = [];
  const { store } = world;
  Object.assign(world.deps, {
    storage: {
      put: storage.put.bind(storage),
      head: storage.head.bind(storage),
      delete: storage.delete.bind(storage),
      get(...[key, range]: Parameters<Storage['get']>) {
        if (key.includes('/segments/')) read.push(key);
        return storage.get(key, range);
      },
    },
    assemble: (...[source, sinks, options]: Parameters<typeof assemble>) =>
      assemble(source, sinks, { ...options, maxLineBytes: 100_000 }),
  });
  const early = createEarlyFiles({
    name: 'one',
    deps: () => world.deps,
    leastBytes: LEAST_BYTES,
  });
  closers.push(() => early.close());
  world.deps.early = early;
  const id = await beginJob(world, storage);
  const running: Running = {
    world,
    storage,
    id,
    early,
    read,
    async answer(n, text = 'first') {
      await answerShard(running, n, text);
      early.committed(id, LEAST_BYTES);
    },
    async untilRead(n) {
      await until(() => read.includes(segmentKey(id, `first-${n}`)), { what: `shard ${n}` });
    },
    async seal(outcome = 'completed') {
      const { version } = await world.job(id);
      const moved = await store.jobs.move({ id, state: 'in_progress', version }, 'finalizing', {
        outcome,
      });
      expect(moved).not.toBe('stale');
    },
    async untilLeft() {
      await until(async () => !(await store.writer(id).isHeld()), { what: 'the end of the lease' });
    },
    output: () => textOf(storage, fileKey(outputFileId(id, 'output'))),
  };
  return running;
}

async function beginJob({ store }: RecordWorld, storage: Storage): Promise<string> {
  const created = newJob();
  const input = `file-${created.id}`;
  const { job } = await store.jobs.create({ ...created, input });
  const rows = Array.from({ length: SHARDS * LINES }, (_, n) => rowOf(n));
  const stored = await storage.put(fileKey(input), [Buffer.from(rows.join(''))]);
  await store.files.create({ id: input, filename: 'in.jsonl', purpose: 'batch', ...stored });
  let offset = 0;
  const plans = Array.from({ length: SHARDS }, (_, n) => {
    const bytes = rows.slice(n * LINES, (n + 1) * LINES).join('').length;
    offset += bytes;
    return { n, first: n * LINES, lines: LINES, offset: offset - bytes, bytes };
  });
  await store.shards.write(job.id, plans);
  let at = { id: job.id, state: job.state, version: job.version };
  const set = { lines: rows.length, shards: SHARDS, models: ['m'] };
  for (const to of ['resource_preparing', 'submitting', 'in_progress'] as const) {
    const moved = await store.jobs.move(at, to, { set });
    if (moved === 'stale') throw new Error('nobody else moves this job');
    at = { id: job.id, state: to, version: moved.version };
  }
  await store.shards.open(job.id, SHARDS);
  return job.id;
}

function rowOf(index: number): string {
  return `{"custom_id":"c${index}","method":"POST","url":"/v1/chat/completions","body":{"model":"m"}}\n`;
}

async function answerShard({ world, storage, id }: Running, n: number, text: string) {
  const { shards } = world.store;
  const wake = (await shards.pending(id)).find((pending) => pending.n === n)?.wake ?? 1;
  const token = `${text}-${n}`;
  expect(await shards.take(id, { n, wake }, token, SHARDS)).toMatchObject({ outcome: 'taken' });
  const lines = Array.from({ length: LINES }, (_, line) => line);
  const answers = lines.map((line) => {
    const [at, body] = [n * LINES + line, Buffer.from(JSON.stringify({ text, PADDING }))];
    const said = { id: requestId(id, at), customId: Buffer.from(`"c${at}"`), requestId: 'r' };
    const pieces = outputLine({ ...said, status: 200, body });
    const bytes = Buffer.concat(pieces.map((piece) => Buffer.from(piece)));
    return { line, kind: 'output' as const, bytes };
  });
  const { bytes, parts } = encodeSegment([{ shard: n, answers }]);
  const segment = `${text}-${n}`;
  const stored = await storage.put(segmentKey(id, segment), bytes);
  const part = partOf(n, token, LINES, lines, { ...parts[0], ok: LINES, failed: 0 });
  const { parts: results } = await shards.commit(id, { id: segment, ...stored }, [part]);
  expect(results).toMatchObject([{ outcome: 'committed' }]);
}

async function textOf(storage: Storage, key: string): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of await storage.get(key)) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

/** The `custom_id` and the text of each line. */
function answersOf(output: string): [string, string][] {
  const lines = output.trimEnd().split('\n');
  return lines.map((line) => {
    const { custom_id: customId, response } = JSON.parse(line);
    return [customId, response.body.text];
  });
}

function expected(text: (index: number) => string = () => 'first'): [string, string][] {
  return Array.from({ length: SHARDS * LINES }, (_, n) => [`c${n}`, text(n)]);
}

test('when the last line is answered, only the last shards are left to be read', async () => {
  const job = await startJob();
  for (let n = 0; n < SHARDS - 2; n += 1) await job.answer(n);
  await job.untilRead(SHARDS - 3);
  job.read.length = 0;
  await job.answer(SHARDS - 1);
  await job.answer(SHARDS - 2);
  await job.seal();
  await until(async () => (await job.world.job(job.id)).state === 'completed', { what: 'the end' });
  await job.untilLeft();
  expect(new Set(job.read).size).toBe(2);
  expect(answersOf(await job.output())).toEqual(expected());
  expect(await job.world.job(job.id)).toMatchObject({ completed: SHARDS * LINES, failed: 0 });
});

test('shards that are answered out of order wait for those before them', async () => {
  const job = await startJob();
  for (const n of [0, 1, 3, 4]) await job.answer(n);
  await job.untilRead(1);
  await job.answer(2);
  await job.untilRead(4);
  expect(job.read.map((key) => Number(/-(\d+)$/.exec(key)?.[1]))).toEqual([0, 1, 2, 3, 4]);
});

test('of a job that is cancelled, the rest is named in the error file', async () => {
  const job = await startJob();
  for (let n = 0; n < 5; n += 1) await job.answer(n);
  await job.untilRead(4);
  await job.seal('cancelled');
  await until(async () => (await job.world.job(job.id)).state === 'cancelled', { what: 'the end' });
  expect(answersOf(await job.output())).toEqual(expected().slice(0, 5 * LINES));
  const errors = await textOf(job.storage, fileKey(outputFileId(job.id, 'error')));
  const codes = errors
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line).error.code);
  expect(codes).toEqual(Array.from({ length: 7 * LINES }, () => 'batch_cancelled'));
});

test('others leave the end of the job to who has written its files, for as long as that one lives', async () => {
  const job = await startJob();
  const { world, id } = job;
  await world.store.writer(id).lease('another', 60_000);
  for (let n = 0; n < SHARDS; n += 1) await job.answer(n);
  await job.seal();
  expect(await world.deliver('release', id)).toEqual({ againInMs: 200 });
  expect(job.read, 'it was not begun twice').toEqual([]);
  await world.store.writer(id).yield('another');
  expect((await world.untilFinal(id)).state).toBe('completed');
  expect(answersOf(await job.output())).toEqual(expected());
});

test('answers that were lost and asked again after they were read are in the file as they are now', async () => {
  const job = await startJob();
  const { world, id } = job;
  for (let n = 0; n < SHARDS - 1; n += 1) await job.answer(n);
  await job.untilRead(SHARDS - 2);
  // Who looks ten times a second does not see that the job was sealed meanwhile.
  const look = Promise.withResolvers<void>();
  const { store } = world;
  async function get(jobId: string) {
    await look.promise;
    return store.jobs.get(jobId);
  }
  world.deps.store = { ...store, jobs: { ...store.jobs, get } };
  await strike(job, 3);
  await answerShard(job, 3, 'second');
  await job.answer(SHARDS - 1);
  await job.seal();
  look.resolve();
  await until(async () => (await world.job(id)).state === 'completed', { what: 'the end' });
  const isSecond = (index: number) => Math.floor(index / LINES) === 3;
  const found = answersOf(await job.output());
  expect(found).toEqual(expected((index) => (isSecond(index) ? 'second' : 'first')));
});

test('what cannot be written now is written when the job is over', async () => {
  const job = await startJob();
  const { deps } = job.world;
  const { put } = deps.storage;
  const failed = Promise.withResolvers<void>();
  deps.storage.put = async (_key, source) => {
    for await (const _chunk of source) break;
    failed.resolve();
    throw transient('storage.full', 'no space left');
  };
  for (let n = 0; n < 6; n += 1) await job.answer(n);
  await failed.promise;
  await job.untilLeft();
  deps.storage.put = put;
  for (let n = 6; n < SHARDS; n += 1) await answerShard(job, n, 'first');
  await job.seal();
  expect((await job.world.untilFinal(job.id)).state).toBe('completed');
  expect(answersOf(await job.output())).toEqual(expected());
});

test('a job that is paused is left alone, and begun anew when it goes on', async () => {
  const job = await startJob();
  const { jobs } = job.world.store;
  for (let n = 0; n < 6; n += 1) await job.answer(n);
  await job.untilRead(5);
  expect(await temporaryFiles(job)).toHaveLength(1);
  await jobs.pause(job.id, '');
  await job.untilLeft();
  expect(await temporaryFiles(job)).toEqual([]);
  job.read.length = 0;
  await jobs.resume(job.id);
  await job.answer(6);
  await job.untilRead(6);
});

test('a process that stops leaves neither a lease nor a half-written file', async () => {
  const job = await startJob();
  for (let n = 0; n < 6; n += 1) await job.answer(n);
  await job.untilRead(5);
  const isWritten = async () => (await temporaryFiles(job)).length === 1;
  await until(isWritten, { what: 'a file that is being written' });
  await job.early.close();
  expect(await job.world.store.writer(job.id).isHeld()).toBe(false);
  expect(await temporaryFiles(job)).toEqual([]);
  await job.answer(6);
  expect(await job.world.store.writer(job.id).isHeld(), 'it begins no more').toBe(false);
});

test('nobody begins with the files of a job that goes on for hours', async () => {
  const job = await startJob();
  job.world.ahead = 600_000;
  await job.answer(0);
  await job.early.close();
  expect(job.read).toEqual([]);
});

/** Names of puts that have begun and not ended. */
async function temporaryFiles({ storage }: Running): Promise<string[]> {
  const names: string[] = [];
  for await (const { key } of storage.abandoned(0)) names.push(key);
  return names;
}

/** The parts of a shard are struck out, and it is open again: what a job goes through whose segments were lost. */
async function strike({ world, id }: Running, n: number): Promise<void> {
  const { store } = world;
  await sealAndReopen(world, id, async (version) => {
    for await (const shard of store.shards.accepted(id, n, n + 1)) {
      const lost = { n, lost: shard.parts, rest: Buffer.alloc(shard.done.length) };
      const moved = await store.shards.strike({ id, version }, lost, '');
      if (moved === 'stale') throw new Error('nobody else moves this job');
      return moved;
    }
    throw new Error(`there is no shard ${n}`);
  });
}

async function sealAndReopen(
  { store, job }: RecordWorld,
  id: string,
  change: (version: number) => Promise<number>,
): Promise<void> {
  const { version } = await job(id);
  const sealed = await store.jobs.move({ id, state: 'in_progress', version }, 'finalizing', {
    outcome: 'completed',
  });
  if (sealed === 'stale') throw new Error('nobody else moves this job');
  let at = { id, state: 'finalizing' as const, version: await change(sealed.version) };
  for (const to of ['resource_preparing', 'submitting', 'in_progress'] as const) {
    const moved = await store.jobs.move(at, to);
    if (moved === 'stale') throw new Error('nobody else moves this job');
    at = { id, state: to as never, version: moved.version };
  }
  await store.shards.open(id, SHARDS);
}
