import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, expect, test } from 'vitest';
import {
  expectExact,
  makeInput,
  openaiClient,
  readJob,
  submit,
  untilAnswered,
  untilBatch,
  untilFinal,
} from '../support/batch.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

const LINES = 4_000;

async function act(url: string, batchId: string, action: string, body: object = {}): Promise<void> {
  const answer = await fetch(`${url}/api/v1/jobs/${batchId.replace('batch_', 'job_')}/${action}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'x-user-id': 'ann' },
    body: JSON.stringify(body),
  });
  expect([action, answer.status]).toEqual([action, 200]);
}

async function explanation(
  url: string,
  batchId: string,
): Promise<{ code: string; explanation: string }> {
  const path = `/api/v1/jobs/${batchId.replace('batch_', 'job_')}/explain`;
  return (await (await fetch(`${url}${path}`)).json()) as { code: string; explanation: string };
}

/** Resolves when the engine has no request and no shard is held; returns how many it answered. */
async function untilQuiet(url: string, id: string, engine: VllmProcess): Promise<number> {
  await until(async () => (await engine.counts()).in_flight === 0, { what: 'an idle engine' });
  await until(async () => !(await explanation(url, id)).explanation.includes('in flight'), {
    what: 'all shards given back',
  });
  return (await engine.counts()).by_outcome['answered'] ?? 0;
}

test('a paused job answers what is in flight, sends nothing more, and goes on when resumed', async () => {
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: 50 });
  await using folder = await makeFolder();
  await using sluice = await startSluice({ dataDir: folder.path, engines: [engine.url] });
  const input = makeInput(LINES);
  const id = await submit(sluice.url, input, { maxConcurrency: 20 });
  await untilAnswered(sluice.url, id, 100);

  const { by_outcome: before } = await engine.counts();
  await act(sluice.url, id, 'pause');
  const answered = await untilQuiet(sluice.url, id, engine);
  // Shards in hand have a thousand lines each: they are given back, not finished.
  expect(answered - (before['answered'] ?? 0), 'answers after the pause').toBeLessThan(200);
  const uncut = { answered, aborted: 0, in_flight: 0 };
  expect((await engine.counts()).by_outcome, 'nothing was cut').toMatchObject(uncut);
  const paused = await untilBatch(
    sluice.url,
    id,
    ({ request_counts: counts }) => counts?.completed === answered,
    { what: 'every answer committed' },
  );
  expect(paused.status).toBe('in_progress');
  expect(await explanation(sluice.url, id)).toMatchObject({
    code: 'paused',
    explanation: expect.stringContaining('by ann'),
  });

  // Longer than the sweeper takes to come by: it must not wake what is paused.
  await sleep(2_500);
  expect((await engine.counts()).by_outcome).toMatchObject(uncut);

  await act(sluice.url, id, 'resume');
  const batch = await untilFinal(sluice.url, id);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
  expect((await engine.counts()).by_outcome, 'no line was asked twice').toMatchObject({
    answered: LINES,
    aborted: 0,
  });
  const messages = (await readJob(sluice.url, id)).events.map(({ message }) => message);
  expect(messages).toContain('Paused by ann.');
  expect(messages).toContain('Resumed.');
});

test('a job that is paused before its engine is there starts nothing until it is resumed', async () => {
  const first = await startVllmProcess({ flags: ['--profile', 'zero'] });
  const { url } = first;
  await first.kill('SIGKILL');
  await using folder = await makeFolder();
  await using sluice = await startSluice({ dataDir: folder.path, engines: [url] });
  const input = makeInput(50);
  const id = await submit(sluice.url, input);
  await until(async () => (await explanation(sluice.url, id)).code === 'engine_away', {
    what: 'the wait for an engine',
  });
  await act(sluice.url, id, 'pause');
  await using engine = await startVllmProcess({
    flags: ['--profile', 'zero'],
    port: Number(new URL(url).port),
  });
  // An engine that is waited for is looked at every second.
  await sleep(2_500);
  expect((await readJob(sluice.url, id)).status).toBe('submitting');
  expect((await engine.counts()).by_outcome['answered']).toBe(0);
  await act(sluice.url, id, 'resume');
  const batch = await untilFinal(sluice.url, id);
  await expectExact(sluice.url, batch, input);
});

test('a paused job is cancelled at once, with what was answered', async () => {
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: 50 });
  await using folder = await makeFolder();
  await using sluice = await startSluice({ dataDir: folder.path, engines: [engine.url] });
  const input = makeInput(LINES);
  const id = await submit(sluice.url, input, { maxConcurrency: 20 });
  await untilAnswered(sluice.url, id, 100);
  await act(sluice.url, id, 'pause');
  const answered = await untilQuiet(sluice.url, id, engine);
  await openaiClient(sluice.url).batches.cancel(id);
  const batch = await untilFinal(sluice.url, id);
  expect(batch).toMatchObject({ status: 'cancelled', request_counts: { completed: answered } });
  const { error } = await expectExact(sluice.url, batch, input);
  expect(new Set(error.map((line) => line.error?.code))).toEqual(new Set(['batch_cancelled']));
});

async function provisionsOf(
  url: string,
  batchId: string,
): Promise<{ id: string; status: string }[]> {
  const path = `/api/v1/provisions?job_id=${batchId.replace('batch_', 'job_')}`;
  const answer = (await (await fetch(`${url}${path}`)).json()) as {
    provisions: { id: string; status: string }[];
  };
  return answer.provisions;
}

test('a job whose engine was released in its pause gets another one when it is resumed, before any sweep', async () => {
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: 20 });
  await using folder = await makeFolder();
  // Without a sweeper: what it would mend later must not be what makes the job go on.
  await using sluice = await startSluice({
    dataDir: folder.path,
    engines: [engine.url],
    roles: ['api', 'worker'],
  });
  const input = makeInput(LINES);
  const id = await submit(sluice.url, input, { maxConcurrency: 20 });
  await untilAnswered(sluice.url, id, 100);
  await act(sluice.url, id, 'pause');
  await untilQuiet(sluice.url, id, engine);
  const [live] = await provisionsOf(sluice.url, id);
  const released = await fetch(`${sluice.url}/api/v1/provisions/${live?.id}/release`, {
    method: 'POST',
    body: JSON.stringify({ job: 'rehome' }),
  });
  expect(released.status).toBe(200);
  await until(
    async () => (await provisionsOf(sluice.url, id)).every(({ status }) => status === 'released'),
    { what: 'the release' },
  );
  expect((await readJob(sluice.url, id)).status).toBe('resource_preparing');
  expect((await engine.counts()).in_flight).toBe(0);

  await engine.setConfig({ latency_ms: 0 });
  const before = (await engine.counts()).requests;
  const at = performance.now();
  await act(sluice.url, id, 'resume');
  await until(async () => (await engine.counts()).requests > before, { what: 'a request' });
  expect(performance.now() - at, 'milliseconds until a line is sent').toBeLessThan(2_000);
  const batch = await untilFinal(sluice.url, id);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
  expect(await provisionsOf(sluice.url, id)).toHaveLength(2);
});
