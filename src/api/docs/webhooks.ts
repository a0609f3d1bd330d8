import * as v from 'valibot';
import { createSchema, deliveriesView, webhookView } from '../console/webhooks.ts';
import {
  deliveryListSchema,
  newWebhookSchema,
  webhookEventSchema,
  webhookListSchema,
  webhookSchema,
} from '../schemas/console.ts';
import { EXAMPLE_ATTEMPT, EXAMPLE_IDS, EXAMPLE_WEBHOOK } from './examples.ts';
import type { Docs, Operation } from './operation.ts';

const webhook = webhookView(EXAMPLE_WEBHOOK);

const deliveries: Operation = {
  tag: 'Webhooks',
  summary: 'What became of telling it',
  answer: {
    description: 'Attempts, newest first.',
    schema: deliveryListSchema,
    example: deliveriesView([EXAMPLE_ATTEMPT]),
  },
};

export const webhookDocs: Docs = {
  '/api/v1/webhooks': {
    get: {
      tag: 'Webhooks',
      summary: 'List webhooks',
      answer: {
        description: 'All of them.',
        schema: webhookListSchema,
        example: { webhooks: [webhook] },
      },
    },
    post: {
      tag: 'Webhooks',
      summary: 'Register a webhook',
      description: 'Addresses of private networks are refused unless the server allows them.',
      body: {
        schema: createSchema,
        example: { url: EXAMPLE_WEBHOOK.url, events: ['batch.completed', 'batch.failed'] },
      },
      answer: {
        description: 'The webhook, with its secret.',
        schema: newWebhookSchema,
        example: { ...webhook, secret: EXAMPLE_WEBHOOK.secret },
      },
    },
  },
  '/api/v1/webhooks/:id': {
    get: {
      tag: 'Webhooks',
      summary: 'Look at a webhook',
      answer: { description: 'The webhook.', schema: webhookSchema, example: webhook },
    },
    delete: {
      tag: 'Webhooks',
      summary: 'Delete a webhook',
      answer: {
        description: 'It is gone.',
        schema: v.object({ id: v.string(), object: v.literal('webhook'), deleted: v.boolean() }),
        example: { id: EXAMPLE_IDS.webhook, object: 'webhook', deleted: true },
      },
    },
  },
  '/api/v1/webhooks/:id/test': {
    post: {
      tag: 'Webhooks',
      summary: 'Send a webhook an event to try it',
      answer: {
        description: 'The event that is on its way.',
        schema: webhookEventSchema,
        example: {
          id: 'evt_Yt6nKpWzRq3MvXbGh8LcJd5S',
          object: 'event',
          type: 'webhook.test',
          created_at: 1_768_469_400,
          data: { id: EXAMPLE_IDS.webhook },
        },
      },
    },
  },
  '/api/v1/webhooks/:id/deliveries': { get: deliveries },
  '/api/v1/jobs/:id/deliveries': {
    get: { ...deliveries, summary: "What became of telling a job's own webhook" },
  },
};
