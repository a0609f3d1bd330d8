import { afterAll, expect, test } from 'vitest';
import { jobIdOf } from '../../src/domain/job.ts';
import type { Manifest } from '../../src/domain/manifest.ts';
import { makeInput, submit, untilFinal } from '../support/batch.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

test('the manifest counts the answers of each engine, as the engines do', async () => {
  const flags = ['--profile', 'zero', '--set', 'latency_ms=20'];
  const engines = [await startVllmProcess({ flags }), await startVllmProcess({ flags })];
  await using folder = await makeFolder();
  const urls = engines.map(({ url }) => url);
  await using sluice = await startSluice({ dataDir: folder.path, engines: urls });
  const lines = 600;
  const batch = await submit(sluice.url, makeInput(lines), { maxConcurrency: 16 });
  await untilFinal(sluice.url, batch);
  const path = `/api/v1/jobs/${jobIdOf(batch)}/manifest`;
  const manifest = (await (await fetch(`${sluice.url}${path}`)).json()) as Manifest;
  const names = manifest.engines.map(({ engine }) => engine);
  expect(names).toEqual(['engine-1', 'engine-2']);
  // Where they are is nobody's business who may read the manifest.
  expect(JSON.stringify(manifest)).not.toMatch(/https?:|127\.0\.0\.1|localhost/);
  const provisions = manifest.engines.flatMap(({ provision_ids: ids }) => ids);
  expect(new Set(provisions)).toHaveProperty('size', 2);
  const answers: number[] = [];
  for (const url of urls) {
    const metrics = await (await fetch(`${url}/metrics`)).text();
    const [, answered] =
      /^vllm:request_success_total\{[^}]*finished_reason="stop"[^}]*\} (\S+)$/m.exec(metrics) ?? [];
    answers.push(Number(answered));
  }
  const counted = manifest.engines.map(({ completed }) => completed);
  expect(Math.min(...counted)).toBeGreaterThan(0);
  expect(counted.toSorted((a, b) => a - b)).toEqual(answers.toSorted((a, b) => a - b));
  expect(counted.reduce((sum, count) => sum + count, 0)).toBe(lines);
  await sluice.stop();
  for (const engine of engines) await engine.close();
});
