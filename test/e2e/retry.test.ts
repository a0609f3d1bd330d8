import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import {
  download,
  expectExact,
  expectExactLines,
  makeInput,
  openaiClient,
  parseLines,
  readJob,
  submit,
  untilFinal,
  upload,
} from '../support/batch.ts';
import type { Input } from '../support/batch.ts';
import { requireNothingLeft, startSluice } from '../support/server.ts';
import { openSite } from '../support/site.ts';
import type { Site } from '../support/site.ts';
import { until } from '../support/until.ts';

let site: Site;
beforeAll(async () => {
  site = await openSite();
});
beforeEach(async () => {
  await site.engine.setFaults([]);
  await site.engine.setConfig({ latency_ms: 0 });
});
afterAll(async () => {
  await site[Symbol.asyncDispose]();
  requireNothingLeft();
});

interface Job {
  id: string;
  batch_id: string;
  input_dataset: string;
  retry_of: string;
}

async function retry(url: string, batchId: string): Promise<Job> {
  const path = `/api/v1/jobs/${batchId.replace('batch_', 'job_')}/retry`;
  const answer = await fetch(`${url}${path}`, { method: 'POST' });
  expect(answer.status).toBe(200);
  return (await answer.json()) as Job;
}

/** The part of an input whose lines are at these places. */
function partOf(input: Input, places: readonly number[]): Input {
  const lines = input.text.split('\n');
  const customIds = places.map((place) => input.customIds[place] ?? '');
  return {
    text: places.map((place) => `${lines[place]}\n`).join(''),
    customIds,
    marks: new Map(customIds.map((id) => [id, input.marks.get(id) ?? ''])),
  };
}

test('retry asks the failed lines again, byte by byte and in input order', async () => {
  const { engine, sluice } = site;
  const input = makeInput(1_500);
  await engine.setFaults([{ kind: 'status', status: 400, match: '7 of line' }]);
  const id = await submit(sluice.url, input);
  const batch = await untilFinal(sluice.url, id);
  const { error } = await expectExact(sluice.url, batch, input);
  expect(error).toHaveLength(150);

  await engine.setFaults([]);
  const job = await retry(sluice.url, id);
  expect(job.retry_of).toBe(id.replace('batch_', 'job_'));
  const again = await untilFinal(sluice.url, job.batch_id);
  const failed = partOf(
    input,
    input.customIds.flatMap((_id, place) => (place % 10 === 7 ? [place] : [])),
  );
  expect(await download(sluice.url, job.input_dataset), 'the new input').toBe(failed.text);
  expect(again).toMatchObject({ status: 'completed', error_file_id: null });
  await expectExact(sluice.url, again, failed);
  expect((await openaiClient(sluice.url).files.retrieve(job.input_dataset)).purpose).toBe('batch');
});

test('retry of a cancelled job asks what was not reached, and both together are whole', async () => {
  const { engine, sluice } = site;
  const { by_outcome: earlier } = await engine.counts();
  await engine.setConfig({ latency_ms: 50 });
  const input = makeInput(2_500);
  const id = await submit(sluice.url, input, { maxConcurrency: 20 });
  await until(
    async () =>
      ((await engine.counts()).by_outcome['answered'] ?? 0) - (earlier['answered'] ?? 0) > 200,
    {
      what: 'some answers',
      timeoutMs: 60_000,
    },
  );
  await openaiClient(sluice.url).batches.cancel(id);
  const first = await untilFinal(sluice.url, id);
  await engine.setConfig({ latency_ms: 0 });
  const second = await untilFinal(sluice.url, (await retry(sluice.url, id)).batch_id);
  expect(second.status).toBe('completed');
  const outputs = await Promise.all(
    [first, second].map((batch) => download(sluice.url, batch.output_file_id)),
  );
  const [before, after] = outputs.map(parseLines);
  expect(before?.length).toBe(first.request_counts?.completed);
  const place = new Map(input.customIds.map((customId, index) => [customId, index]));
  const whole = [...(before ?? []), ...(after ?? [])].toSorted(
    (a, b) => (place.get(a.custom_id) ?? 0) - (place.get(b.custom_id) ?? 0),
  );
  expectExactLines({ output: whole, error: [] }, input);
});

test('client.retry_policy says how often a line is asked again', async () => {
  const { engine, sluice } = site;
  await engine.setFaults([{ kind: 'status', status: 500, match: 'of line' }]);
  for (const [retries, asked] of [
    [0, 3],
    [2, 9],
  ] as const) {
    const before = (await engine.faults())[0]?.hits ?? 0;
    const client = { retry_policy: { max_retries: retries, base_delay_seconds: 0.01 } };
    const batch = {
      input_file_id: await upload(sluice.url, makeInput(3).text),
      endpoint: '/v1/chat/completions' as const,
      completion_window: '24h' as const,
      aibrix: { client },
    };
    const { id } = await openaiClient(sluice.url).batches.create(batch);
    const final = await untilFinal(sluice.url, id);
    expect(final).toMatchObject({
      status: 'completed',
      output_file_id: null,
      request_counts: { total: 3, completed: 0, failed: 3 },
    });
    expect(((await engine.faults())[0]?.hits ?? 0) - before).toBe(asked);
  }
});

test('retry leaves out lines that are bad or too long, says so, and ends where none is left', async () => {
  const { engine, sluice, folder, redis } = site;
  const input = makeInput(20);
  const lines = input.text.split('\n').slice(0, 20);
  // A second line of an id that was answered: alone it would be asked.
  const [copied = '', failing = '', long = ''] = [lines[0], lines[7], lines[17]];
  const longer = long.replace('Question', 'x'.repeat(5_000));
  const text = [...lines.slice(0, 17), longer, copied, 'nope', copied].join('\n');
  await engine.setFaults([
    { kind: 'status', status: 400, match: 'Question 7 of line' },
    { kind: 'status', status: 400, match: '17 of line' },
  ]);
  const answer = await fetch(`${sluice.url}/api/v1/jobs`, {
    method: 'POST',
    body: JSON.stringify({
      input_dataset: await upload(sluice.url, text),
      endpoint: '/v1/chat/completions',
      validation: 'lenient',
    }),
  });
  const { batch_id: id } = (await answer.json()) as Job;
  const batch = await untilFinal(sluice.url, id);
  expect(batch.request_counts).toEqual({ total: 21, completed: 16, failed: 5 });

  const job = await retry(sluice.url, id);
  await untilFinal(sluice.url, job.batch_id);
  expect(await download(sluice.url, job.input_dataset)).toBe(`${failing}\n${longer}\n`);
  const { events } = await readJob(sluice.url, job.batch_id);
  expect(JSON.stringify(events)).toContain('Of the 5 failed requests');
  expect(JSON.stringify(events)).toContain('3 were left out');

  await engine.setFaults([{ kind: 'status', status: 400, match: '17 of line' }]);
  const { batch_id: first } = await retry(sluice.url, id);
  const again = await untilFinal(sluice.url, first);
  expect(again.request_counts).toEqual({ total: 2, completed: 1, failed: 1 });
  await sluice.stop();
  // The last test: the server makes room for one of other settings.
  await using strict = await startSluice({
    dataDir: folder.path,
    redisUrl: redis.url,
    engines: [engine.url],
    env: { MAX_LINE_BYTES: '2KiB' },
  });
  const last = await retry(strict.url, first);
  expect(await untilFinal(strict.url, last.batch_id)).toMatchObject({
    status: 'failed',
    errors: { data: [{ code: 'nothing_to_retry' }] },
  });
});
