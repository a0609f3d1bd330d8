import { expect, test } from 'vitest';
import { MANY_TAKES } from '../../src/domain/plan.ts';
import { chatLines, openDispatchWorld } from '../support/dispatch-world.ts';
import type { DispatchWorld } from '../support/dispatch-world.ts';
import { until } from '../support/until.ts';
import { startVllm } from '../simulators/vllm/simulator.ts';

/** Runs a shard as it was taken after others died with it. */
async function runTaken(
  world: DispatchWorld,
  { n = 0, ...more }: { n?: number; takes?: number; crashed?: { line: number; deaths: number } },
): Promise<string> {
  const { crashed = null, takes = 1 } = more;
  const shard = {
    ...world.ledger.take(n),
    takes,
    crashed: crashed && { ...crashed, sinceMs: 60_000 },
  };
  const { signal } = world.abort;
  return world.dispatcher.run(shard, world.job, { stop: world.stop.signal, abort: signal });
}

test('a shard that many processes died with has fewer lines in hand, each committed at once', async () => {
  await using engine = await startVllm({ profile: 'zero', config: { latency_ms: 100 } });
  await using world = await openDispatchWorld({ engines: [engine.url], input: chatLines(40) });
  const run = runTaken(world, { takes: MANY_TAKES + 2 });
  await until(() => world.dispatcher.load.inFlight > 0, { what: 'lines in flight' });
  expect(world.dispatcher.load.inFlight, 'a quarter at the second further take').toBe(10);
  await until(() => world.ledger.commits.length > 0, { what: 'a commit' });
  expect(world.ledger.shards.get(0)?.left, 'long before the segment is old').toBeGreaterThan(0);
  expect(await run).toBe('done');
  expect(world.ledger.shards.get(0)).toMatchObject({ ok: 40, left: 0 });
});

test('a line that is alone in hand has the whole process for itself, and is marked before it is sent', async () => {
  await using engine = await startVllm({ profile: 'zero', config: { latency_ms: 100 } });
  const marks: [number, number][] = [];
  const inFlight: number[] = [];
  await using world = await openDispatchWorld({
    engines: [engine.url],
    input: chatLines(400),
    cutLines: 200,
    maxConcurrency: 16,
    deps: {
      async markAlone(_job, n, _token, line) {
        marks.push([n, line]);
        inFlight.push(world.dispatcher.load.inFlight);
        return Promise.resolve(true);
      },
    },
  });
  const other = runTaken(world, { n: 1 });
  await until(() => world.dispatcher.load.inFlight === 16, { what: 'the other shard' });
  const run = runTaken(world, { takes: MANY_TAKES + 9 });
  await until(() => marks.length > 0, { what: 'a mark' });
  await until(() => world.dispatcher.load.inFlight > 0, { what: 'the line' });
  expect(world.dispatcher.load.inFlight).toBe(1);
  expect(await Promise.all([run, other])).toEqual(['done', 'done']);
  expect(marks, 'once it is answered, others go beside the next').toEqual([[0, 0]]);
  expect(inFlight).toEqual([0]);
});

test('a line with which three processes died is answered with that, the rest is asked', async () => {
  await using engine = await startVllm({ profile: 'zero' });
  await using world = await openDispatchWorld({ engines: [engine.url], input: chatLines(5) });
  expect(await runTaken(world, { crashed: { line: 0, deaths: 3 } })).toBe('done');
  expect(world.ledger.shards.get(0)).toMatchObject({ ok: 4, failed: 1, left: 0 });
  expect((await engine.counts()).requests).toBe(4);
  const answer = (await world.ledger.answers()).get(0);
  expect(answer?.kind).toBe('error');
});

test('with two deaths it is asked once more, not before its time', async () => {
  await using engine = await startVllm({ profile: 'zero' });
  await using world = await openDispatchWorld({
    engines: [engine.url],
    input: chatLines(3),
    deps: { crashApartMs: 60_300 },
  });
  const begun = performance.now();
  expect(await runTaken(world, { crashed: { line: 0, deaths: 2 } })).toBe('done');
  expect(performance.now() - begun).toBeGreaterThanOrEqual(299);
  expect(world.ledger.shards.get(0)).toMatchObject({ ok: 3, failed: 0 });
});

test('a shard that is not ours any more is not sent from', async () => {
  await using engine = await startVllm({ profile: 'zero' });
  await using world = await openDispatchWorld({
    engines: [engine.url],
    input: chatLines(3),
    deps: { markAlone: async () => Promise.resolve(false) },
  });
  expect(await runTaken(world, { crashed: { line: 0, deaths: 1 } })).toBe('stopped');
  expect((await engine.counts()).requests).toBe(0);
});

test('while a line that is sent alone waits to be asked again, others are sent', async () => {
  await using engine = await startVllm({ profile: 'zero' });
  await using world = await openDispatchWorld({
    engines: [engine.url],
    input: chatLines(20),
    cutLines: 10,
    retry: { maxRetries: 1, baseMs: 60_000, capMs: 60_000 },
  });
  await engine.setFaults([{ kind: 'status', status: 500, match: 'question 0"', count: 1 }]);
  const run = runTaken(world, { crashed: { line: 0, deaths: 1 } });
  await until(() => world.retries.length > 0, { what: 'the line to fail' });
  expect(await runTaken(world, { n: 1 })).toBe('done');
  world.stop.abort();
  expect(await run).toBe('stopped');
});
