import { createSchema, listSchema } from '../openai/batches.ts';
import { batchListSchema, batchSchema } from '../schemas/openai.ts';
import { batchView, pageView } from '../views.ts';
import { EXAMPLE_IDS, EXAMPLE_JOB, EXAMPLE_NEW_JOB } from './examples.ts';
import type { Docs } from './operation.ts';

export const batchDocs: Docs = {
  '/v1/batches': {
    post: {
      tag: 'Batches',
      summary: 'Create a batch',
      description:
        'The input is validated as a whole before its first line is sent. ' +
        'In the SDKs the key `aibrix` goes into `extra_body`. ' +
        'Where the server allows it, `input_file_id` may be the URL of an object, such as `s3://bucket/key`: it is read ' +
        'where it is, in the version that it has now, and gets a file id of its own. One that is changed before it was ' +
        'read to its end fails the batch as `input.changed`. `aibrix.output_prefix` has the output, error file and ' +
        'manifest written to a folder of such a bucket; their files are downloaded as any other. ' +
        'Where the server leases machines (`PROVISIONER`), a deployment template says what is started on them: ' +
        '`aibrix.model_template`, else `DEFAULT_BATCH_MODEL_DEPLOYMENT_TEMPLATE`, and `aibrix.resource_allocation` which ' +
        'machines. With `aibrix.runtime` it runs on engines of your own, or on a machine of yours, and nothing is leased.',
      body: {
        schema: createSchema,
        example: {
          input_file_id: EXAMPLE_IDS.file,
          endpoint: '/v1/chat/completions',
          completion_window: '24h',
          metadata: { team: 'search' },
          aibrix: { client: { max_concurrency: 64 } },
        },
      },
      answer: {
        description: 'The new batch, in status `validating`.',
        schema: batchSchema,
        example: batchView(EXAMPLE_NEW_JOB),
      },
    },
    get: {
      tag: 'Batches',
      summary: 'List batches, newest first',
      description: '`after` is the id of the last batch seen.',
      query: listSchema,
      answer: {
        description: 'A page of batches.',
        schema: batchListSchema,
        example: pageView([batchView(EXAMPLE_JOB)], false),
      },
    },
  },
  '/v1/batches/:id': {
    get: {
      tag: 'Batches',
      summary: 'Look at a batch',
      description:
        'A batch that is paused keeps its status, `in_progress` where it was sent already: `paused_at` of ' +
        '`/api/v1/jobs/{id}` says that it is.',
      answer: {
        description: 'The batch.',
        schema: batchSchema,
        example: batchView(EXAMPLE_JOB),
      },
    },
  },
  '/v1/batches/:id/cancel': {
    post: {
      tag: 'Batches',
      summary: 'Cancel a batch',
      description:
        'Lines that were answered are kept in the output file, the rest goes to the error file as `batch_cancelled`. ' +
        'A batch that is over is refused.',
      answer: {
        description: 'The batch, in status `cancelling` or already `cancelled`.',
        schema: batchSchema,
        example: batchView({
          ...EXAMPLE_NEW_JOB,
          state: 'cancelled',
          outcome: 'cancelled',
          enteredAt: {
            ...EXAMPLE_NEW_JOB.enteredAt,
            cancelled: EXAMPLE_NEW_JOB.createdAt + 5_000,
          },
        }),
      },
    },
  },
};
