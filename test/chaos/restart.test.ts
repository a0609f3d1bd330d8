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

const LINES = 6_000;
const IN_FLIGHT = 64;

test('a half-done batch goes on after server, keeper and Redis were killed and started again', async () => {
  await using engine = await startVllmProcess({
    flags: ['--profile', 'zero', '--set', 'latency_ms=50'],
  });
  await using folder = await makeFolder();
  const options = { dataDir: folder.path, engines: [engine.url] };
  const input = makeInput(LINES);
  await using first = await startSluice(options);
  const id = await submit(first.url, input, { maxConcurrency: IN_FLIGHT });
  await untilAnswered(first.url, id, LINES / 2);
  const killed = first.kill();
  for (const { pid } of folder.processes()) if (pid !== first.pid) process.kill(pid, 'SIGKILL');
  await killed;
  await folder.untilUnused();

  const begun = performance.now();
  await using second = await startSluice(options);
  const batch = await untilFinal(second.url, id, 60_000);
  expect(batch.status).toBe('completed');
  await expectExact(second.url, batch, input);
  const { distinct_bodies: distinct, repeated } = await engine.counts();
  const seconds = ((performance.now() - begun) / 1_000).toFixed(1);
  say(`${repeated} of ${LINES} lines asked twice, over ${seconds} s after the start`);
  expect(distinct).toBe(LINES);
  // In flight, and answered since the last segment was closed, which is two seconds at most.
  expect(repeated).toBeLessThanOrEqual(IN_FLIGHT + (2_500 / 50) * IN_FLIGHT);
  expect(repeated, 'what was committed is not asked again').toBeLessThan(LINES / 2);
  await second.stop();
});
