import * as v from 'valibot';
import type { Docs, PathDocs } from './operation.ts';

const checksSchema = v.object({
  status: v.picklist(['ok', 'unavailable']),
  checks: v.pipe(
    v.record(v.string(), v.string()),
    v.description('By name: `ok`, or what is wrong.'),
  ),
});

const health: PathDocs = {
  get: {
    tag: 'Operations',
    summary: 'Whether this process answers',
    answer: {
      description: 'It does.',
      schema: v.object({ status: v.literal('ok') }),
      example: { status: 'ok' },
    },
  },
};

export const opsDocs: Docs = {
  '/health': health,
  '/api/v1/health': health,
  '/api/v1/config/job-capabilities': {
    get: {
      tag: 'Jobs',
      summary: 'What a job may ask of this server',
      answer: {
        description: 'Endpoints, limits and defaults.',
        schema: v.looseObject({
          endpoints: v.array(v.string()),
          limits: v.record(v.string(), v.number()),
        }),
      },
    },
  },
  '/ready': {
    get: {
      tag: 'Operations',
      summary: 'Whether this process can be of use',
      description: 'Answers 503, in the same form, while something that it needs is away.',
      answer: {
        description: 'All is well.',
        schema: checksSchema,
        example: { status: 'ok', checks: { redis: 'ok', storage: 'ok' } },
      },
    },
  },
  '/metrics': {
    get: {
      tag: 'Operations',
      summary: 'Metrics in the text format of Prometheus',
      answer: { description: 'The metrics.', type: 'text/plain', schema: v.string() },
    },
  },
  '/openapi.json': {
    get: {
      tag: 'Operations',
      summary: 'This document',
      answer: {
        description: 'An OpenAPI 3.1 document.',
        schema: v.looseObject({ openapi: v.string() }),
      },
    },
  },
  '/docs': {
    get: {
      tag: 'Operations',
      summary: 'This document as a page',
      answer: { description: 'A page for people.', type: 'text/html', schema: v.string() },
    },
  },
  '/docs/:asset': {
    get: {
      tag: 'Operations',
      summary: 'What that page loads',
      answer: {
        description: 'A script, a style or an icon.',
        type: 'text/javascript',
        schema: v.string(),
      },
    },
  },
};
