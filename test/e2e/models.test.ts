import { afterAll, beforeAll, expect, test } from 'vitest';
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
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import type { Sluice, TestFolder } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

let folder: TestFolder;
let engines: VllmProcess[];
let sluice: Sluice;

/** Two engines, each with a model of its own, that answer at once. */
beforeAll(async () => {
  const flags = (model: string) => ['--profile', 'zero', '--model', model];
  engines = await Promise.all(['a', 'b'].map((model) => startVllmProcess({ flags: flags(model) })));
  await Promise.all(engines.map((engine) => engine.setConfig({ log: 'full' })));
  folder = await makeFolder();
  sluice = await startSluice({ dataDir: folder.path, engines: engines.map(({ url }) => url) });
});

afterAll(async () => {
  await sluice.stop();
  await Promise.all(engines.map((engine) => engine.close()));
  await folder[Symbol.asyncDispose]();
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

test('a model that no engine serves ends the batch after half a minute, with the answers of the others', async () => {
  const input = mixed('three', 50, ['a', 'c', 'b']);
  const { id } = await createBatch(sluice.url, await upload(sluice.url, input.text));
  const batch = await untilFinal(sluice.url, id, 55_000);
  expect(batch).toMatchObject({
    status: 'failed',
    request_counts: { total: 150, completed: 100, failed: 50 },
  });
  const message = "No engine serves 'c', which the input asks for; they serve 'a', 'b'.";
  expect(batch.errors?.data).toMatchObject([{ code: 'engine_unfit', message }]);
  expect(await readJob(sluice.url, id)).toMatchObject({
    status: 'submit_failed',
    error_message: message,
  });
  await asked();
}, 60_000);
