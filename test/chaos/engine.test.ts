import { afterAll, expect, test } from 'vitest';
import {
  expectExact,
  makeInput,
  readJob,
  say,
  submit,
  untilAnswered,
  untilFinal,
} from '../support/batch.ts';
import { requireNothingLeft, makeFolder, startSluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

const LINES = 1_200;

test('the engine is killed in mid-run and comes back on the same port', async () => {
  await using first = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await first.setConfig({ latency_ms: 200 });
  await using folder = await makeFolder();
  await using sluice = await startSluice({ dataDir: folder.path, engines: [first.url] });
  const input = makeInput(LINES);
  const id = await submit(sluice.url, input, { maxConcurrency: 64 });
  await untilAnswered(sluice.url, id, 1, 60_000);
  await first.kill('SIGKILL');
  const lost = await until(
    async () => {
      const job = await readJob(sluice.url, id);
      return job.status === 'submitting' && job.error_message !== '' ? job : undefined;
    },
    { timeoutMs: 60_000, what: 'submitting' },
  );
  expect(lost.error_message).toMatch(/does not answer/);
  const { request_counts: counts } = await untilAnswered(sluice.url, id, 1);

  await using second = await startVllmProcess({ flags: ['--profile', 'zero'], port: first.port });
  const begun = performance.now();
  const batch = await untilFinal(sluice.url, id, 60_000);
  say(`complete ${Math.round(performance.now() - begun)} ms after the engine came back`);
  expect(batch.status).toBe('completed');
  const { error } = await expectExact(sluice.url, batch, input);
  expect(error).toEqual([]);
  const job = await readJob(sluice.url, id);
  const states = job.events.map(({ status }) => status);
  expect(states.filter((state) => state === 'in_progress')).toHaveLength(2);
  // What the first one answered is not asked of the second.
  const asked = await second.counts();
  expect(asked).toMatchObject({ repeated: 0 });
  expect(asked.requests).toBeLessThanOrEqual(LINES - (counts?.completed ?? 0));
});
