import { offerView } from '../console/catalog.ts';
import { listProvisionsSchema, ownView, releaseSchema } from '../console/provisions.ts';
import { offerListSchema, provisionListSchema, provisionSchema } from '../schemas/console.ts';
import { EXAMPLE_OFFER, EXAMPLE_PROVISION } from './examples.ts';
import type { Docs } from './operation.ts';

const provision = ownView(EXAMPLE_PROVISION);

export const provisionDocs: Docs = {
  '/api/v1/catalog': {
    get: {
      tag: 'Provisions',
      summary: 'What jobs can be run on',
      description: 'Asked of the providers; null is a number that nobody knows.',
      answer: {
        description: 'All offers.',
        schema: offerListSchema,
        example: { offers: [offerView(EXAMPLE_OFFER)] },
      },
    },
  },
  '/api/v1/provisions': {
    get: {
      tag: 'Provisions',
      summary: 'List provisions, newest first',
      query: listProvisionsSchema,
      answer: {
        description: 'A page of provisions.',
        schema: provisionListSchema,
        example: {
          provisions: [provision],
          first_id: provision.id,
          last_id: provision.id,
          has_more: false,
        },
      },
    },
  },
  '/api/v1/provisions/:id': {
    get: {
      tag: 'Provisions',
      summary: 'Look at a provision',
      answer: { description: 'The provision.', schema: provisionSchema, example: provision },
    },
  },
  '/api/v1/provisions/:id/release': {
    post: {
      tag: 'Provisions',
      summary: 'Give a provision back',
      description: 'Where an unfinished job uses it, `job` says what becomes of that.',
      body: { schema: releaseSchema, example: { job: 'rehome' }, optional: true },
      answer: {
        description: 'The provision as it then is.',
        schema: provisionSchema,
        example: provision,
      },
    },
  },
};
