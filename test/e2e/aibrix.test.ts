import { afterAll, expect, test } from 'vitest';
import {
  expectExact,
  makeInput,
  openaiClient,
  readJob,
  untilFinal,
  upload,
} from '../support/batch.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

async function post(url: string, path: string, body: object): Promise<Record<string, unknown>> {
  const answer = await fetch(`${url}${path}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
  const text = await answer.text();
  expect({ path, text, status: answer.status }).toMatchObject({ status: 200 });
  return JSON.parse(text) as Record<string, unknown>;
}

const TEMPLATE = {
  engine: { type: 'vllm', version: 'latest', image: 'vllm', invocation: 'http_server' },
  model_source: { type: 'huggingface', uri: 'sim/model' },
  accelerator: { type: 'H100', count: 1 },
  parallelism: { tp: 1 },
  supported_endpoints: ['/v1/chat/completions'],
  deployment_mode: 'dedicated',
};

test('the aibrix extension: job_id, model, model_template, and the expiry of the output', async () => {
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await using folder = await makeFolder();
  await using sluice = await startSluice({ dataDir: folder.path, engines: [engine.url] });
  const { url } = sluice;
  const model = await post(url, '/api/v1/models', { name: 'Sim', serving_name: 'sim-model' });
  await post(url, `/api/v1/models/${String(model['id'])}/deployment-templates`, {
    name: 'sim-template',
    version: 'v1.0.0',
    status: 'active',
    spec: TEMPLATE,
  });

  const input = makeInput(20);
  const fine = {
    input_file_id: await upload(url, input.text),
    endpoint: '/v1/chat/completions' as const,
    completion_window: '24h' as const,
    output_expires_after: { anchor: 'created_at' as const, seconds: 3_600 },
  };
  const template = { model_template: { name: 'sim-template' } };
  const extension = { aibrix: { job_id: 'job_mine1', model: 'sim-model', ...template } };
  const { id } = await openaiClient(url).batches.create({ ...fine, ...extension });
  expect(id).toBe('batch_mine1');
  const batch = await untilFinal(url, id);
  expect(batch).toMatchObject({ status: 'completed', model: 'sim-model' });
  await expectExact(url, batch, input);
  expect(await readJob(url, id)).toMatchObject({
    id: 'job_mine1',
    model_template_name: 'sim-template',
    model_template_version: 'v1.0.0',
  });
  const output = await openaiClient(url).files.retrieve(batch.output_file_id ?? '');
  expect(output.expires_at).toBe(output.created_at + 3_600);

  const other = await upload(url, makeInput(3, { model: 'another-model' }).text);
  for (const pin of [{ model: 'sim-model' }, template]) {
    const wrong = { ...fine, input_file_id: other, aibrix: pin };
    const failed = await untilFinal(url, (await openaiClient(url).batches.create(wrong)).id);
    expect(failed.status).toBe('failed');
    expect(failed.errors?.data?.[0]).toMatchObject({ code: 'model_mismatch', line: 1 });
  }
  const embeddings = { ...fine, endpoint: '/v1/embeddings' as const, aibrix: template };
  await expect(openaiClient(url).batches.create(embeddings)).rejects.toMatchObject({
    status: 400,
    code: 'endpoint_not_supported',
  });

  const job = {
    input_dataset: other,
    endpoint: '/v1/chat/completions',
    model_id: model['id'],
    model_template_name: 'sim-template',
    model_template_version: 'v1.0.0',
  };
  const made = await post(url, '/api/v1/jobs', job);
  const ended = await untilFinal(url, String(made['batch_id']));
  expect(ended.errors?.data?.[0]).toMatchObject({ code: 'model_mismatch' });
  expect(await readJob(url, ended.id)).toMatchObject({
    status: 'failed',
    error_code: 'model_mismatch',
  });
});
