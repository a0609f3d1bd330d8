import { afterAll, expect, test } from 'vitest';
import { expectExact, makeInput, submit, untilFinal } from '../support/batch.ts';
import { requireNothingLeft } from '../support/server.ts';
import { openSite } from '../support/site.ts';
import { until } from '../support/until.ts';
import { logged, untilWorking } from '../support/worker-processes.ts';

afterAll(requireNothingLeft);

const BEGUN = 'files of a job are written while it runs';
/** With answers of 10 kB, half as much again as a process commits before it begins with the files. */
const LINES = 5_000;
const ANSWER_TOKENS = 1_100;
const LATENCY_MS = 40;
const CONCURRENCY = 96;

test('whoever writes the files of a running job is killed, and another one ends the job', async () => {
  const flags = ['--profile', 'zero', '--set', `answer_tokens=${ANSWER_TOKENS}`];
  await using site = await openSite({ flags, env: { WORKER_PROCESSES: '1' } });
  const { engine, sluice } = site;
  await engine.setConfig({ latency_ms: LATENCY_MS });
  await untilWorking(sluice, 1);
  const input = makeInput(LINES);
  const id = await submit(sluice.url, input, { maxConcurrency: CONCURRENCY });
  const begun = await until(() => logged(sluice, BEGUN)[0], { timeoutMs: 60_000, what: BEGUN });
  process.kill(Number(begun['pid']), 'SIGKILL');
  const batch = await untilFinal(sluice.url, id, 120_000);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
});
