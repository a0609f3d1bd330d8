import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startMetadataService } from '../simulators/metadata-service/server.ts';
import { parseLines } from '../support/batch.ts';
import {
  CREATE_JOB,
  CREATE_MODEL,
  CREATE_TEMPLATE,
  INPUT,
  openShell,
  READ_RESULTS,
  UPLOAD,
  watch,
} from '../support/guide.ts';
import { H100, untilNoMachine } from '../support/leases.ts';
import { startLeasingSite } from '../support/leasing-site.ts';
import { requireProgram } from '../support/require-program.ts';
import { requireNothingLeft } from '../support/server.ts';
import { until } from '../support/until.ts';

beforeAll(() => {
  for (const program of ['jq', 'curl'] as const) requireProgram(program);
});
afterAll(requireNothingLeft);

test('a leased machine is handed to the metadata service, and given back when its batch is over', async () => {
  await using service = await startMetadataService();
  await using site = await startLeasingSite({ env: { METADATA_SERVICE_URL: service.url } });
  const { cloud, folder } = site;
  const shell = openShell(folder.path, site.url);
  await writeFile(join(folder.path, 'batch_input.jsonl'), INPUT);
  await shell.run(CREATE_MODEL);
  await shell.run(CREATE_TEMPLATE.replace('"type": "H100"', `"type": "${H100.runpod}"`));
  await shell.run(UPLOAD);
  await shell.run(CREATE_JOB);
  await until(() => service.batches.size > 0, { timeoutMs: 60_000, what: 'a batch' });
  const [batch] = service.batches.values();
  const [machine] = await cloud.control.inventory();
  expect(batch?.body).toMatchObject({
    metadata: { 'sluice.job_id': shell.variables['JOB_ID'] },
    aibrix: {
      job_id: shell.variables['JOB_ID'],
      model: 'Qwen/Qwen2.5-7B-Instruct',
      runtime: {
        target: 'RunPod',
        options: {
          host: expect.any(String),
          ssh_port: expect.any(Number),
          ssh_user: 'root',
          http_base_url: `https://${machine?.id}-8000.proxy.runpod.net`,
          model: 'Qwen/Qwen2.5-7B-Instruct',
          vllm_args: ['--trust-remote-code'],
        },
      },
      resource_allocation: { resource_details: [{ gpu_type: H100.runpod, replica: 1 }] },
      model_template: { name: 'qwen2-5-7b-cloud', version: 'v1.0.0' },
    },
  });
  // The engine is the service's to start: from here no line and no command is sent to the machine.
  expect(await cloud.control.asked()).toEqual([]);
  expect(machine).toBeDefined();
  service.run(batch?.id ?? '');
  const done = await until(
    async () => {
      const now = await watch(shell);
      return now.status === 'completed' ? now : undefined;
    },
    { timeoutMs: 60_000, everyMs: 100, what: 'completed' },
  );
  expect(done.provision?.raw_json).toContain(machine?.id);
  const told = [
    'The metadata service is asked to run the batch.',
    `The metadata service runs it as batch ${batch?.id}.`,
    'The remote batch is completed; copying its results.',
  ].map((message) => expect.objectContaining({ message }));
  expect(done.events).toEqual(expect.arrayContaining(told));
  await shell.run(READ_RESULTS);
  const output = await readFile(join(folder.path, 'batch_output.jsonl'), 'utf8');
  expect(parseLines(output)).toMatchObject([
    { custom_id: 'request-1', response: { status_code: 200 }, error: null },
    { custom_id: 'request-2', response: { status_code: 200 }, error: null },
  ]);
  await untilNoMachine(cloud);
  expect((await cloud.control.ledger()).totals).toMatchObject({ created: 1, created_twice: 0 });
}, 120_000);
