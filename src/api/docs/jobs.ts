import * as v from 'valibot';
import { extendSchema } from '../console/job-actions.ts';
import { copySchema } from '../console/job-copies.ts';
import { createSchema, listSchema } from '../console/jobs.ts';
import { jobView } from '../console/job-view.ts';
import { explanationSchema, jobListSchema, jobSchema } from '../schemas/console.ts';
import { EXAMPLE_IDS, EXAMPLE_JOB, EXAMPLE_NEW_JOB } from './examples.ts';
import type { Body, Docs, PathDocs } from './operation.ts';

const over = jobView(EXAMPLE_JOB, [], []);

/** Something that is done with a job and answers the job. */
function action(summary: string, description: string, body?: Body): PathDocs {
  const answer = { description: 'The job as it then is.', schema: jobSchema, example: over };
  return { post: { tag: 'Jobs', summary, description, ...(body ? { body } : {}), answer } };
}

const copy: Body = { schema: copySchema, example: { name: 'second try' }, optional: true };

export const jobDocs: Docs = {
  '/api/v1/jobs': {
    post: {
      tag: 'Jobs',
      summary: 'Create a job',
      description:
        'Keys may be written in snake_case or camelCase; answers are in snake_case. Where the server leases machines ' +
        '(`PROVISIONER`), a deployment template says what is started on them: `model_template_name`, else ' +
        '`DEFAULT_BATCH_MODEL_DEPLOYMENT_TEMPLATE`, and `resource_request` which machines. A template that no engine could ' +
        'be started with is refused before anything is leased.',
      body: {
        schema: createSchema,
        example: {
          input_dataset: EXAMPLE_IDS.file,
          endpoint: '/v1/chat/completions',
          completion_window: '24h',
          name: 'nightly questions',
          metadata: { team: 'search' },
        },
      },
      answer: {
        description: 'The new job.',
        schema: jobSchema,
        example: jobView(EXAMPLE_NEW_JOB, [], []),
      },
    },
    get: {
      tag: 'Jobs',
      summary: 'List jobs, newest first',
      description: '`after` is the id of the last job seen. A limit over the most is the most.',
      query: listSchema,
      answer: {
        description: 'A page of jobs.',
        schema: jobListSchema,
        example: { jobs: [over], first_id: over.id, last_id: over.id, has_more: false },
      },
    },
  },
  '/api/v1/jobs/:id': {
    get: {
      tag: 'Jobs',
      summary: 'Look at a job',
      answer: { description: 'The job.', schema: jobSchema, example: over },
    },
    delete: {
      tag: 'Jobs',
      summary: 'Erase a job that is over',
      description:
        'For good: its record and history, the answers it gathered, its output and error file with their manifest, what ' +
        'was to be told of it to webhooks, and answers kept under an `Idempotency-Key`. Its input goes as well, unless ' +
        'another job has it as its input. Files in a bucket of your own stay. Old versions in a bucket that keeps ' +
        'versions go, too, where it lets the server delete them. A job that is not over is refused with `job_not_over`: cancel it first; one whose failed lines another job is just about to read with `job_in_use`. ' +
        'Nobody sees the job, or what it wrote, from the answer on; bytes go in the background within seconds, those of its input some minutes later. ' +
        'For a month no job gets its id, and deleting it again answers the same.',
      answer: {
        description: 'It is gone.',
        schema: v.object({ id: v.string(), object: v.literal('job'), deleted: v.boolean() }),
        example: { id: EXAMPLE_IDS.job, object: 'job', deleted: true },
      },
    },
  },
  '/api/v1/jobs/:id/explain': {
    get: {
      tag: 'Jobs',
      summary: 'Why a job stands where it stands',
      answer: {
        description: 'A word for programs and a sentence for people.',
        schema: explanationSchema,
        example: {
          id: EXAMPLE_IDS.job,
          status: 'queued',
          code: 'no_worker',
          explanation:
            "No live worker process serves the queue 'planning': start one with ROLES=worker.",
        },
      },
    },
  },
  '/api/v1/jobs/:id/cancel': action(
    'Cancel a job',
    'Answers that are there are kept. A job that is over is answered as it is.',
  ),
  '/api/v1/jobs/:id/pause': action(
    'Pause a job',
    'What is in flight is still answered, and nothing new begins. Its deadline runs on. Its `status` stays what it is, ' +
      '`in_progress` here as under `/v1/batches`: that it is paused, since when and by whom, say `paused_at` and ' +
      '`paused_by`, and `explain`.',
  ),
  '/api/v1/jobs/:id/resume': action('Let a paused job go on', 'One that is not paused stays so.'),
  '/api/v1/jobs/:id/extend': action(
    'Move the deadline of a job',
    'The window counts from the creation of the job and must be longer than the present one.',
    { schema: extendSchema, example: { completion_window: '48h' } },
  ),
  '/api/v1/jobs/:id/clone': action(
    'Make a new job like this one',
    'What is left out of the body is as it was.',
    copy,
  ),
  '/api/v1/jobs/:id/retry': action(
    'Ask the failed and expired lines of a job again',
    'Makes a new job, which names the first in `retry_of`. The first must be over.',
    copy,
  ),
};
