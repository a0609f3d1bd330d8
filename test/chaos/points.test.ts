import type OpenAI from 'openai';
import { afterAll, beforeAll, expect, test } from 'vitest';
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
import { endLocks, LONG, submitInPieces } from '../support/chaos.ts';
import { requireNothingLeft, makeFolder, startSluice } from '../support/server.ts';
import { openGround } from '../support/site.ts';
import type { Ground } from '../support/site.ts';
import { startTapProxy } from '../support/tap-proxy.ts';

const SHARDS = 300;
const LINES = LONG ? 12_000 : 1_500;

let ground: Ground;
beforeAll(async () => {
  ground = await openGround();
});
afterAll(async () => {
  await ground[Symbol.asyncDispose]();
  requireNothingLeft();
});

test('the API dies right after it said yes, before or after the job was queued', async () => {
  const { store, engine, shared } = ground;
  const input = makeInput(200, { name: 'api' });
  let id = '';
  {
    await using api = await startSluice({ ...shared, roles: ['api'] });
    const file = await upload(api.url, input.text);
    ({ id } = await createBatch(api.url, file));
    await api.kill();
  }
  // A crash between the record and its delivery: whatever was queued is gone.
  const keys = await store.keys('{sluice:*}:*');
  if (keys.length > 0) await store.del(...keys);

  const { repeated } = await engine.counts();
  await using server = await startSluice(shared);
  const batch = await untilFinal(server.url, id, 60_000);
  expect(batch.status).toBe('completed');
  await expectExact(server.url, batch, input);
  expect((await engine.counts()).repeated).toBe(repeated);
});

test('planning is killed in the middle of writing its shards: another one cuts alike', async () => {
  const { redis, store, shared } = ground;
  await using tap = await startTapProxy(redis);
  await using api = await startSluice({ ...shared, roles: ['api', 'sweeper'] });
  const planner = { ...shared, roles: ['worker'], queues: ['planning'] };
  const input = makeInput(LINES, { name: 'planned', padding: LONG ? 3_000 : 0 });
  const file = await upload(api.url, input.text);
  let id = '';
  let pid = 0;
  {
    const redisUrl = `redis://${tap.host}:${tap.port}`;
    await using first = await startSluice({ ...planner, redisUrl });
    ({ pid } = first);
    // They are written in goes of two hundred.
    const late = `${shardKey('', SHARDS - 50).replace(recordKey(''), '')}\r\n`;
    const killed = tap.arm({
      request: (chunk) => chunk.includes(late),
      arrives: false,
      act: () => process.kill(pid, 'SIGKILL'),
    });
    const options = { pieceLines: LINES / SHARDS };
    id = await submitInPieces({ url: api.url, redis: store, workers: [pid] }, file, options);
    await killed;
    await first.exited;
  }
  const jobId = id.replace('batch_', 'job_');
  async function readShards(): Promise<Map<string, Record<string, string>>> {
    const keys = await store.keys(`${shardKey(jobId, 0).slice(0, -1)}*`);
    const found = await Promise.all(keys.map(async (key) => store.hgetall(key)));
    return new Map(keys.map((key, index) => [key, found[index] ?? {}]));
  }
  const state = await store.hget(recordKey(jobId), 'state');
  const written = await readShards();
  expect(state).toBe('queued');
  expect(written.size, 'killed in the middle').toBeGreaterThan(0);
  expect(written.size, 'killed in the middle').toBeLessThan(SHARDS);

  const killedAt = performance.now();
  if (!LONG) await endLocks(store, pid);
  await using second = await startSluice({ ...shared, roles: ['worker'] });
  const isPlanned = ({ request_counts: counts }: OpenAI.Batch) => counts?.total === LINES;
  await untilBatch(api.url, id, isPlanned, { timeoutMs: 60_000, what: 'the plan' });
  say(`planned anew ${Math.round(performance.now() - killedAt)} ms after the kill`);
  const planned = await readShards();
  expect(planned.size).toBe(SHARDS);
  for (const [key, fields] of written) expect(planned.get(key)).toMatchObject(fields);
  const batch = await untilFinal(api.url, id, 60_000);
  expect(batch.status).toBe('completed');
  await expectExact(api.url, batch, input);
  expect((await second.stop()).code).toBe(0);
});

test('the whole server is killed right after the last answer', async () => {
  const { engine } = ground;
  await using folder = await makeFolder();
  const options = { dataDir: folder.path, engines: [engine.url] };
  const count = LONG ? 10_000 : 2_000;
  const input = makeInput(count, { name: 'whole', padding: 1_000 });
  const { repeated } = await engine.counts();
  let id = '';
  {
    await using sluice = await startSluice(options);
    id = await submit(sluice.url, input);
    await untilAnswered(sluice.url, id, count, 60_000);
    await sluice.kill();
  }
  await using sluice = await startSluice(options);
  const batch = await untilFinal(sluice.url, id, 60_000);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
  expect((await engine.counts()).repeated).toBe(repeated);
});
