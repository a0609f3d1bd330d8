import { afterAll, expect, test } from 'vitest';
import { Redis } from 'ioredis';
import { recordKey, shardKey } from '../../src/store/keys.ts';
import {
  createBatch,
  expectExact,
  makeInput,
  say,
  submit,
  untilAnswered,
  untilBatch,
  untilFinal,
  upload,
} from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { requireNothingLeft, makeFolder, startSluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

function openRedis(url: string): { client: Redis } & AsyncDisposable {
  const client = new Redis(url);
  return {
    client,
    async [Symbol.asyncDispose]() {
      client.disconnect();
    },
  };
}

test('the API dies right after it said yes, before or after the job was queued', async () => {
  await using redis = await startRedis();
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await using folder = await makeFolder();
  const shared = { dataDir: folder.path, redisUrl: redis.url, engines: [engine.url] };
  const input = makeInput(200);
  let id = '';
  {
    await using api = await startSluice({ ...shared, roles: ['api'] });
    const file = await upload(api.url, input.text);
    ({ id } = await createBatch(api.url, file));
    await api.kill();
  }
  // A crash between the record and its delivery: whatever was queued is gone.
  await using store = openRedis(redis.url);
  const keys = await store.client.keys('{sluice:*}:*');
  if (keys.length > 0) await store.client.del(...keys);

  await using server = await startSluice(shared);
  const batch = await untilFinal(server.url, id);
  expect(batch.status).toBe('completed');
  await expectExact(server.url, batch, input);
  expect((await engine.counts()).repeated).toBe(0);
});

test('planning is killed in the middle of a large input: another one cuts alike', async () => {
  await using redis = await startRedis();
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await using folder = await makeFolder();
  const shared = { dataDir: folder.path, redisUrl: redis.url, engines: [engine.url] };
  await using api = await startSluice({ ...shared, roles: ['api', 'sweeper'] });
  const planner = { ...shared, roles: ['worker'], queues: ['planning'] };
  const input = makeInput(12_000, { padding: 3_000 });
  const id = await submit(api.url, input);
  const jobId = id.replace('batch_', 'job_');
  await using store = openRedis(redis.url);
  const { client } = store;
  // Small shards, so that there are many and the planner writes them in more than one go.
  await client.hset(recordKey(jobId), 'cut', JSON.stringify({ lines: 30, bytes: 8 * 2 ** 20 }));
  async function readShards(): Promise<Map<string, Record<string, string>>> {
    const keys = await client.keys(`${shardKey(jobId, 0).slice(0, -1)}*`);
    const found = await Promise.all(keys.map(async (key) => client.hgetall(key)));
    return new Map(keys.map((key, index) => [key, found[index] ?? {}]));
  }

  {
    await using first = await startSluice(planner);
    const firstShard = shardKey(jobId, 0);
    await until(async () => (await client.exists(firstShard)) === 1, {
      everyMs: 1,
      what: 'a first shard',
    });
    await first.kill();
  }
  const state = await client.hget(recordKey(jobId), 'state');
  const written = await readShards();
  expect({ state, lines: written.size * 30 < 12_000 }, 'killed in the middle').toEqual({
    state: 'queued',
    lines: true,
  });

  await using second = await startSluice(planner);
  const killedAt = performance.now();
  await untilBatch(api.url, id, ({ request_counts: counts }) => counts?.total === 12_000, {
    what: 'the plan',
  });
  say(`planned anew ${Math.round(performance.now() - killedAt)} ms after the kill`);
  const planned = await readShards();
  expect(planned.size).toBe(Math.ceil(12_000 / 30));
  for (const [key, fields] of written) expect(planned.get(key)).toEqual(fields);
  await using rest = await startSluice({ ...shared, roles: ['worker'] });
  const batch = await untilFinal(api.url, id, 60_000);
  expect(batch.status).toBe('completed');
  await expectExact(api.url, batch, input);
  await Promise.all([second.stop(), rest.stop()]);
});

test('the whole server is killed right after the last answer', async () => {
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await using folder = await makeFolder();
  const options = { dataDir: folder.path, engines: [engine.url] };
  const input = makeInput(10_000, { padding: 1_000 });
  let id = '';
  {
    await using sluice = await startSluice(options);
    id = await submit(sluice.url, input);
    await untilAnswered(sluice.url, id, 10_000);
    await sluice.kill();
  }
  await using sluice = await startSluice(options);
  const batch = await untilFinal(sluice.url, id);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
  expect((await engine.counts()).repeated).toBe(0);
});
