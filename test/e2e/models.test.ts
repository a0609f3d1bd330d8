import { Redis } from 'ioredis';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  createBatch,
  download,
  expectExact,
  makeInput,
  openaiClient,
  parseLines,
  readJob,
  requestLine,
  untilFinal,
  upload,
} from '../support/batch.ts';
import type { Input } from '../support/batch.ts';
import { recordKey } from '../../src/store/keys.ts';
import { startRedis } from '../support/redis.ts';
import type { TestRedis } from '../support/redis.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import type { Sluice, TestFolder } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

let folder: TestFolder;
let redis: TestRedis;
let engines: VllmProcess[];
let sluice: Sluice;

/** Two engines, each with a model of its own, that answer at once. */
beforeAll(async () => {
  const flags = (model: string) => ['--profile', 'zero', '--model', model];
  engines = await Promise.all(['a', 'b'].map((model) => startVllmProcess({ flags: flags(model) })));
  await Promise.all(engines.map((engine) => engine.setConfig({ log: 'full' })));
  folder = await makeFolder();
  redis = await startRedis();
  const urls = engines.map(({ url }) => url);
  sluice = await startSluice({ dataDir: folder.path, redisUrl: redis.url, engines: urls });
});

afterAll(async () => {
  await sluice.stop();
  await Promise.all(engines.map((engine) => engine.close()));
  await folder[Symbol.asyncDispose]();
  await redis.stop();
  requireNothingLeft();
});

/** One input of `count` lines a model, which ask for the models in turn. */
function mixed(name: string, count: number, models: readonly string[]): Input {
  const inputs = models.map((model) => makeInput(count, { name: `${name}-${model}`, model }));
  const rows = inputs.map(({ text }) => text.trimEnd().split('\n'));
  const turns = Array.from({ length: count }, (_, n) => n);
  return {
    text: `${turns.flatMap((n) => rows.map((each) => each[n])).join('\n')}\n`,
    customIds: turns.flatMap((n) => inputs.map(({ customIds }) => customIds[n] ?? '')),
    marks: new Map(inputs.flatMap(({ marks }) => [...marks])),
  };
}

/** How many requests each engine has had so far; one for a model that it lacks is answered with 404. */
async function asked(): Promise<number[]> {
  const entries = await Promise.all(engines.map((engine) => engine.requests()));
  expect(entries.flat().filter(({ status }) => status === 404)).toEqual([]);
  return entries.map((each) => each.length);
}

test('a batch of two models goes to two engines that serve one each', async () => {
  const before = await asked();
  const input = mixed('two', 1_500, ['a', 'b']);
  const { id } = await createBatch(sluice.url, await upload(sluice.url, input.text));
  const batch = await untilFinal(sluice.url, id);
  expect(batch).toMatchObject({ status: 'completed', request_counts: { completed: 3_000 } });
  const { error } = await expectExact(sluice.url, batch, input);
  expect(error).toEqual([]);
  expect((await asked()).map((count, n) => count - (before[n] ?? 0))).toEqual([1_500, 1_500]);
});

test('lenient: a model that only a duplicate names is not waited for', async () => {
  const body = (model: string) =>
    JSON.stringify({ model, messages: [{ role: 'user', content: `for ${model}` }] });
  const rows = [
    ['x', 'a'],
    ['x', 'typo'],
    ['y', 'b'],
  ] as const;
  const text = rows.map(([id, model]) => requestLine(id, body(model))).join('\n');
  const wish = {
    input_file_id: await upload(sluice.url, text),
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    aibrix: { validation: 'lenient' },
  } as const;
  const batch = await openaiClient(sluice.url).batches.create(wish);
  const done = await untilFinal(sluice.url, batch.id);
  expect(done).toMatchObject({
    status: 'completed',
    request_counts: { total: 3, completed: 2, failed: 1 },
  });
  const error = await download(sluice.url, done.error_file_id);
  expect(parseLines(error)).toMatchObject([
    { custom_id: 'x', error: { code: 'duplicate_custom_id' } },
  ]);
});

/**
 * Half a minute is waited for a model that no engine serves. Lets a job wait for three seconds of it, which it must
 * outlast, and then makes its records say that the half minute is over.
 */
async function outwait(batchId: string): Promise<void> {
  const job = batchId.replace('batch_', 'job_');
  const read = async () => (await readJob(sluice.url, batchId)).error_message;
  await until(async () => (await read()) !== '', { what: 'the reason', timeoutMs: 30_000 });
  await sleep(3_000);
  const { status } = await openaiClient(sluice.url).batches.retrieve(batchId);
  expect(status).toMatch(/^(?:validating|in_progress)$/);
  const client = new Redis(redis.url);
  try {
    const answer = await fetch(`${sluice.url}/api/v1/provisions?job_id=${job}`);
    const { provisions } = (await answer.json()) as { provisions: { id: string }[] };
    for (const { id } of provisions) {
      const at = await client.hget(recordKey(id), 'reason_at');
      if (at !== null) await client.hset(recordKey(id), 'reason_at', Number(at) - 30_000);
    }
  } finally {
    client.disconnect();
  }
}

describe.concurrent('a model that no engine serves', () => {
  test('ends a strict batch after half a minute, with the answers of the others', async () => {
    const input = mixed('three', 50, ['a', 'c', 'b']);
    const { id } = await createBatch(sluice.url, await upload(sluice.url, input.text));
    await outwait(id);
    const batch = await untilFinal(sluice.url, id, 55_000);
    expect(batch).toMatchObject({
      status: 'failed',
      request_counts: { total: 150, completed: 100, failed: 50 },
    });
    const message = "No engine serves 'c', which the input asks for; they serve 'a', 'b'.";
    expect(batch.errors?.data).toMatchObject([{ code: 'engine_unfit', message }]);
    const { error } = await expectExact(sluice.url, batch, input);
    expect(new Set(error.map((line) => line.error?.code))).toEqual(new Set(['batch_failed']));
    expect(error[0]?.error?.message).toContain(message);
    expect(await readJob(sluice.url, id)).toMatchObject({
      status: 'submit_failed',
      error_message: message,
    });
    await asked();
  }, 60_000);

  test('fails its own lines of a lenient batch, and no others', async () => {
    // More lines for it than may wait in hand, so that some are not even read when it is given up.
    const input = mixed('lenient', 1_200, ['c', 'a', 'b']);
    const wish = {
      input_file_id: await upload(sluice.url, input.text),
      endpoint: '/v1/chat/completions',
      completion_window: '24h',
      aibrix: { validation: 'lenient', client: { max_concurrency: 32 } },
    } as const;
    const { id } = await openaiClient(sluice.url).batches.create(wish);
    await outwait(id);
    const batch = await untilFinal(sluice.url, id, 55_000);
    expect(batch).toMatchObject({
      status: 'completed',
      errors: null,
      request_counts: { total: 3_600, completed: 2_400, failed: 1_200 },
    });
    const { error } = await expectExact(sluice.url, batch, input);
    const message = "No engine serves 'c', which this request asks for; they serve 'a', 'b'.";
    expect(new Set(error.map((line) => JSON.stringify(line.error)))).toEqual(
      new Set([JSON.stringify({ code: 'model_not_found', message })]),
    );
    expect(error.every((line) => line.custom_id.startsWith('lenient-c-'))).toBe(true);
    const { events, error_message: said } = await readJob(sluice.url, id);
    expect(said).toBe('');
    expect(events.map((event) => event.message).join()).toContain("Requests for 'c' fail");
  }, 60_000);

  test('and no other: every line is in the error file, and a retry asks them when it is there', async () => {
    const wrong = await startVllmProcess({ flags: ['--profile', 'zero', '--model', 'wrong'] });
    const input = makeInput(30, { name: 'alone', model: 'd' });
    const wish = {
      input_file_id: await upload(sluice.url, input.text),
      endpoint: '/v1/chat/completions',
      completion_window: '24h',
      aibrix: { runtime: { target: 'External', options: { base_url: wrong.url } } },
    } as const;
    const { id } = await openaiClient(sluice.url).batches.create(wish);
    await outwait(id);
    const batch = await untilFinal(sluice.url, id, 55_000);
    await wrong.close();
    expect(batch).toMatchObject({
      status: 'failed',
      errors: { data: [{ code: 'engine_unfit', message: expect.stringContaining("'d'") }] },
      output_file_id: null,
      request_counts: { total: 30, completed: 0, failed: 30 },
    });
    const { error } = await expectExact(sluice.url, batch, input);
    const why = "The engine serves 'wrong', but the input asks for 'd'";
    for (const line of error)
      expect(line.error?.message).toMatch(new RegExp(`executed: .*\\. ${why}$`));
    expect(await readJob(sluice.url, id)).toMatchObject({
      status: 'submit_failed',
      error_code: 'engine_unfit',
      errors: [{ code: 'engine_unfit' }],
      error_dataset: batch.error_file_id,
    });

    const flags = ['--profile', 'zero', '--model', 'd'];
    await using right = await startVllmProcess({ flags, port: wrong.port });
    const path = `/api/v1/jobs/${id.replace('batch_', 'job_')}/retry`;
    const answer = await fetch(`${sluice.url}${path}`, { method: 'POST' });
    expect(answer.status).toBe(200);
    const { batch_id: again } = (await answer.json()) as { batch_id: string }; // asserted by what follows
    const retried = await untilFinal(sluice.url, again);
    expect(retried).toMatchObject({ status: 'completed', request_counts: { completed: 30 } });
    await expectExact(sluice.url, retried, input);
    expect((await right.counts()).requests).toBe(30);
  }, 90_000);
});
