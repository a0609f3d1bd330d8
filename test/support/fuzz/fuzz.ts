import { deepStrictEqual } from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { globalKeys } from '../../../src/store/keys.ts';
import type { Client, ScriptName } from '../../../src/store/scripts.ts';
import { commandName, defineScripts, SCRIPTS } from '../../../src/store/scripts.ts';
import { createStore } from '../../../src/store/store.ts';
import { commitProcess } from './commit.ts';
import { loseParts } from './lose-parts.ts';
import { seededRandom } from './random.ts';
import { repeatCommands } from './repeat-commands.ts';
import { cancel, takeStep } from './steps.ts';
import { checkAssembly, checkCounts, readWhole } from './verify.ts';
import type { Stats, World } from './world.ts';
import { createWorld, keysOf, readJob, startJob } from './world.ts';

export interface FuzzOptions {
  /** A client of the fuzz' own: its commands are changed. */
  redis: Client;
  seed: number;
  /** Ends at whichever comes first. */
  milliseconds: number;
  runs?: number;
  /** Whether a script that is sent twice has to answer the same twice; true unless given. */
  compareRepeats?: boolean;
  /** A script of which a part is replaced, to see the fuzz turn red. */
  mutant?: { script: ScriptName; find: RegExp; replace: string };
}

/** More steps than any run needs; a run that takes them is stuck. */
const MOST_STEPS = 20_000;

/**
 * Drives the store's scripts at random, one job a run, and throws at the first state that must not be.
 * Processes take turns at whole commands: a script runs alone in Redis, so no other interleaving exists.
 */
export async function fuzzStore(options: FuzzOptions): Promise<Stats> {
  const { redis, seed } = options;
  const namespace = `fuzz-${randomUUID()}`;
  const store = createStore({ redis, namespace });
  if (options.mutant) defineMutant(redis, options.mutant);
  let random = seededRandom(seed);
  const repeats = repeatCommands(redis, () => random, options.compareRepeats ?? true);
  const stats = emptyStats();
  const end = performance.now() + options.milliseconds;
  try {
    while (performance.now() < end && stats.runs < (options.runs ?? Infinity)) {
      random = seededRandom(seed * 1_000_003 + stats.runs);
      const world = createWorld({ redis, store, random, stats }, `job_${randomUUID()}`);
      try {
        await runJob(world);
      } catch (error) {
        throw new Error(`fuzz seed ${seed}, run ${stats.runs}: ${String(error)}`, { cause: error });
      } finally {
        await Promise.all(keysOf(world).map((key) => redis.unlink(key)));
      }
      stats.runs += 1;
    }
  } finally {
    const keys = Object.values(globalKeys(namespace)).filter((key) => typeof key === 'string');
    await Promise.all(keys.map((key) => redis.unlink(key)));
    // The client is what it was.
    defineScripts(redis);
  }
  return { ...stats, repeated: repeats.repeated };
}

async function runJob(world: World): Promise<void> {
  await startJob(world);
  for (let step = 0; step < MOST_STEPS; step += 1) {
    if (world.cancelAt !== null && step > world.cancelAt && !world.cancelled) await cancel(world);
    await takeStep(world);
    if (!world.sealed || (await loseParts(world))) continue;
    await checkCounts(world);
    await checkAssembly(world);
    const sealed = await readWhole(world);
    // Processes that know nothing of the seal commit what they have.
    for (const process of world.open.keys()) await commitProcess(world, process);
    deepStrictEqual(await readWhole(world), sealed, 'a sealed job moved');
    world.stats.lines += world.shards * world.lines;
    return;
  }
  const pending = await world.store.shards.pending(world.jobId);
  throw new Error(`stuck: ${JSON.stringify({ job: await readJob(world), pending })}`);
}

function defineMutant(redis: Client, mutant: NonNullable<FuzzOptions['mutant']>): void {
  const lua = SCRIPTS.get(mutant.script) ?? '';
  if (!mutant.find.test(lua)) throw new Error(`${mutant.script}.lua has no ${mutant.find.source}`);
  redis.defineCommand(commandName(mutant.script), {
    numberOfKeys: 1,
    lua: lua.replace(mutant.find, mutant.replace),
  });
}

function emptyStats(): Stats {
  return {
    runs: 0,
    repeated: 0,
    asked: 0,
    lines: 0,
    stale: 0,
    sealed: 0,
    overlap: 0,
    tailsLost: 0,
    recommitted: 0,
    flushes: 0,
    stalls: 0,
    kills: 0,
    lostSegments: 0,
    enginesLost: 0,
    cancelled: 0,
    pauses: 0,
    struck: 0,
    overdue: 0,
  };
}
