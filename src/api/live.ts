import { invalidInput } from '../domain/errors.ts';
import { batchIdOf, batchStatus, isFinal } from '../domain/job.ts';
import type { JobEvent, JobRecord } from '../domain/job.ts';
import { fullView } from './console/job-read.ts';
import type { FullViewDeps } from './console/job-read.ts';
import { jobView } from './console/job-view.ts';
import { findBatch, findJob } from './find-job.ts';
import type { FindJob } from './find-job.ts';
import { createLiveHub, DONE_MARK, renderMessage } from './live-hub.ts';
import type { LiveHub, LiveHubDeps, Wording } from './live-hub.ts';
import { pathId } from './routes.ts';
import type { ApiContext, Route } from './routes.ts';
import { batchView, requestCounts, unixSeconds, usageView } from './views.ts';

export interface LiveDeps extends LiveHubDeps {
  store: LiveHubDeps['store'] & FullViewDeps['store'];
}

/** One of the two interfaces in which a job can be followed. */
interface Dialect {
  find: FindJob;
  /** The whole object, as its own path answers it. */
  snapshot(job: JobRecord, deps: LiveDeps): Promise<object>;
  wording: Wording;
}

/** What happens to a job, told as it happens, in both interfaces. */
export function liveRoutes(deps: LiveDeps): Route[] {
  const hub = createLiveHub(deps);
  return [
    { path: '/v1/batches/:id/events', get: (c) => follow(c, deps, hub, BATCHES) },
    { path: '/api/v1/jobs/:id/events', get: (c) => follow(c, deps, hub, JOBS) },
  ];
}

const HEADERS = {
  'Content-Type': 'text/event-stream; charset=utf-8',
  'Cache-Control': 'no-cache, no-transform',
  // nginx gathers an answer before it passes it on, unless it is told not to.
  'X-Accel-Buffering': 'no',
  // A connection that is kept alive behind its stream would hold up the end of the server.
  Connection: 'close',
};
const RETRY = 'retry: 2000\n\n';

async function follow(
  c: ApiContext,
  deps: LiveDeps,
  hub: LiveHub,
  { find, snapshot, wording }: Dialect,
): Promise<Response> {
  const job = await find(deps.store.jobs, pathId(c));
  const { after, isDone } = lastEventId(c);
  c.header('Vary', 'Accept');
  if (wantsJson(c)) {
    const events = await eventList(deps, job, after, wording);
    return c.json(events, 200, { 'Cache-Control': 'no-store' });
  }
  // A browser's EventSource comes back after every end, and stops only at this answer.
  if (isDone && isFinal(job.state)) return c.body(null, 204);
  if (c.req.method === 'HEAD') return c.body(null, 200, HEADERS);
  const opening = renderMessage({ event: 'snapshot', data: await snapshot(job, deps) });
  const { outgoing } = c.env;
  const stream = hub.open({
    job,
    after,
    opening: `${RETRY}${opening}`,
    wording,
    cut: () => outgoing.destroy(),
  });
  return c.body(stream, 200, HEADERS);
}

const EVENT_ID = /^(\d{1,15}-\d{1,15})(-done)?$/;

/** Where the reader of an earlier stream stopped. */
function lastEventId(c: ApiContext): { after: string; isDone: boolean } {
  const given = c.req.header('last-event-id') ?? '';
  if (given === '') return { after: '0-0', isDone: false };
  const [, after, done] = EVENT_ID.exec(given) ?? [];
  if (after === undefined) {
    throw invalidInput(
      'invalid_last_event_id',
      `Last-Event-ID must be the id of an event of this stream, such as 1735689600000-0; got '${given.slice(0, 100)}'.`,
      { param: 'Last-Event-ID' },
    );
  }
  return { after, isDone: done === DONE_MARK };
}

function wantsJson(c: ApiContext): boolean {
  const accept = c.req.header('accept') ?? '';
  return accept.includes('application/json') && !accept.includes('text/event-stream');
}

/** The same events for who cannot read streams. */
async function eventList({ store }: LiveDeps, job: JobRecord, after: string, wording: Wording) {
  const events = await store.events.after(job.id, after);
  return {
    object: 'list',
    data: events.map((event) => ({ id: event.id, event: 'state', ...wording.state(event, job) })),
    has_more: false,
  };
}

function eventView({ kind, at, message }: JobEvent) {
  return { kind, at: unixSeconds(at), message };
}

const BATCHES: Dialect = {
  find: findBatch,
  snapshot: (job) => Promise.resolve(batchView(job)),
  wording: {
    state: (event, job) => ({
      batch_id: batchIdOf(job.id),
      status: statusAt(event, job),
      ...eventView(event),
    }),
    progress: (job) => ({ batch_id: batchIdOf(job.id), ...progressView(job) }),
    done: batchView,
  },
};

/** OpenAI's status of a job as it was at an event. */
function statusAt({ state, at }: JobEvent, job: JobRecord): string {
  const began = job.enteredAt.in_progress;
  return batchStatus({ state, outcome: job.outcome, begun: began !== undefined && began < at });
}

const JOBS: Dialect = {
  find: findJob,
  snapshot: (job, deps) => fullView(deps, job),
  wording: {
    state: (event, job) => ({ job_id: job.id, status: event.state, ...eventView(event) }),
    progress: (job) => ({ job_id: job.id, ...progressView(job) }),
    done(job) {
      // Its history was told, and its machines may be given back after its end: what they were is asked of the job.
      const {
        events: _told,
        provision: _machine,
        resource_allocation: _machines,
        cost: _cost,
        ...rest
      } = jobView(job, [], []);
      return rest;
    },
  },
};

function progressView(job: JobRecord) {
  return { request_counts: requestCounts(job), usage: usageView(job) };
}
