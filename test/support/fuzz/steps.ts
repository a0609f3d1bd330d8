import { deepStrictEqual, equal, notEqual } from 'node:assert/strict';
import { commitParts, commitProcess, finish, seal } from './commit.ts';
import { recordKey } from '../../../src/store/keys.ts';
import { checkCounts } from './verify.ts';
import type { World } from './world.ts';
import { addAll, badLines, keysOf, linesIn, readJob } from './world.ts';

/** One thing that may happen; out of 100, how often it does. */
interface Step {
  weight: number;
  run(world: World): Promise<void>;
}

const STEPS: Step[] = [
  { weight: 25, run: takeShard },
  { weight: 45, run: answerLines },
  { weight: 12, run: (world) => commitProcess(world, world.random.below(world.open.length)) },
  { weight: 6, run: endHolder },
  { weight: 2, run: stall },
  { weight: 1, run: kill },
  { weight: 0.3, run: flushQueue },
  { weight: 2, run: loseTail },
  { weight: 0.5, run: loseEngine },
  { weight: 0.5, run: pause },
  { weight: 2, run: resume },
  { weight: 3, run: sweep },
];
/** Of every other run only: a deadline ends holders, of which those that outlive their time find the most. */
const STEPS_WITH_DEADLINES: Step[] = [
  ...STEPS,
  { weight: 0.5, run: passDeadline },
  { weight: 2, run: extend },
];

export async function takeStep(world: World): Promise<void> {
  const steps = world.stats.runs % 2 === 0 ? STEPS_WITH_DEADLINES : STEPS;
  const total = steps.map(({ weight }) => weight).reduce((sum, weight) => sum + weight, 0);
  let at = (world.random.below(1_000_000) / 1_000_000) * total;
  for (const { weight, run } of steps) {
    if (at < weight) return run(world);
    at -= weight;
  }
}

export async function cancel(world: World): Promise<void> {
  const job = await readJob(world);
  world.cancelled = true;
  if (job.state !== 'in_progress' && job.state !== 'submitting') return;
  world.stats.cancelled += 1;
  await world.store.jobs.move(job, 'cancelling', { outcome: 'cancelled' });
}

async function takeShard(world: World): Promise<void> {
  const { store, random, queue, jobId, ahead } = world;
  const shard = random.pick(queue.list('waiting'));
  if (!shard) return;
  queue.deliver(shard);
  const token = random.name();
  const { pausedAt, deadline } = await readJob(world);
  const taken = await store.shards.take(jobId, shard, token, ahead);
  if (taken.outcome !== 'not now') addAll(world, taken.waiting);
  if (pausedAt !== null) notEqual(taken.outcome, 'taken', 'a shard of a paused job was taken');
  if (deadline === OVER) notEqual(taken.outcome, 'taken', 'a shard was taken past the deadline');
  if (taken.outcome !== 'taken') return queue.end(shard);
  const bad = badLines(world).find(({ n }) => n === shard.n)?.bad ?? null;
  deepStrictEqual(taken.bad, bad, 'bad lines of a taken shard');
  world.holders.push({
    shard,
    token,
    process: random.below(world.open.length),
    known: linesIn(taken.done),
    asked: new Set(),
    committed: [],
    left: taken.left,
    ended: false,
  });
}

async function answerLines(world: World): Promise<void> {
  const { random, stats } = world;
  const holder = random.pick(world.holders);
  if (!holder || holder.ended) return;
  for (let count = 1 + random.below(6); count > 0; count -= 1) {
    const lines = [...Array(world.lines).keys()];
    const line = random.pick(lines.filter((i) => !holder.known.has(i) && !holder.asked.has(i)));
    if (line === undefined) return;
    holder.asked.add(line);
    stats.asked += 1;
    world.open[holder.process]?.push({ holder, line, ok: random.chance(0.8) });
  }
}

/** A holder that has nothing more to send ends its queue job, and gives back what is not done. */
async function endHolder(world: World): Promise<void> {
  const holder = world.random.pick(world.holders);
  if (!holder) return;
  const unanswered = holder.known.size + holder.asked.size < world.lines;
  const uncommitted = world.open[holder.process]?.some((answer) => answer.holder === holder);
  if (!holder.ended && (unanswered || uncommitted)) return;
  if (!holder.ended && holder.left !== 0) {
    // Redis has lost a tail: what it knows nothing of any more is committed again before a line is asked twice.
    for (const { segment, part } of holder.committed.splice(0)) {
      world.stats.recommitted += 1;
      await commitParts(world, segment, [{ holder, part }]);
    }
  }
  const { store, jobId, ahead } = world;
  addAll(world, await store.shards.give(jobId, holder.shard.n, holder.token, ahead));
  world.holders.splice(world.holders.indexOf(holder), 1);
  world.queue.end(holder.shard);
}

async function stall({ random, queue, stats }: World): Promise<void> {
  const shard = random.pick(queue.list('active'));
  if (!shard) return;
  stats.stalls += 1;
  queue.stall(shard);
}

/** A process dies with a shard and its answers; mostly somebody notices. */
async function kill(world: World): Promise<void> {
  const holder = world.random.pick(world.holders);
  if (!holder) return;
  world.stats.kills += 1;
  const open = world.open[holder.process] ?? [];
  world.open[holder.process] = open.filter((answer) => answer.holder !== holder);
  world.holders.splice(world.holders.indexOf(holder), 1);
  if (world.random.chance(0.9)) world.queue.stall(holder.shard);
}

async function flushQueue({ queue, stats }: World): Promise<void> {
  stats.flushes += 1;
  queue.flush();
}

/** Now and then Redis falls back to what it was some steps ago, as after a failover. */
async function loseTail(world: World): Promise<void> {
  const { redis, random } = world;
  if (!world.losesTails) return;
  if (world.snapshot === null || random.chance(0.5)) {
    const keys = keysOf(world);
    const dumps = await Promise.all(keys.map((key) => redis.dumpBuffer(key)));
    world.snapshot = keys.map((key, i) => ({ key, dump: dumps[i] ?? null }));
    return;
  }
  const { state } = await readJob(world);
  if (state !== 'in_progress' && state !== 'submitting') return;
  world.stats.tailsLost += 1;
  for (const { key, dump } of world.snapshot) {
    await (dump === null ? redis.del(key) : redis.restore(key, 0, dump, 'REPLACE'));
  }
  world.snapshot = null;
}

/** The engine stops answering: some holders give their shards back, some have not noticed. */
async function loseEngine(world: World): Promise<void> {
  const job = await readJob(world);
  if (job.state !== 'in_progress') return;
  world.stats.enginesLost += 1;
  await world.store.jobs.move(job, 'submitting');
  for (const holder of world.holders) if (world.random.chance(0.5)) holder.ended = true;
}

/** Somebody holds the job: holders finish what they have, some sooner than others. */
async function pause(world: World): Promise<void> {
  const { store, jobId, stats, random } = world;
  const { state } = await readJob(world);
  if (!(await store.jobs.pause(jobId, 'somebody'))) return;
  equal(state === 'in_progress' || state === 'submitting', true, 'a job on its way out was paused');
  stats.pauses += 1;
  for (const holder of world.holders) if (random.chance(0.5)) holder.ended = true;
  const waiting = (await store.shards.pending(jobId)).filter(({ held }) => !held);
  const open = await store.shards.open(jobId, waiting.length + 1);
  equal(open.length, waiting.length, 'a shard of a paused job was opened');
}

async function resume(world: World): Promise<void> {
  const { store, jobId, ahead } = world;
  if ((await readJob(world)).pausedAt === null) return;
  if (await store.jobs.resume(jobId)) addAll(world, await store.shards.open(jobId, ahead));
}

/** A deadline that passed long ago, which no clock has to be waited for. */
const OVER = 1;

/** The deadline passes and nobody ends the job: some holders notice it sooner than others. */
async function passDeadline({ redis, jobId, stats, holders, random }: World): Promise<void> {
  stats.overdue += 1;
  await redis.hset(recordKey(jobId), 'deadline', OVER);
  for (const holder of holders) if (random.chance(0.5)) holder.ended = true;
}

async function extend(world: World): Promise<void> {
  const { store, jobId, ahead } = world;
  const job = await readJob(world);
  if (job.deadline !== OVER) return;
  if (!(await store.jobs.extend(job, '48h', 172_800_000))) return;
  addAll(world, await store.shards.open(jobId, ahead));
}

async function sweep(world: World): Promise<void> {
  const { store, random, queue, jobId } = world;
  await checkCounts(world);
  world.ahead = 1 + random.below(4);
  const job = await readJob(world);
  if (job.state === 'submitting') await store.jobs.move(job, 'in_progress');
  const pending = await store.shards.pending(jobId);
  for (const { n, wake } of pending.toSorted((a, b) => a.n - b.n)) {
    if (queue.has({ n, wake })) continue;
    const next = await store.shards.rewake(jobId, { n, wake });
    if (next !== 'stale') addAll(world, [{ n, wake: next }]);
  }
  addAll(world, await store.shards.open(jobId, world.ahead));
  if (job.doneShards === job.shards) await finish(world);
  if (job.state !== 'cancelling') return;
  if ((await store.shards.held(jobId)) === 0 || random.chance(0.2)) {
    await seal(world, job, 'cancelled');
  }
}
