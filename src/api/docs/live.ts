import * as v from 'valibot';
import { MOST_MERGED, querySchema } from '../partial.ts';
import { EXAMPLE_IDS } from './examples.ts';
import type { Docs, Operation, Tag } from './operation.ts';

const EVENT_ID = '1768469402000-0';

function eventList(owner: 'batch_id' | 'job_id') {
  return v.object({
    object: v.literal('list'),
    data: v.array(
      v.object({
        id: v.pipe(v.string(), v.description('What `Last-Event-ID` takes.')),
        event: v.literal('state'),
        [owner]: v.string(),
        status: v.string(),
        kind: v.string(),
        at: v.pipe(v.number(), v.description('Unix seconds.')),
        message: v.string(),
      }),
    ),
    has_more: v.literal(false),
  });
}

function events(tag: Tag, owner: 'batch_id' | 'job_id', id: string): Operation {
  return {
    tag,
    summary: 'Follow what happens, as Server-Sent Events or as a list',
    description:
      'A stream of Server-Sent Events, unless `Accept: application/json` asks for the list of what happened so far. ' +
      'The stream begins with `snapshot`, the whole object; `state` tells each event once, `progress` the counts ' +
      'and usage, at most once a second; after the last state comes `done`, and the stream ends. Any server of the ' +
      'same Redis goes on with it. Past LIVE_STREAMS open streams the answer is 503 with `Retry-After`.',
    headers: {
      'Last-Event-ID':
        'The id of the last event seen: the stream goes on behind it. With that of `done` the answer is 204, at ' +
        "which a browser's EventSource stops coming back.",
    },
    answer: {
      description: 'The events so far.',
      also: { 'text/event-stream': v.string() },
      schema: eventList(owner),
      example: {
        object: 'list',
        data: [
          {
            id: EVENT_ID,
            event: 'state',
            [owner]: id,
            status: 'in_progress',
            kind: 'state',
            at: 1_768_469_402,
            message: 'The engine is healthy; requests are being sent.',
          },
        ],
        has_more: false,
      },
    },
  };
}

function results(tag: Tag, what: string): Operation {
  return {
    tag,
    summary: `Read the ${what} under the id of what made them, also while it runs`,
    description:
      'The file when all is over, with `X-Incomplete: false`; before that the finished lines so far, with ' +
      '`X-Incomplete: true`: each is in the final file byte for byte. `order=input`, the default, has them in input ' +
      `order, for ${MOST_MERGED} readers of a server at once; \`order=committed\` as they were stored, for any number. ` +
      'An answer that cannot be completed is broken off, never just short. `format`, `merge` and `gzip` are those of ' +
      'files; `merge` needs the order of the input.',
    query: querySchema,
    answer: { description: 'JSON lines.', type: 'application/jsonl', schema: v.string() },
  };
}

export const liveDocs: Docs = {
  '/v1/batches/:id/events': { get: events('Batches', 'batch_id', EXAMPLE_IDS.batch) },
  '/v1/batches/:id/output': { get: results('Batches', 'answered lines') },
  '/v1/batches/:id/errors': { get: results('Batches', 'failed lines') },
  '/api/v1/jobs/:id/events': { get: events('Jobs', 'job_id', EXAMPLE_IDS.job) },
  '/api/v1/jobs/:id/output': { get: results('Jobs', 'answered lines') },
  '/api/v1/jobs/:id/errors': { get: results('Jobs', 'failed lines') },
};
