import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, expect, test } from 'vitest';
import { makeInput, say, submit, untilFinal } from '../support/batch.ts';
import { callsScript, cleanOutput, expectUnharmed, LONG, openRedis } from '../support/chaos.ts';
import { startRedis } from '../support/redis.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { startTapProxy } from '../support/tap-proxy.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

/** Longer than a lock of 6 s and the check for stalled ones every 2 s. */
const STOPPED_MS = LONG ? 60_000 : 10_000;
const CONCURRENCY = 32;
const LATENCY_MS = 100;

test(`a worker stands still for ${STOPPED_MS / 1_000} s: what it commits then is refused`, async () => {
  await using server = await startRedis();
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await using store = openRedis(server.url);
  await using tap = await startTapProxy(server);
  await using folder = await makeFolder();
  const shared = { dataDir: folder.path, engines: [engine.url] };
  await using first = await startSluice({ ...shared, redisUrl: server.url });
  const input = makeInput(LONG ? 20_000 : 2_500);
  await engine.setConfig({ latency_ms: LATENCY_MS });
  const redisUrl = `redis://${tap.host}:${tap.port}`;
  await using zombie = await startSluice({ ...shared, redisUrl, roles: ['worker'] });
  const isCommit = callsScript('commit');
  const committed = tap.arm({ request: isCommit, arrives: true, act: () => undefined });
  const id = await submit(first.url, input, { maxConcurrency: CONCURRENCY });
  // After its first commit it gathers answers for the next one.
  await committed;
  const { requests } = await engine.counts();
  await until(async () => (await engine.counts()).requests > requests + 4 * CONCURRENCY);
  process.kill(zombie.pid, 'SIGSTOP');
  const stoppedAt = performance.now();
  const { repeated } = await engine.counts();
  const takeover = until(async () => (await engine.counts()).repeated > repeated, {
    timeoutMs: 30_000,
    what: 'the takeover',
  }).then(() => performance.now() - stoppedAt);
  await sleep(STOPPED_MS);
  let answer = '';
  const refused = tap.arm({
    request: isCommit,
    reply: (chunk) => {
      answer = /committed|stale|sealed|overlap/.exec(chunk.toString('latin1'))?.[0] ?? '';
      return answer !== '';
    },
    arrives: true,
    act: () => undefined,
  });
  process.kill(zombie.pid, 'SIGCONT');
  await refused;
  say(`the first commit after ${STOPPED_MS} ms of silence is answered '${answer}'`);
  expect(['stale', 'sealed']).toContain(answer);
  const batch = await untilFinal(first.url, id, 120_000);
  const after = await engine.counts();
  const askedTwice = after.requests - input.customIds.length;
  const clean = await cleanOutput(first.url, engine, input);
  await expectUnharmed(
    { url: first.url, batch, input, dataDir: folder.path, redis: store.client, clean },
    {
      name: 'stopped and continued',
      kills: 1,
      askedTwice,
      takeovers: [await takeover],
      // What was gathered before, and what was on its way meanwhile.
      mayLeave: 3,
    },
  );
  // In flight, and answered since the last segment was closed, which is two seconds at most.
  expect(askedTwice).toBeLessThanOrEqual(CONCURRENCY + (2_500 / LATENCY_MS) * CONCURRENCY);
  expect((await zombie.stop()).code).toBe(0);
});
