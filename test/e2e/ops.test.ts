import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { QUEUE_NAMES } from '../../src/domain/job.ts';
import { makeInput, submit, untilFinal } from '../support/batch.ts';
import { requireProgram } from '../support/require-program.ts';
import { startSluice } from '../support/server.ts';
import type { Sluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

let folder = '';
let engine: VllmProcess;
let server: Sluice;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sluice-ops-'));
  engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  server = await startSluice({ dataDir: join(folder, 'data'), engines: [engine.url] });
});

afterAll(async () => {
  await server.stop();
  await engine.close();
  await rm(folder, { recursive: true, force: true });
});

test('/ready says ok for everything that a server of all roles needs', async () => {
  const response = await fetch(`${server.url}/ready`);
  expect(await response.json()).toEqual({
    status: 'ok',
    checks: { redis: 'ok', storage: 'ok', workers: 'ok' },
  });
  expect(response.status).toBe(200);
});

test('/metrics counts what was sent', async () => {
  await untilFinal(server.url, await submit(server.url, makeInput(20)));
  const text = await (await fetch(`${server.url}/metrics`)).text();
  expect(text).toMatch(/^sluice_lines_total\{kind="output"\} 20$/m);
  expect(text).toMatch(/^sluice_jobs_finished_total\{outcome="completed"\} 1$/m);
  expect(text).toMatch(/^sluice_queue_deliveries\{queue="dispatch",state="active"\} 0$/m);
});

test('Bull Board shows the five queues in a browser', async () => {
  const flags = `--headless --no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync
    --virtual-time-budget=5000 --dump-dom`.split(/\s+/);
  const profile = `--user-data-dir=${join(folder, 'chromium')}`;
  const args = [...flags, profile, `${server.url}/admin/queues`];
  const { stdout } = await promisify(execFile)(requireProgram('chromium'), args, {
    timeout: 60_000,
    maxBuffer: 64 * 1024 * 1024,
  });
  for (const queue of QUEUE_NAMES) expect(stdout).toContain(`/admin/queues/queue/${queue}`);
});
