import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, expect, test } from 'vitest';
import { makeInput, say, submit, untilAnswered, untilFinal } from '../support/batch.ts';
import { callsScript, cleanOutput, expectUnharmed, LONG } from '../support/chaos.ts';
import { requireNothingLeft, startSluice } from '../support/server.ts';
import { openSite } from '../support/site.ts';
import { startTapProxy } from '../support/tap-proxy.ts';
import { until } from '../support/until.ts';

afterAll(requireNothingLeft);

/** For how long at least, besides until its work is taken over. */
const STOPPED_MS = LONG ? 60_000 : 0;
const CONCURRENCY = 32;
const LATENCY_MS = 100;

test('a worker stands still until its work is taken over: what it commits then is refused', async () => {
  await using first = await openSite();
  const { redis, store, engine, shared } = first;
  await using tap = await startTapProxy(redis);
  const input = makeInput(LONG ? 20_000 : 2_500);
  await engine.setConfig({ latency_ms: LATENCY_MS });
  const redisUrl = `redis://${tap.host}:${tap.port}`;
  await using zombie = await startSluice({ ...shared, redisUrl, roles: ['worker'] });
  const isCommit = callsScript('commit');
  const committed = tap.arm({ request: isCommit, arrives: true, act: () => undefined });
  const begun = await engine.counts();
  const id = await submit(first.url, input, { maxConcurrency: CONCURRENCY });
  // After its first commit it gathers answers for the next one.
  await committed;
  const { requests } = await engine.counts();
  await until(async () => (await engine.counts()).requests > requests + 4 * CONCURRENCY, {
    timeoutMs: 60_000,
    what: 'more answers',
  });
  const { request_counts: counts } = await untilAnswered(first.url, id, 1, 60_000);
  process.kill(zombie.pid, 'SIGSTOP');
  const stoppedAt = performance.now();
  const stopped = await engine.counts();
  await until(async () => (await engine.counts()).repeated > stopped.repeated, {
    timeoutMs: 60_000,
    what: 'the takeover',
  });
  const takeover = performance.now() - stoppedAt;
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
  const silentMs = Math.round(performance.now() - stoppedAt);
  say(`the first commit after ${silentMs} ms of silence is answered '${answer}'`);
  expect(['stale', 'sealed']).toContain(answer);
  await engine.setConfig({ latency_ms: 5 });
  const batch = await untilFinal(first.url, id, 120_000);
  const after = await engine.counts();
  const askedTwice = after.requests - begun.requests - input.customIds.length;
  const clean = await cleanOutput(first.url, engine, input);
  await expectUnharmed(
    { url: first.url, batch, input, dataDir: shared.dataDir, redis: store, clean },
    {
      name: 'stopped and continued',
      kills: 1,
      askedTwice,
      takeovers: [takeover],
      // What was gathered before, and what was on its way meanwhile.
      mayLeave: 3,
    },
  );
  // What was committed is not asked again.
  const uncommitted = stopped.requests - begun.requests - (counts?.completed ?? 0);
  expect(askedTwice).toBeLessThanOrEqual(uncommitted);
  expect((await zombie.stop()).code).toBe(0);
});
