import { once } from 'node:events';
import { request } from 'node:http';
import { Redis } from 'ioredis';
import { afterAll, expect, test } from 'vitest';
import { createStore } from '../../src/store/store.ts';
import { makeInput, submit, untilAnswered } from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

const GRACE_MS = 3_000;

/** An upload whose client stays silent after its first bytes; resolves when the server reads it. */
async function openUpload(url: string): Promise<Disposable> {
  const upload = request(`${url}/v1/files`, {
    method: 'POST',
    headers: {
      'content-type': 'multipart/form-data; boundary=cut',
      'content-length': '1000000',
      expect: '100-continue',
    },
  });
  upload.on('error', () => undefined); // cut by the server, as it should
  upload.flushHeaders();
  await once(upload, 'continue');
  const part = 'content-disposition: form-data; name="file"; filename="in.jsonl"';
  upload.write(`--cut\r\n${part}\r\n\r\n{"custom_id":`);
  return { [Symbol.dispose]: () => upload.destroy() };
}

test('while an upload has its grace, no new line is sent and shards are given back', async () => {
  await using redis = await startRedis();
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: 100, log: 'full' });
  await using folder = await makeFolder();
  await using sluice = await startSluice({
    dataDir: folder.path,
    engines: [engine.url],
    redisUrl: redis.url,
    env: { SHUTDOWN_GRACE: `${GRACE_MS / 1_000}s` },
  });
  const id = await submit(sluice.url, makeInput(6_000), { maxConcurrency: 50 });
  await untilAnswered(sluice.url, id, 1);
  using upload = await openUpload(sluice.url);
  const asked = (await engine.counts()).requests;

  const begun = Date.now();
  const end = await sluice.stop();
  expect(upload).toBeDefined();
  expect(end).toMatchObject({ code: 0 });
  expect(end.ms).toBeLessThan(GRACE_MS + 10_000);

  const requests = await engine.requests();
  expect(requests.length).toBeGreaterThanOrEqual(asked);
  // What was on its way when the signal came may still arrive.
  const late = requests.filter(({ at }) => at > begun + GRACE_MS / 2);
  expect(late.length, 'requests in the second half of the grace').toBe(0);
  expect((await engine.counts()).repeated).toBe(0);

  const client = new Redis(redis.url);
  const store = createStore({ redis: client, namespace: 'sluice' });
  const jobId = id.replace('batch_', 'job_');
  expect((await store.jobs.get(jobId))?.state).toBe('in_progress');
  expect(await store.shards.held(jobId)).toBe(0);
  client.disconnect();
});
