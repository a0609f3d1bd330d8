import { afterAll, expect, test } from 'vitest';
import { expectExact, makeInput, untilFinal, upload } from '../support/batch.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

/** Milliseconds between the attempts of the one line of a job, whose first ones fail. */
async function gapsOf(policy: object): Promise<number[]> {
  await using engine = await startVllmProcess({
    flags: ['--profile', 'zero', '--set', 'log=full'],
  });
  await engine.setFaults([{ kind: 'status', status: 500, count: 4 }]);
  await using folder = await makeFolder();
  await using sluice = await startSluice({ dataDir: folder.path, engines: [engine.url] });
  const input = makeInput(1);
  const answer = await fetch(`${sluice.url}/api/v1/jobs`, {
    method: 'POST',
    body: JSON.stringify({
      input_dataset: await upload(sluice.url, input.text),
      endpoint: '/v1/chat/completions',
      client: { retry_policy: policy },
    }),
  });
  const job = (await answer.json()) as { batch_id: string };
  const batch = await untilFinal(sluice.url, job.batch_id);
  await expectExact(sluice.url, batch, input);
  const log = await engine.requests();
  const times = log.map(({ at }) => at).toSorted((a, b) => a - b);
  return times.slice(1).map((at, i) => at - (times[i] ?? 0));
}

test('client.retry_policy.max_delay_seconds bounds what lies between two attempts', async () => {
  // Ten seconds and more between attempts, were there no bound; the jitter takes half of it at most.
  const gaps = await gapsOf({ base_delay_seconds: 10, max_delay_seconds: 0.4 });
  expect(gaps).toHaveLength(4);
  for (const gap of gaps) {
    expect(gap).toBeGreaterThanOrEqual(195);
    expect(gap).toBeLessThan(4_500);
  }
});
