import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
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
import { requireNothingLeft } from '../support/server.ts';
import { openSite, submitTo } from '../support/site.ts';
import type { Site } from '../support/site.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

const LINES = 2_500;

let site: Site;
beforeAll(async () => {
  site = await openSite();
});
beforeEach(async () => {
  await site.engine.setConfig({ latency_ms: 100 });
});
afterAll(async () => {
  await site[Symbol.asyncDispose]();
  requireNothingLeft();
});

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
  const timeoutMs = 30_000;
  await until(async () => (await engine.counts()).in_flight === 0, {
    what: 'an idle engine',
    timeoutMs,
  });
  await until(async () => !(await explanation(url, id)).explanation.includes('in flight'), {
    what: 'all shards given back',
    timeoutMs,
  });
  return (await engine.counts()).by_outcome['answered'] ?? 0;
}

test('a paused job answers what is in flight, sends nothing more, and goes on when resumed', async () => {
  const { url, engine } = site;
  const input = makeInput(LINES);
  const id = await submit(url, input, { maxConcurrency: 20 });
  await untilAnswered(url, id, 100);

  const { by_outcome: before } = await engine.counts();
  await act(url, id, 'pause');
  const answered = await untilQuiet(url, id, engine);
  // Shards in hand have a thousand lines each: they are given back, not finished.
  expect(answered - (before['answered'] ?? 0), 'answers after the pause').toBeLessThan(400);
  const uncut = { answered, aborted: 0, in_flight: 0 };
  expect((await engine.counts()).by_outcome, 'nothing was cut').toMatchObject(uncut);
  const paused = await untilBatch(
    url,
    id,
    ({ request_counts: counts }) => counts?.completed === answered,
    { what: 'every answer committed' },
  );
  expect(paused.status).toBe('in_progress');
  expect(await explanation(url, id)).toMatchObject({
    code: 'paused',
    explanation: expect.stringContaining('by ann'),
  });

  // Longer than the sweeper takes to come by: it must not wake what is paused.
  await sleep(2_500);
  expect((await engine.counts()).by_outcome).toMatchObject(uncut);

  await engine.setConfig({ latency_ms: 0 });
  await act(url, id, 'resume');
  const batch = await untilFinal(url, id);
  expect(batch.status).toBe('completed');
  await expectExact(url, batch, input);
  expect((await engine.counts()).by_outcome, 'no line was asked twice').toMatchObject({
    answered: LINES,
    aborted: 0,
  });
  const messages = (await readJob(url, id)).events.map(({ message }) => message);
  expect(messages).toContain('Paused by ann.');
  expect(messages).toContain('Resumed.');
});

test('a job that is paused before its engine is there starts nothing until it is resumed', async () => {
  const { url } = site;
  const first = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await first.kill('SIGKILL');
  const input = makeInput(50, { name: 'early' });
  const id = await submitTo(site, first, input);
  await until(async () => (await explanation(url, id)).code === 'engine_away', {
    what: 'the wait for an engine',
    timeoutMs: 30_000,
  });
  await act(url, id, 'pause');
  await using engine = await startVllmProcess({
    flags: ['--profile', 'zero'],
    port: first.port,
  });
  // An engine that is waited for is looked at every second.
  await sleep(2_500);
  expect((await readJob(url, id)).status).toBe('submitting');
  expect((await engine.counts()).by_outcome['answered']).toBe(0);
  await act(url, id, 'resume');
  const batch = await untilFinal(url, id);
  await expectExact(url, batch, input);
});

test('a paused job is cancelled at once, with what was answered', async () => {
  const { url, engine } = site;
  const { by_outcome: before } = await engine.counts();
  const input = makeInput(LINES, { name: 'cancelled' });
  const id = await submit(url, input, { maxConcurrency: 20 });
  await untilAnswered(url, id, 100);
  await act(url, id, 'pause');
  const answered = (await untilQuiet(url, id, engine)) - (before['answered'] ?? 0);
  await openaiClient(url).batches.cancel(id);
  const batch = await untilFinal(url, id);
  expect(batch).toMatchObject({ status: 'cancelled', request_counts: { completed: answered } });
  const { error } = await expectExact(url, batch, input);
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
  // Without a sweeper: what it would mend later must not be what makes the job go on.
  await using own = await openSite({ roles: ['api', 'worker'] });
  const { url, engine } = own;
  await engine.setConfig({ latency_ms: 20 });
  const input = makeInput(LINES);
  const id = await submit(url, input, { maxConcurrency: 20 });
  await untilAnswered(url, id, 100);
  await act(url, id, 'pause');
  await untilQuiet(url, id, engine);
  const [live] = await provisionsOf(url, id);
  const released = await fetch(`${url}/api/v1/provisions/${live?.id}/release`, {
    method: 'POST',
    body: JSON.stringify({ job: 'rehome' }),
  });
  expect(released.status).toBe(200);
  await until(
    async () => (await provisionsOf(url, id)).every(({ status }) => status === 'released'),
    { what: 'the release', timeoutMs: 30_000 },
  );
  expect((await readJob(url, id)).status).toBe('resource_preparing');
  expect((await engine.counts()).in_flight).toBe(0);

  await engine.setConfig({ latency_ms: 0 });
  const before = (await engine.counts()).requests;
  await act(url, id, 'resume');
  await until(async () => (await engine.counts()).requests > before, { what: 'a request' });
  const batch = await untilFinal(url, id);
  expect(batch.status).toBe('completed');
  await expectExact(url, batch, input);
  expect(await provisionsOf(url, id)).toHaveLength(2);
});
