import { afterAll, beforeAll, expect, test } from 'vitest';
import { PAUSED_LOOK_MS } from '../../processors/pause.ts';
import {
  download,
  makeInput,
  openaiClient,
  parseLines,
  readJob,
  requestLine,
  untilBatch,
  untilFinal,
  upload,
} from '../support/batch.ts';
import type { ResultLine } from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import type { Sluice, TestFolder } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

const MAX_LINE_BYTES = 20_000;
const LINES = { MAX_LINE_BYTES: `${MAX_LINE_BYTES}` };

let folder: TestFolder;
let engine: VllmProcess;
let sluice: Sluice;

beforeAll(async () => {
  engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  folder = await makeFolder();
  const env = { ...LINES, MAX_BATCH_LINES: '5000' };
  sluice = await startSluice({ dataDir: folder.path, engines: [engine.url], env });
});

afterAll(async () => {
  await sluice.stop();
  await engine.close();
  await folder[Symbol.asyncDispose]();
  requireNothingLeft();
});

const COMMON = { endpoint: '/v1/chat/completions', completion_window: '24h' } as const;

async function createLenient(inputId: string, more: object = {}): Promise<string> {
  const aibrix = { validation: 'lenient', ...more };
  const wish = { ...COMMON, input_file_id: inputId, aibrix };
  return (await openaiClient(sluice.url).batches.create(wish)).id;
}

/** 2,400 good lines, a bad one behind every eighth, and what the bad ones are to be answered with. */
function mixed(name: string) {
  const good = makeInput(2_400, { name });
  const body = (text: string) => JSON.stringify({ model: 'sim-model', messages: [], text });
  const kinds: ((n: number) => [string, string | null, string])[] = [
    () => ['{"custom_id": ', null, 'invalid_json_line'],
    (n) => [requestLine(`${name}-${n}`, body('again')), `${name}-${n}`, 'duplicate_custom_id'],
    (n) => [requestLine(`bad-${n}`, '{"model":"m"}'), `bad-${n}`, 'missing_required_parameter'],
    () => [requestLine('long', body('x'.repeat(MAX_LINE_BYTES))), null, 'line_too_long'],
  ];
  const expected: { id: string | null; code: string }[] = [];
  const rows = good.text.trimEnd().split('\n');
  const text = rows.flatMap((row, n) => {
    const kind = n % 8 === 0 ? kinds[(n / 8) % kinds.length] : undefined;
    if (kind === undefined) return [row];
    const [bad, id, code] = kind(n);
    expected.push({ id, code });
    return [row, bad];
  });
  return { good, text: text.join('\n'), expected, total: rows.length + expected.length };
}

function idsAndCodes(lines: readonly ResultLine[]) {
  return lines.map(({ custom_id: id, error }) => ({ id, code: error?.code }));
}

test('lenient, as an OpenAI batch: bad lines are in the error file in input order, the rest runs', async () => {
  const { good, text, expected, total } = mixed('openai');
  const id = await createLenient(await upload(sluice.url, text));
  const batch = await untilFinal(sluice.url, id);
  expect(batch).toMatchObject({ status: 'completed', errors: null });
  const failed = expected.length;
  expect(batch.request_counts).toEqual({ total, completed: total - failed, failed });
  const output = parseLines(await download(sluice.url, batch.output_file_id));
  expect(output.map((line) => line.custom_id)).toEqual(good.customIds);
  const error = parseLines(await download(sluice.url, batch.error_file_id));
  expect(idsAndCodes(error)).toEqual(expected);
  expect(error.every(({ response }) => response === null)).toBe(true);
  expect(new Set([...output, ...error].map((line) => line.id)).size).toBe(total);
  const { events } = await readJob(sluice.url, id);
  const planned = events.map(({ message }) => message).join('\n');
  expect(planned).toContain(`${total} requests`);
  expect(planned).toContain(`${failed} of them are bad`);
});

test('lenient, as a Console job: the same, and a strict job over the same input fails', async () => {
  const { text, expected, total } = mixed('console');
  const input = await upload(sluice.url, text);
  async function create(more: object): Promise<string> {
    const body = JSON.stringify({ ...COMMON, inputDataset: input, ...more });
    const headers = { 'content-type': 'application/json' };
    const answer = await fetch(`${sluice.url}/api/v1/jobs`, { method: 'POST', headers, body });
    const { id } = (await answer.json()) as { id: string }; // asserted by what follows
    return id.replace('job_', 'batch_');
  }
  const batch = await untilFinal(sluice.url, await create({ validation: 'lenient' }));
  const failed = expected.length;
  expect(batch.request_counts).toEqual({ total, completed: total - failed, failed });
  const error = parseLines(await download(sluice.url, batch.error_file_id));
  expect(idsAndCodes(error)).toEqual(expected);
  for (const more of [{ validation: 'strict' }, {}]) {
    const strict = await untilFinal(sluice.url, await create(more));
    expect(strict.status).toBe('failed');
    expect(strict.errors?.data).toHaveLength(101);
    expect(strict.errors?.data?.at(-1)?.message).toContain(`${failed} problems`);
  }
});

test('lenient, nothing but bad lines: completed without an output file, and no engine is asked for', async () => {
  const rows = ['nope', requestLine('a', '{}'), ''].join('\n');
  const id = await createLenient(await upload(sluice.url, rows));
  const batch = await untilFinal(sluice.url, id);
  expect(batch).toMatchObject({ status: 'completed', errors: null, in_progress_at: null });
  expect(batch.request_counts).toEqual({ total: 2, completed: 0, failed: 2 });
  expect(batch.output_file_id ?? null).toBeNull();
  const error = parseLines(await download(sluice.url, batch.error_file_id));
  expect(idsAndCodes(error)).toEqual([
    { id: null, code: 'invalid_json_line' },
    { id: 'a', code: 'missing_required_parameter' },
  ]);
  expect((await readJob(sluice.url, id)).provision).toBeNull();
});

test('lenient, nothing but bad lines and paused: it ends when it is resumed', async () => {
  await using redis = await startRedis();
  await using own = await makeFolder();
  const options = { dataDir: own.path, redisUrl: redis.url, engines: [engine.url] };
  async function act(url: string, id: string, action: string): Promise<void> {
    const path = `/api/v1/jobs/${id.replace('batch_', 'job_')}/${action}`;
    expect((await fetch(`${url}${path}`, { method: 'POST' })).status).toBe(200);
  }
  let id: string;
  {
    // Nobody plans here, so that the pause comes first.
    await using first = await startSluice({ ...options, env: { ROLES: 'api' } });
    const input_file_id = await upload(first.url, 'nope\nneither');
    const wish = { ...COMMON, input_file_id, aibrix: { validation: 'lenient' } };
    ({ id } = await openaiClient(first.url).batches.create(wish));
    await act(first.url, id, 'pause');
    await first.stop();
  }
  await using second = await startSluice(options);
  const isRead = async () => (await readJob(second.url, id)).error_message.includes('resumed');
  await until(isRead, { timeoutMs: 60_000, what: 'the planning' });
  const readAt = performance.now();
  expect((await readJob(second.url, id)).status).toBe('queued');
  await act(second.url, id, 'resume');
  const batch = await untilFinal(second.url, id);
  // At once, not when it is looked at again.
  expect(performance.now() - readAt).toBeLessThan(PAUSED_LOOK_MS);
  expect(batch).toMatchObject({ status: 'completed', request_counts: { total: 2, failed: 2 } });
  await second.stop();
});

test('lenient, and the input as a whole is wrong: the batch fails with that alone', async () => {
  const many = Array.from({ length: 5_001 }, () => 'nope').join('\n');
  for (const [text, code] of [
    ['\n', 'empty_file'],
    [many, 'too_many_tasks'],
  ] as const) {
    const batch = await untilFinal(sluice.url, await createLenient(await upload(sluice.url, text)));
    expect(batch.status).toBe('failed');
    expect(batch.errors?.data).toMatchObject([{ code }]);
  }
});

test('lenient, a pinned model: lines that name another one are bad', async () => {
  const { text } = makeInput(3);
  const input = `${text}${requestLine('other', '{"model":"other","messages":[]}')}\n`;
  const id = await createLenient(await upload(sluice.url, input), { model: 'sim-model' });
  const batch = await untilFinal(sluice.url, id);
  expect(batch.request_counts).toEqual({ total: 4, completed: 3, failed: 1 });
  const error = parseLines(await download(sluice.url, batch.error_file_id));
  expect(idsAndCodes(error)).toEqual([{ id: 'other', code: 'model_mismatch' }]);
});

test('lenient, the server killed in mid-run: every line is answered once all the same', async () => {
  await using own = await makeFolder();
  const before = await engine.counts();
  await engine.setConfig({ latency_ms: 20 });
  const { good, text, expected, total } = mixed('killed');
  const options = { dataDir: own.path, engines: [engine.url], env: LINES };
  let id = '';
  {
    await using first = await startSluice(options);
    const input = await upload(first.url, text);
    const aibrix = { validation: 'lenient', client: { max_concurrency: 16 } };
    const wish = { ...COMMON, input_file_id: input, aibrix };
    ({ id } = await openaiClient(first.url).batches.create(wish));
    const isHalf = async () => (await engine.counts()).requests > before.requests + 600;
    await until(isHalf, { timeoutMs: 60_000 });
    await first.kill();
  }
  await engine.setConfig({ latency_ms: 0 });
  await using second = await startSluice(options);
  const batch = await untilFinal(second.url, id, 80_000);
  const failed = expected.length;
  expect(batch.request_counts).toEqual({ total, completed: total - failed, failed });
  const output = parseLines(await download(second.url, batch.output_file_id));
  expect(output.map((line) => line.custom_id)).toEqual(good.customIds);
  const error = parseLines(await download(second.url, batch.error_file_id));
  expect(idsAndCodes(error)).toEqual(expected);
  await second.stop();
});

test('lenient, cancelled: what is unanswered, bad or not, is batch_cancelled', async () => {
  const { text, expected, total } = mixed('cancelled');
  const before = await engine.counts();
  await engine.setConfig({ latency_ms: 400 });
  const input = await upload(sluice.url, text);
  const id = await createLenient(input, { client: { max_concurrency: 4 } });
  await untilBatch(sluice.url, id, ({ status }) => status === 'in_progress');
  const client = openaiClient(sluice.url);
  await client.batches.cancel(id);
  const batch = await untilFinal(sluice.url, id);
  await engine.setConfig({ latency_ms: 0 });
  expect(batch.status).toBe('cancelled');
  const counts = batch.request_counts;
  expect((counts?.completed ?? 0) + (counts?.failed ?? 0)).toBe(total);
  const output = parseLines(await download(sluice.url, batch.output_file_id));
  const error = parseLines(await download(sluice.url, batch.error_file_id));
  expect(new Set([...output, ...error].map((line) => line.id)).size).toBe(total);
  const nameless = error.filter((line) => line.custom_id === null);
  expect(nameless).toHaveLength(expected.filter(({ id: name }) => name === null).length);
  expect(error.filter((line) => line.error?.code === 'batch_cancelled').length).toBeGreaterThan(
    expected.length,
  );
  expect(nameless.some((line) => line.error?.code === 'batch_cancelled')).toBe(true);
  expect((await engine.counts()).requests).toBeLessThan(before.requests + total);
});
