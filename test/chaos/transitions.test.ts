import { afterAll, expect, test } from 'vitest';
import { makeInput, untilFinal, upload } from '../support/batch.ts';
import {
  callsScript,
  cleanOutput,
  endLocks,
  expectUnharmed,
  LONG,
  submitInPieces,
} from '../support/chaos.ts';
import { requireNothingLeft, startSluice } from '../support/server.ts';
import { openGround } from '../support/site.ts';
import { startTapProxy } from '../support/tap-proxy.ts';

afterAll(requireNothingLeft);

const LINES = 600;
const PIECE = 100;
/** Of job and provisions, those that schedule work. */
const STATES = LONG
  ? ['starting', 'submitting', 'serving', 'in_progress', 'finalizing', 'releasing']
  : ['starting', 'in_progress', 'finalizing'];

test('between transition and enqueue: the worker is killed at each move of job and provision', async () => {
  await using ground = await openGround();
  const { redis, store, engine, shared } = ground;
  await using tap = await startTapProxy(redis);
  await using api = await startSluice({ ...shared, roles: ['api', 'sweeper'] });
  const redisUrl = `redis://${tap.host}:${tap.port}`;
  const startWorker = () => startSluice({ ...shared, redisUrl, roles: ['worker'] });
  const input = makeInput(LINES);
  let worker = await startWorker();
  try {
    const file = await upload(api.url, input.text);
    const clean = await cleanOutput(api.url, engine, input);
    await engine.setConfig({ latency_ms: 50 });
    const isMove = callsScript('move');
    const takeovers: number[] = [];
    const before = await engine.counts();
    let id = '';
    for (const state of STATES) {
      const fired = tap.arm({
        request: (chunk) => isMove(chunk) && chunk.includes(`\r\n${state}\r\n$1\r\n`),
        // It was made; its version and wake are numbers.
        reply: (chunk) => chunk.includes('*2\r\n:'),
        arrives: false,
        act: () => process.kill(worker.pid, 'SIGKILL'),
      });
      if (id === '') {
        const where = { url: api.url, redis: store, workers: [worker.pid] };
        id = await submitInPieces(where, file, { maxConcurrency: 64, pieceLines: PIECE });
      }
      await fired;
      const killedAt = performance.now();
      await worker.exited;
      if (!LONG) await endLocks(store, worker.pid);
      worker = await startWorker();
      takeovers.push(performance.now() - killedAt);
    }
    const batch = await untilFinal(api.url, id, 120_000);
    const askedTwice = (await engine.counts()).requests - before.requests - LINES;
    await expectUnharmed(
      { url: api.url, batch, input, dataDir: shared.dataDir, redis: store, clean },
      { name: 'between transition and enqueue', kills: STATES.length, askedTwice, takeovers },
    );
    expect(askedTwice).toBe(0);
  } finally {
    await worker.stop();
  }
});
