import { readFile, rename, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import {
  expectExact,
  makeInput,
  openaiClient,
  readJob,
  submit,
  untilFinal,
} from '../support/batch.ts';
import { requireNothingLeft } from '../support/server.ts';
import type { LogLine } from '../support/server.ts';
import { openSite } from '../support/site.ts';
import type { Site } from '../support/site.ts';
import { until } from '../support/until.ts';

const PATIENT = { timeoutMs: 60_000 };

let site: Site;
beforeAll(async () => {
  site = await openSite({ env: { LOG_LEVEL: 'debug' } });
});
beforeEach(async () => {
  await site.engine.setConfig({ latency_ms: 50 });
});
afterAll(async () => {
  await site[Symbol.asyncDispose]();
  requireNothingLeft();
});

/** The names of a batch's input file and of its folder. */
async function inputOf(batchId: string): Promise<{ name: string; files: string }> {
  const batch = await openaiClient(site.url).batches.retrieve(batchId);
  return { name: batch.input_file_id, files: join(site.folder.path, 'storage', 'files') };
}

test('an input that vanishes in mid-run is waited for without haste, and the job says so', async () => {
  const { engine, sluice, folder } = site;
  const { repeated } = await engine.counts();
  function attempts(): LogLine[] {
    return sluice.logs().filter(({ msg, queue }) => msg === 'attempt' && queue === 'dispatch');
  }
  const input = makeInput(8_000);
  const id = await submit(sluice.url, input, { maxConcurrency: 200 });
  // A shard that is being read keeps its file; the job has more shards than are read at once.
  await until(async () => (await engine.counts()).requests > 0, {
    what: 'the first lines',
    ...PATIENT,
  });
  const { name, files } = await inputOf(id);
  await rename(join(files, name), join(folder.path, name));

  await until(() => attempts().some(({ err }) => err !== undefined), {
    what: 'a failed delivery',
    ...PATIENT,
  });
  const before = attempts().length;
  await sleep(2_000);
  const meanwhile = attempts().slice(before);
  // One shard shows it; the rest is put off: as many as wait in the queue, now and after 1 second.
  expect(attempts().filter(({ err }) => err !== undefined).length, 'failed takes').toBeLessThan(4);
  expect(meanwhile.length, 'deliveries in 2 s').toBeLessThan(16);
  const job = await readJob(sluice.url, id);
  expect(job).toMatchObject({ status: 'in_progress' });
  expect(job.error_message).toMatch(/input file/i);
  const { requests } = await engine.counts();

  await rename(join(folder.path, name), join(files, name));
  await engine.setConfig({ latency_ms: 0 });
  const again = async () => (await engine.counts()).requests > requests;
  await until(again, { what: 'lines sent again', ...PATIENT });
  const batch = await untilFinal(sluice.url, id, 60_000);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
  expect((await engine.counts()).repeated).toBe(repeated);
  expect((await readJob(sluice.url, id)).error_message).toBe('');
});

test('an input that is cut short is waited for without haste, too', async () => {
  const { engine, sluice } = site;
  const { requests: before } = await engine.counts();
  const input = makeInput(5_000, { name: 'short' });
  const id = await submit(sluice.url, input, { maxConcurrency: 200 });
  await until(async () => (await engine.counts()).requests > before, {
    what: 'the first lines',
    ...PATIENT,
  });
  const { name, files } = await inputOf(id);
  const whole = await readFile(join(files, name));
  // In the middle of a line: half of one must not be answered.
  await truncate(join(files, name), whole.lastIndexOf('\n', whole.length / 2) + 40);

  const says = async () => (await readJob(sluice.url, id)).error_message.includes('shorter');
  await until(says, { what: 'the reason', ...PATIENT });
  const deliveries = () => sluice.logs().filter(({ queue }) => queue === 'dispatch').length;
  const earlier = deliveries();
  await sleep(2_000);
  expect(deliveries() - earlier, 'deliveries in 2 s').toBeLessThan(16);

  await writeFile(join(files, name), whole);
  await engine.setConfig({ latency_ms: 0 });
  const batch = await untilFinal(sluice.url, id, 60_000);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
});
