import { afterAll, expect, test } from 'vitest';
import { FAULT_KINDS } from '../simulators/vllm/faults.ts';
import type { Fault } from '../simulators/vllm/faults.ts';
import { makeInput, readJob, say, submit, untilFinal } from '../support/batch.ts';
import { cleanOutput, expectUnharmed, LONG } from '../support/chaos.ts';
import { openRedis, startRedis } from '../support/redis.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

const LINES = LONG ? 10_000 : 1_500;
const CONCURRENCY = 32;
/** So slow that it is not over before the last fault. */
const LATENCY_MS = LONG ? 100 : 200;
const HITS = LONG ? 20 : 5;

/** After these the engine goes on. */
const PASSING: Partial<Fault>[] = [
  { kind: 'status', status: 500 },
  { kind: 'status', status: 503 },
  { kind: 'status', status: 429, retry_after: 0.2 },
  { kind: 'reset' },
  { kind: 'reset', at: 'body' },
  { kind: 'hang_headers' },
  { kind: 'hang_body' },
  { kind: 'truncate' },
  { kind: 'content_type' },
  { kind: 'proxy_cut', delay_ms: 30 },
];
/** After these it has to be started again. */
const FATAL: Partial<Fault>[] = [
  { kind: 'oom', count: 1 },
  { kind: 'oom', count: 1, delay_ms: 500 },
  { kind: 'exit', count: 1 },
  { kind: 'drain_silently' },
];

async function startEngine(port = 0): Promise<VllmProcess> {
  const engine = await startVllmProcess({ flags: ['--profile', 'zero'], port });
  await engine.setConfig({ latency_ms: LATENCY_MS });
  return engine;
}

/** Resolves when the fault has hit often enough, and takes it away. */
async function suffer(engine: VllmProcess, fault: Partial<Fault>): Promise<void> {
  await engine.setFaults([{ ...fault, count: HITS } as Fault]); // the simulator fills in the rest
  const what = `${HITS} times ${JSON.stringify(fault)}`;
  const hits = async () => (await engine.faults())[0]?.hits ?? 0;
  await until(async () => (await hits()) >= HITS, { timeoutMs: 60_000, what });
  await engine.setFaults([]);
}

test('an engine shows every fault there is, one after the other', async () => {
  const kinds = new Set([...PASSING, ...FATAL].map(({ kind }) => kind));
  expect(kinds).toEqual(new Set(FAULT_KINDS));
  await using redis = await startRedis();
  await using store = openRedis(redis.url);
  await using folder = await makeFolder();
  let engine = await startEngine();
  try {
    await using sluice = await startSluice({
      dataDir: folder.path,
      redisUrl: redis.url,
      engines: [engine.url],
      env: { CONNECT_TIMEOUT: '1s', REQUEST_TIMEOUT: '1s', BYTE_TIMEOUT: '500ms' },
    });
    const input = makeInput(LINES);
    const id = await submit(sluice.url, input, {
      maxConcurrency: CONCURRENCY,
      // An answer that was streamed is put together anew, and its bytes are not those of one that came whole.
      client: { upstream_stream: 'never' },
    });
    let requests = 0;
    for (const fault of PASSING) await suffer(engine, fault);
    for (const fault of FATAL) {
      const { requests: asked } = await engine.counts();
      await until(async () => (await engine.counts()).requests > asked + CONCURRENCY, {
        timeoutMs: 60_000,
        what: `more requests before ${String(fault.kind)}`,
      });
      requests += (await engine.counts()).requests;
      await engine.setFaults([fault as Fault]); // the simulator fills in the rest
      if (fault.kind !== 'drain_silently') await engine.exited;
      const isSeen = async () => (await readJob(sluice.url, id)).status === 'submitting';
      await until(isSeen, { timeoutMs: 60_000, what: `notice of ${String(fault.kind)}` });
      await engine.close();
      engine = await startEngine(engine.port);
    }
    await engine.setConfig({ latency_ms: 0 });
    const batch = await untilFinal(sluice.url, id, 120_000);
    requests += (await engine.counts()).requests;
    say(`asked ${requests} times for ${LINES} lines`);
    const clean = await cleanOutput(sluice.url, engine, input);
    await expectUnharmed(
      { url: sluice.url, batch, input, dataDir: folder.path, redis: store.client, clean },
      { name: 'engine faults', kills: 0, askedTwice: requests - LINES },
    );
  } finally {
    await engine.close();
  }
});
