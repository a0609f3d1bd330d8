import { Redis } from 'ioredis';
import { afterAll, expect, test } from 'vitest';
import { createStore } from '../../src/store/store.ts';
import { expectExact, makeInput, openaiClient, submit, upload } from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

test('a job at a silent engine hoards no shards and keeps no other job from its own engine', async () => {
  await using redis = await startRedis();
  await using silent = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await silent.setFaults([{ kind: 'hang_headers' }]);
  await using idle = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await using folder = await makeFolder();
  await using sluice = await startSluice({
    dataDir: folder.path,
    engines: [silent.url],
    redisUrl: redis.url,
  });
  const stuck = await submit(sluice.url, makeInput(5_000), { maxConcurrency: 4 });
  await until(async () => (await silent.faults())[0]?.hits === 4, {
    what: 'four silent requests',
    timeoutMs: 60_000,
  });

  const input = makeInput(20, { name: 'other' });
  const own = { runtime: { target: 'External', options: { base_url: idle.url } } };
  const wish = {
    input_file_id: await upload(sluice.url, input.text),
    endpoint: '/v1/chat/completions' as const,
    completion_window: '24h' as const,
    aibrix: own,
  };
  const client = openaiClient(sluice.url);
  const { id } = await client.batches.create(wish);
  const connection = new Redis(redis.url);
  const { shards } = createStore({ redis: connection, namespace: 'sluice' });
  let most = 0;
  try {
    const batch = await until(
      async () => {
        most = Math.max(most, await shards.held(stuck.replace('batch_', 'job_')));
        const found = await client.batches.retrieve(id);
        return found.status === 'completed' ? found : undefined;
      },
      { timeoutMs: 60_000, what: 'the end of the job with an engine of its own' },
    );
    await expectExact(sluice.url, batch, input);
  } finally {
    connection.disconnect();
  }
  expect(most, 'shards held of the job that stands still').toBeLessThanOrEqual(2);
  expect((await silent.counts()).in_flight).toBe(4);
});
