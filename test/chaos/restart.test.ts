import process from 'node:process';
import { afterAll, expect, test } from 'vitest';
import {
  expectExact,
  makeInput,
  say,
  submit,
  untilAnswered,
  untilFinal,
} from '../support/batch.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

const LINES = 2_400;
const IN_FLIGHT = 64;

test('a half-done batch goes on after server, keeper and Redis were killed and started again', async () => {
  await using engine = await startVllmProcess({
    flags: ['--profile', 'zero', '--set', 'latency_ms=100'],
  });
  await using folder = await makeFolder();
  const options = { dataDir: folder.path, engines: [engine.url] };
  const input = makeInput(LINES);
  await using first = await startSluice(options);
  const id = await submit(first.url, input, { maxConcurrency: IN_FLIGHT });
  const { request_counts: counts } = await untilAnswered(first.url, id, 1, 60_000);
  const killed = first.kill();
  for (const { pid } of folder.processes()) if (pid !== first.pid) process.kill(pid, 'SIGKILL');
  await killed;
  await folder.untilUnused(60_000);
  const { requests } = await engine.counts();
  await engine.setConfig({ latency_ms: 5 });

  const begun = performance.now();
  await using second = await startSluice(options);
  const batch = await untilFinal(second.url, id, 120_000);
  expect(batch.status).toBe('completed');
  await expectExact(second.url, batch, input);
  const { distinct_bodies: distinct, repeated } = await engine.counts();
  const seconds = ((performance.now() - begun) / 1_000).toFixed(1);
  say(`${repeated} of ${LINES} lines asked twice, over ${seconds} s after the start`);
  expect(distinct).toBe(LINES);
  const uncommitted = requests - (counts?.completed ?? 0);
  expect(repeated, 'what was committed is not asked again').toBeLessThanOrEqual(uncommitted);
  await second.stop();
});
