import { deepStrictEqual, equal } from 'node:assert/strict';
import type { JobRecord } from '../../../src/domain/job.ts';
import type { AcceptedShard } from '../../../src/domain/segment.ts';
import type { World } from './world.ts';
import { badLines, linesIn, readJob } from './world.ts';

/** Counts of the record are bits in the bitmaps, and done shards are those without a line left, at every moment. */
export async function checkCounts(world: World): Promise<void> {
  const job = await readJob(world);
  const shards = await readShards(world);
  const bits = shards.map(({ done }) => linesIn(done).size);
  const sum = bits.reduce((total, some) => total + some, 0);
  equal(job.completed + job.failed, sum, 'counts are not what the bitmaps say');
  equal(job.doneShards, bits.filter((some) => some === world.lines).length, 'done shards');
}

/** What is recorded of every shard. */
export async function readShards({ store, jobId, shards }: World): Promise<AcceptedShard[]> {
  const all: AcceptedShard[] = [];
  for await (const shard of store.shards.accepted(jobId, 0, shards)) all.push(shard);
  return all;
}

/** All that assembly reads. */
export async function readWhole(
  world: World,
): Promise<{ job: JobRecord; shards: AcceptedShard[] }> {
  return { job: await readJob(world), shards: await readShards(world) };
}

/**
 * Assembles as the product does: of each shard the accepted parts, in order of commit, of which the first that holds
 * a line counts. A set bit has an answer, a clear one has none, and the sums are the record's counts.
 */
export async function checkAssembly(world: World): Promise<void> {
  let [completed, failed, undone] = [0, 0, 0];
  for (const shard of await readShards(world)) {
    const answers = pickAnswers(world, shard);
    const bad = badLines(world).find(({ n }) => n === shard.plan.n)?.bad ?? null;
    deepStrictEqual(shard.bad, bad, 'bad lines');
    const done = linesIn(shard.done);
    for (let line = 0; line < world.lines; line += 1) {
      const answer = answers.get(line);
      const where = `shard ${shard.plan.n} line ${line}`;
      equal(done.has(line), answer !== undefined, `${where}: bit and answer differ`);
      if (answer === undefined) undone += 1;
      else if (answer) completed += 1;
      else failed += 1;
    }
  }
  const job = await readJob(world);
  deepStrictEqual(
    { completed: job.completed, failed: job.failed },
    { completed, failed },
    'the record counts other lines than assembly finds',
  );
  equal(job.usage.inputTokens, completed + failed, 'input tokens');
  equal(job.usage.outputTokens, completed, 'output tokens');
  if (!world.cancelled) equal(undone, 0, 'a job that was not cancelled has undone lines');
}

function pickAnswers({ storage }: World, { plan, parts }: AcceptedShard): Map<number, boolean> {
  const answers = new Map<number, boolean>();
  for (const { segment, offset } of parts) {
    const stored = storage.get(segment)?.find((part) => part.offset === offset);
    equal(stored?.n, plan.n, `segment ${segment} at ${offset} is of another shard`);
    for (const [line, ok] of stored?.answers ?? []) {
      if (!answers.has(line)) answers.set(line, ok);
    }
  }
  return answers;
}
