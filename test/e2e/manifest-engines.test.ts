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
  const counted = new Map(manifest.engines.map(({ engine, completed }) => [engine, completed]));
  expect(new Set(counted.keys())).toEqual(new Set(urls));
  for (const url of urls) {
    const metrics = await (await fetch(`${url}/metrics`)).text();
    const [, answered] =
      /^vllm:request_success_total\{[^}]*finished_reason="stop"[^}]*\} (\S+)$/m.exec(metrics) ?? [];
    expect([url, counted.get(url)]).toEqual([url, Number(answered)]);
    expect(counted.get(url)).toBeGreaterThan(0);
  }
  expect([...counted.values()].reduce((sum, count) => sum + count, 0)).toBe(lines);
  await sluice.stop();
  for (const engine of engines) await engine.close();
});
