import { readdir, readFile, rename, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, expect, test } from 'vitest';
import { expectExact, makeInput, readJob, submit, untilFinal } from '../support/batch.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import type { LogLine } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

test('an input that vanishes in mid-run is waited for without haste, and the job says so', async () => {
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: 50 });
  await using folder = await makeFolder();
  await using sluice = await startSluice({
    dataDir: folder.path,
    engines: [engine.url],
    env: { LOG_LEVEL: 'debug' },
  });
  function attempts(): LogLine[] {
    return sluice.logs().filter(({ msg, queue }) => msg === 'attempt' && queue === 'dispatch');
  }
  const input = makeInput(10_000);
  const id = await submit(sluice.url, input, { maxConcurrency: 200 });
  // A shard that is being read keeps its file; the job has more shards than are read at once.
  await until(async () => (await engine.counts()).requests > 0, { what: 'the first lines' });
  const files = join(folder.path, 'storage', 'files');
  const [name = ''] = await readdir(files);
  await rename(join(files, name), join(folder.path, name));

  await until(() => attempts().some(({ err }) => err !== undefined), { what: 'a failed delivery' });
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
  // It is looked for 1, 3 and 7 seconds after it was missed; here that is in a second, and in four at worst.
  const again = async () => (await engine.counts()).requests > requests;
  await until(again, { timeoutMs: 4_500, what: 'lines sent again' });
  const batch = await untilFinal(sluice.url, id, 20_000);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
  expect((await engine.counts()).repeated).toBe(0);
  expect((await readJob(sluice.url, id)).error_message).toBe('');
});

test('an input that is cut short is waited for without haste, too', async () => {
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: 50 });
  await using folder = await makeFolder();
  await using sluice = await startSluice({
    dataDir: folder.path,
    engines: [engine.url],
    env: { LOG_LEVEL: 'debug' },
  });
  const input = makeInput(5_000);
  const id = await submit(sluice.url, input, { maxConcurrency: 200 });
  await until(async () => (await engine.counts()).requests > 0, { what: 'the first lines' });
  const files = join(folder.path, 'storage', 'files');
  const [name = ''] = await readdir(files);
  const whole = await readFile(join(files, name));
  // In the middle of a line: half of one must not be answered.
  await truncate(join(files, name), whole.lastIndexOf('\n', whole.length / 2) + 40);

  const says = async () => (await readJob(sluice.url, id)).error_message.includes('shorter');
  await until(says, { what: 'the reason' });
  const deliveries = () => sluice.logs().filter(({ queue }) => queue === 'dispatch').length;
  const before = deliveries();
  await sleep(2_000);
  expect(deliveries() - before, 'deliveries in 2 s').toBeLessThan(16);

  await writeFile(join(files, name), whole);
  const batch = await untilFinal(sluice.url, id, 20_000);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
});
