import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  CANCEL,
  CREATE_JOB,
  CREATE_MODEL,
  CREATE_TEMPLATE,
  INPUT,
  openShell,
  READ_RESULTS,
  STATE_FLOW,
  UPLOAD,
  watch,
} from '../support/guide.ts';
import { requireProgram } from '../support/require-program.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

beforeAll(() => {
  for (const program of ['jq', 'curl'] as const) requireProgram(program);
});
afterAll(requireNothingLeft);

test('the commands of the guide, run as they stand, end with the fields that it reads', async () => {
  await using engine = await startVllmProcess({
    flags: ['--profile', 'zero', '--model', 'Qwen/Qwen2.5-7B-Instruct'],
  });
  await using folder = await makeFolder();
  await using sluice = await startSluice({
    dataDir: join(folder.path, 'data'),
    engines: [engine.url],
    env: { PROVISIONER: 'static' },
  });
  const shell = openShell(folder.path, sluice.url);
  await writeFile(join(folder.path, 'batch_input.jsonl'), INPUT);

  await shell.run(CREATE_MODEL);
  expect(shell.variables['MODEL_ID']).toBe('model-qwen2.5-7b-instruct');
  const template = JSON.parse(await shell.run(CREATE_TEMPLATE));
  expect(template).toMatchObject({
    name: 'qwen2-5-7b-cloud',
    version: 'v1.0.0',
    status: 'active',
    model_id: 'model-qwen2.5-7b-instruct',
    spec: { accelerator: { type: 'H100', vram_gb: 80 }, engine: { ready_timeout_seconds: 1800 } },
  });
  await shell.run(UPLOAD);
  expect(shell.variables['FILE_ID']).toMatch(/^file-/);
  await shell.run(CREATE_JOB);
  expect(shell.variables['JOB_ID']).toMatch(/^job_/);

  const done = await until(
    async () => {
      const now = await watch(shell);
      if (/failed|expired|cancelled/.test(now.status)) throw new Error(JSON.stringify(now));
      return now.status === 'completed' && now.provision?.status === 'released' ? now : undefined;
    },
    { timeoutMs: 30_000, what: 'the end of the job' },
  );
  expect(done).toMatchObject({
    id: shell.variables['JOB_ID'],
    batch_id: expect.stringMatching(/^batch_/),
    provision_id: expect.stringMatching(/^prov_/),
    provision: { provider: 'static', provision_id: done.provision_id },
  });
  expect(done.events.map(({ id }) => id)).toEqual(STATE_FLOW);

  const printed = await shell.run(READ_RESULTS);
  expect(shell.variables['OUTPUT_FILE_ID']).toMatch(/^file-/);
  expect(printed).toContain('"custom_id": "request-1"');
  const lines = (await readFile(join(folder.path, 'batch_output.jsonl'), 'utf8')).trimEnd();
  const answers = lines.split('\n').map((line) => JSON.parse(line));
  expect(answers).toMatchObject([
    { custom_id: 'request-1', response: { status_code: 200 }, error: null },
    { custom_id: 'request-2', response: { status_code: 200 }, error: null },
  ]);

  // A second one, whose requests hang until it is cancelled.
  await engine.setFaults([{ kind: 'hang_headers' }]);
  const first = shell.variables['JOB_ID'];
  await shell.run(CREATE_JOB);
  expect(shell.variables['JOB_ID']).not.toBe(first);
  await until(async () => (await watch(shell)).status === 'in_progress');
  const cancelling = JSON.parse(await shell.run(CANCEL));
  expect(cancelling).toMatchObject({
    id: shell.variables['JOB_ID'],
    // What was in flight may be collected before the answer is on its way.
    status: expect.stringMatching(/^(?:cancelling|finalizing|cancelled)$/),
  });
  const cancelled = await until(
    async () => {
      const now = await watch(shell);
      return now.status === 'cancelled' && now.provision?.status === 'released' ? now : undefined;
    },
    { timeoutMs: 20_000, what: 'the end of the cancelled job' },
  );
  expect(cancelled.events.at(-1)?.id).toBe('cancelled');
}, 90_000);
