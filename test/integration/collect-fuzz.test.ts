import { Redis } from 'ioredis';
import { expect, inject, test } from 'vitest';
import type { CollectDeps } from '../../processors/collect.ts';
import { fileKey, outputFileId, segmentKey } from '../../src/domain/file.ts';
import { isFinal } from '../../src/domain/job.ts';
import type { Outcome } from '../../src/domain/job.ts';
import { recordKey } from '../../src/store/keys.ts';
import { createStore } from '../../src/store/store.ts';
import { DAY, HOUR, openCollectWorld } from '../support/collect-world.ts';
import type { CollectWorld } from '../support/collect-world.ts';
import { seededRandom } from '../support/fuzz/random.ts';
import type { Random } from '../support/fuzz/random.ts';
import { Killed, mortalRedis, mortalStorage } from '../support/mortal.ts';

/** `FUZZ_LONG=1` asks for more of them. */
const HISTORIES = process.env['FUZZ_LONG'] === '1' ? 60 : 6;
const STEPS = 45;
const OUTCOMES = ['completed', 'failed', 'cancelled', 'expired'] as const;

interface History {
  world: CollectWorld;
  random: Random;
  /** Jobs that nobody deleted, and those that somebody did, or at least tried to. */
  kept: Set<string>;
  deleted: Set<string>;
}

/** Runs a task as a process that is killed at a random command or call, or lives to the end. */
async function asMortal(
  { world, random }: History,
  task: (change: Partial<CollectDeps>) => Promise<unknown>,
): Promise<void> {
  const life = { left: random.chance(0.7) ? random.below(90) : Infinity };
  const redis = new Redis(inject('redisUrl'));
  await redis.ping();
  mortalRedis(redis, life);
  try {
    const store = createStore({ redis, namespace: world.namespace });
    await task({ store, storage: mortalStorage(world.storage, life) });
  } catch (error) {
    if (!(error instanceof Killed)) throw error;
  } finally {
    redis.disconnect();
  }
}

async function anyFinal({ world, random, kept }: History): Promise<string | undefined> {
  const jobs = await Promise.all([...kept].map(world.job));
  return random.pick(jobs.filter(({ state }) => isFinal(state)))?.id;
}

async function anyRunning({ world, random, kept }: History): Promise<string | undefined> {
  const jobs = await Promise.all([...kept].map(world.job));
  return random.pick(jobs.filter(({ state }) => !isFinal(state)))?.id;
}

type Act = (history: History) => Promise<void>;

async function begin({ world, random, kept }: History): Promise<void> {
  const other = random.pick([...kept]);
  const shared = other !== undefined && random.chance(0.3) ? (await world.job(other)).input : null;
  // Its file may be gone by now: then nobody could name it.
  const input = shared !== null && (await world.store.files.get(shared)) !== null ? shared : null;
  const validation = random.chance(0.3) ? 'lenient' : 'strict';
  kept.add(await world.run({ validation, ...(input === null ? {} : { input }) }));
}

async function end(history: History): Promise<void> {
  const { world, random } = history;
  const id = await anyRunning(history);
  const outcome: Outcome = random.pick(OUTCOMES) ?? 'completed';
  if (id !== undefined) await world.finish(id, outcome, { withoutFiles: random.chance(0.2) });
}

async function erase(history: History): Promise<void> {
  const { world, random, kept, deleted } = history;
  const id = random.chance(0.8) ? await anyFinal(history) : await anyRunning(history);
  if (id === undefined) return;
  await asMortal(history, (change) => world.erase(id, change));
  if ((await world.store.jobs.get(id)) !== null) return;
  kept.delete(id);
  deleted.add(id);
}

async function collect(history: History): Promise<void> {
  const { world, random } = history;
  const segmentKeepMs = random.chance(0.5) ? 0 : DAY;
  await asMortal(history, (change) => world.collect({}, { ...change, segmentKeepMs }));
}

/** Jobs go whose time is over, and their files stay. */
async function retain(history: History): Promise<void> {
  const { world, kept, deleted } = history;
  const finals = new Set<string>();
  for (const id of kept) if (isFinal((await world.job(id)).state)) finals.add(id);
  await asMortal(history, (change) => world.collect({}, { ...change, jobRetentionMs: 2 * DAY }));
  for (const id of finals) {
    if ((await world.store.jobs.get(id)) !== null) continue;
    kept.delete(id);
    deleted.add(id);
  }
}

async function expire(history: History): Promise<void> {
  await asMortal(history, (change) => history.world.expire(change));
}

/** What a process that dies leaves behind, or one that does not know that its job is over. */
async function litter({ world, random, kept, deleted }: History): Promise<void> {
  const id = random.pick([...kept, ...deleted, 'job_never']) ?? 'job_never';
  const job = await world.store.jobs.get(id);
  const isOver = job === null || isFinal(job.state);
  const keys = [segmentKey(id, random.name()), fileKey(`file-${random.name()}`)];
  if (isOver && job === null) keys.push(fileKey(outputFileId(id, 'output')));
  const key = random.pick(keys) ?? '';
  await world.storage.put(key, [Buffer.from('litter')]);
}

async function wait({ world, random }: History): Promise<void> {
  world.ahead += random.below(2) * DAY + random.below(30) * HOUR;
}

const ACTS: readonly Act[] = [
  begin,
  begin,
  end,
  end,
  erase,
  collect,
  collect,
  retain,
  expire,
  litter,
  wait,
];

/** What of all that jobs need is gone. */
async function lostOf({ world, kept }: History): Promise<string[]> {
  const objects = new Set(await world.objects());
  const lost: string[] = [];
  for (const id of kept) {
    const job = await world.job(id);
    const isOver = isFinal(job.state);
    const files = isOver ? [job.outputFile, job.errorFile] : [job.input];
    for (const file of files) if (file !== null && !objects.has(fileKey(file))) lost.push(file);
    // Answers are needed while they are in no file.
    if (isOver && job.outputFile !== null) continue;
    const segments = [...(await world.store.shards.segments(id)).keys()];
    if ((await world.store.collect.countShards(id)) !== 3) lost.push(`shards of ${id}`);
    if (segments.length !== 1) lost.push(`segments of ${id}`);
    lost.push(...segments.filter((segment) => !objects.has(segmentKey(id, segment))));
  }
  return lost;
}

/** Ends and deletes all, lets the time pass after which everything must be gone, and returns what is not. */
async function leftOf({ world, kept, deleted }: History): Promise<string[]> {
  for (const id of kept) {
    if (!isFinal((await world.job(id)).state)) await world.finish(id);
    deleted.add(id);
  }
  // Also of those whose files had stayed.
  for (const id of deleted) await world.erase(id);
  world.ahead += 40 * DAY;
  for (let pass = 0; pass < 6; pass += 1) {
    await world.expire();
    world.ahead += 2 * DAY;
  }
  await world.collect({ confirm: true });
  const notes = new Set([...deleted].flatMap((id) => [id, `prov_${id}_0_0`]).map(noteOf));
  const own = new Set(['census', 'storage', 'sweep'].map((name) => `${world.namespace}:${name}`));
  const keys = await world.keys(world.namespace);
  for (const id of deleted) keys.push(...(await world.keys(id.slice('job_'.length))));
  const known = (key: string) => notes.has(key) || own.has(key) || key.endsWith(':removed');
  return [...(await world.objects()), ...keys.filter((key) => !known(key))];
}

function noteOf(id: string): string {
  return `${recordKey(id)}:erased`;
}

test.for(Array.from({ length: HISTORIES }, (_, seed) => seed))(
  'history %i: whatever is killed, what jobs need stays, and in the end nothing is left',
  { timeout: 60_000 },
  async (seed) => {
    const random = seededRandom(seed * 7_919 + 1);
    await using world = await openCollectWorld();
    const history: History = { world, random, kept: new Set(), deleted: new Set() };
    for (let step = 0; step < STEPS; step += 1) {
      const act = random.pick(ACTS) ?? begin;
      try {
        await act(history);
      } catch (error) {
        throw new Error(`step ${step}: ${act.name}`, { cause: error });
      }
      expect([step, act.name, await lostOf(history)]).toEqual([step, act.name, []]);
    }
    expect(await leftOf(history)).toEqual([]);
  },
);
