import * as v from 'valibot';
import type { Manifest } from '../../domain/manifest.ts';
import { EXAMPLE_IDS } from './examples.ts';
import type { Docs, Operation, Tag } from './operation.ts';

const whole = v.pipe(v.number(), v.integer());
const time = v.pipe(v.nullable(whole), v.description('Unix seconds.'));
const counts = { completed: whole, failed: whole };

const fileSchema = v.object({
  file_id: v.string(),
  filename: v.string(),
  bytes: whole,
  sha256: v.pipe(v.string(), v.description('Hex.')),
  lines: v.pipe(whole, v.description('Requests or answers: blank lines of an input are none.')),
});

export const manifestSchema = v.object({
  object: v.literal('batch.manifest'),
  schema_version: v.literal(1),
  tool: v.object({ name: v.literal('sluice'), version: v.string() }),
  job_id: v.string(),
  batch_id: v.string(),
  status: v.string(),
  endpoint: v.string(),
  created_at: whole,
  started_at: time,
  finished_at: time,
  input: fileSchema,
  output: v.nullable(fileSchema),
  error: v.nullable(fileSchema),
  request_counts: v.object({ total: whole, ...counts }),
  status_codes: v.pipe(
    v.array(v.object({ status_code: v.nullable(whole), ...counts })),
    v.description('Null: no engine answered.'),
  ),
  models: v.array(v.object({ model: v.nullable(v.string()), ...counts })),
  engines: v.pipe(
    v.array(
      v.object({
        engine: v.nullable(v.string()),
        provider: v.nullable(v.string()),
        provision_ids: v.array(v.string()),
        ...counts,
      }),
    ),
    v.description(
      '`engine-1` is the first that the job had; with the provisions that it was, one after the other. Null: no engine answered, or it is not on record which.',
    ),
  ),
  usage: v.object({
    input_tokens: whole,
    cached_tokens: whole,
    output_tokens: whole,
    reasoning_tokens: whole,
    total_tokens: whole,
  }),
});

const example: Manifest = {
  object: 'batch.manifest',
  schema_version: 1,
  tool: { name: 'sluice', version: '0.1.0' },
  job_id: EXAMPLE_IDS.job,
  batch_id: EXAMPLE_IDS.batch,
  status: 'completed',
  endpoint: '/v1/chat/completions',
  created_at: 1_768_469_400,
  started_at: 1_768_469_402,
  finished_at: 1_768_469_410,
  input: {
    file_id: EXAMPLE_IDS.file,
    filename: 'questions.jsonl',
    bytes: 96,
    sha256: 'd2a84f4b8b650937ec8f73cd8be2c74add5a911ba64df27458ed8229da804a26',
    lines: 1,
  },
  output: {
    file_id: `${EXAMPLE_IDS.file}-output`,
    filename: `${EXAMPLE_IDS.batch}_output.jsonl`,
    bytes: 412,
    sha256: '8d969eef6ecad3c29a3a629280e686cf0c3f5d5a86aff3ca12020c923adc6c92',
    lines: 1,
  },
  error: null,
  request_counts: { total: 1, completed: 1, failed: 0 },
  status_codes: [{ status_code: 200, completed: 1, failed: 0 }],
  models: [{ model: 'llama-3', completed: 1, failed: 0 }],
  engines: [
    {
      engine: 'engine-1',
      provider: 'static',
      provision_ids: ['prov_example_0_0'],
      completed: 1,
      failed: 0,
    },
  ],
  usage: {
    input_tokens: 12,
    cached_tokens: 0,
    output_tokens: 30,
    reasoning_tokens: 0,
    total_tokens: 42,
  },
};

function manifest(tag: Tag): Operation {
  return {
    tag,
    summary: 'Read the manifest of what a job wrote',
    description:
      'Digests and counts of input, output and error file, stored beside the files when they are and never changed. ' +
      '`sluice verify` checks the files by it.',
    answer: { description: 'The manifest.', schema: manifestSchema, example },
  };
}

export const manifestDocs: Docs = {
  '/v1/batches/:id/manifest': { get: manifest('Batches') },
  '/api/v1/jobs/:id/manifest': { get: manifest('Jobs') },
};
