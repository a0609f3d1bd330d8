import { expect, test } from 'vitest';
import { chatLines, openDispatchWorld } from '../support/dispatch-world.ts';
import { startVllm } from '../simulators/vllm/simulator.ts';
import { until } from '../support/until.ts';

test('before the first good answer only a few lines are sent; after it all may go', async () => {
  await using engine = await startVllm({ profile: 'zero', config: { latency_ms: 1_000 } });
  await using world = await openDispatchWorld({
    engines: [engine.url],
    input: chatLines(400),
    maxConcurrency: 400,
    guarded: true,
  });
  const running = world.runAll();
  await until(async () => (await engine.counts()).in_flight >= 50, { everyMs: 2 });
  expect((await engine.counts()).in_flight).toBe(50);
  expect(await running).toEqual(['done']);
  expect((await engine.counts()).max_in_flight).toBeGreaterThan(100);
  expect(world.troubles).toEqual([]);
});

test('lines that all fail alike are found out after 50 of them', async () => {
  await using engine = await startVllm({ profile: 'zero' });
  const lines = chatLines(1_000).replaceAll('"sim-model"', '"other-model"');
  await using world = await openDispatchWorld({
    engines: [engine.url],
    input: lines,
    models: ['other-model'],
    maxConcurrency: 400,
    guarded: true,
  });
  const running = world.runAll();
  await until(() => world.troubles.length > 0, { everyMs: 1 });
  world.stop.abort();
  await running;
  expect(world.troubles[0]).toMatch(/^The first 50 answers are the same error: 404 .*other-model/);
  // What was in flight when the fiftieth came, and then one after the other until it is stopped.
  expect((await engine.counts()).requests).toBeLessThan(200);
});

test('a straggler is asked again at an engine that stands idle; its first answer counts, the other is cut', async () => {
  await using slow = await startVllm({ profile: 'zero', config: { latency_ms: 20 } });
  await using fast = await startVllm({ profile: 'zero', config: { latency_ms: 20 } });
  // One request at one of the two hangs for good.
  await slow.setFaults([{ kind: 'hang_headers', count: 1 }]);
  for (const hedged of [true, false]) {
    await using world = await openDispatchWorld({
      engines: [slow.url, fast.url],
      input: chatLines(100),
      maxConcurrency: 16,
      requestTimeout: 4_000,
      hedged,
    });
    if (!hedged) await slow.setFaults([{ kind: 'hang_headers', count: 1 }]);
    const begun = performance.now();
    expect(await world.runAll()).toEqual(['done']);
    const ms = performance.now() - begun;
    expect(hedged ? ms < 3_500 : ms > 3_900, `${Math.round(ms)} ms`).toBe(true);
    expect((await world.ledger.answers()).size).toBe(100);
  }
  const [one, two] = [await slow.counts(), await fast.counts()];
  expect(one.requests + two.requests).toBe(202);
  expect(one.by_outcome).toMatchObject({ fault: 2, in_flight: 0 });
});
