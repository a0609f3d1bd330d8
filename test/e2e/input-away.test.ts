import { readdir, rename } from 'node:fs/promises';
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
  await sleep(3_000);
  const shards = attempts()
    .slice(before)
    .map(({ id: delivery }) => String(delivery).split('.')[0] ?? '');
  const counts = [...new Set(shards)].map(
    (shard) => shards.filter((each) => each === shard).length,
  );
  // After 0.25, 0.5, 1 and 2 seconds.
  expect(Math.max(...counts), 'deliveries of one shard in 3 s').toBeLessThan(6);
  const job = await readJob(sluice.url, id);
  expect(job).toMatchObject({ status: 'in_progress' });
  expect(job.error_message).toMatch(/input file/i);

  await rename(join(folder.path, name), join(files, name));
  const batch = await untilFinal(sluice.url, id, 40_000);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
  expect((await engine.counts()).repeated).toBe(0);
  expect((await readJob(sluice.url, id)).error_message).toBe('');
});
