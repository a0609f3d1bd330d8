import { isFinal, isPaused } from '../../domain/job.ts';
import type { JobRecord } from '../../domain/job.ts';
import { isLeased, isReleased } from '../../domain/provision.ts';
import type { ProvisionRecord } from '../../domain/provision.ts';
import { explainMachines } from './explain-machines.ts';
import { findJob } from '../find-job.ts';
import { pathId } from '../routes.ts';
import type { Route } from '../routes.ts';
import type { JobsDeps } from './job-read.ts';

/** Why a job stands where it stands. */
interface Explanation {
  /** A stable word for what is in its way. */
  code: string;
  /** One sentence for people; of a paused job also what was noted of it. */
  text: string;
}

/** A queue is counted no further than this: who is behind so many needs no exact place. */
const MOST_COUNTED = 200;

export function explainRoute(deps: JobsDeps): Route {
  return {
    path: '/api/v1/jobs/:id/explain',
    async get(c) {
      const job = await findJob(deps.store.jobs, pathId(c));
      const { code, text } = await explain(job, deps);
      return c.json({ id: job.id, status: job.state, code, explanation: text });
    },
  };
}

async function explain(job: JobRecord, deps: JobsDeps): Promise<Explanation> {
  if (isFinal(job.state)) return { code: 'over', text: describeEnd(job) };
  if (isPaused(job)) return describePause(job, deps);
  if (job.state === 'cancelling') {
    return {
      code: 'stopping',
      text: `It stops (${job.outcome}): answers in flight are collected.`,
    };
  }
  if (job.state === 'finalizing') {
    const text = job.reason || 'Every request has its end, and its output files are being written.';
    return { code: job.reason === '' ? 'finalizing' : 'storage', text };
  }
  const missing = await missingWorker(job, deps);
  if (missing !== null) return missing;
  if (job.state === 'queued') return describeQueue(job, deps);
  return job.state === 'in_progress' ? describeRun(job, deps) : describeEngines(job, deps);
}

function describeEnd(job: JobRecord): string {
  const at = moment(job.enteredAt[job.state] ?? job.createdAt);
  const counts = `${job.completed} of ${job.lines} requests answered, ${job.failed} failed`;
  const why = job.errors[0]?.message ?? job.reason;
  return `It is over: ${job.state} since ${at}, ${counts}${why === '' ? '' : ` (${why})`}.`;
}

async function describePause(job: JobRecord, deps: JobsDeps): Promise<Explanation> {
  const held = await deps.store.shards.held(job.id);
  const by = job.pausedBy === '' ? '' : ` by ${job.pausedBy}`;
  const rest = held === 0 ? '' : `, and what was in flight is still being answered`;
  const mend = `POST /api/v1/jobs/${job.id}/resume lets it go on`;
  const why = job.reason === '' ? '' : ` Reason noted: ${withoutStop(job.reason)}.`;
  return {
    code: 'paused',
    text: `It was paused${by} at ${moment(job.pausedAt ?? 0)}${rest}; ${mend}.${why}`,
  };
}

/** What every job needs and this deployment has not: a live process that serves its queue. */
async function missingWorker(job: JobRecord, deps: JobsDeps): Promise<Explanation | null> {
  const queue = job.state === 'queued' ? 'planning' : 'dispatch';
  const nodes = await deps.store.nodes.live();
  const isServed = nodes.some(
    ({ roles, queues }) => roles.includes('worker') && queues.includes(queue),
  );
  if (isServed) return null;
  const text = `No live worker process serves the queue '${queue}': start one with ROLES=worker.`;
  return { code: 'no_worker', text };
}

async function describeQueue(job: JobRecord, deps: JobsDeps): Promise<Explanation> {
  const ahead = await countAhead(job, 'queued', deps);
  const behind = ahead === 0 ? 'is being checked or is the next' : `waits behind ${some(ahead)}`;
  return { code: 'queued', text: `Its input ${behind} to be checked and cut into shards.` };
}

async function describeEngines(job: JobRecord, deps: JobsDeps): Promise<Explanation> {
  const all = await deps.store.provisions.ofJob(job.id);
  const live = all.filter(({ state }) => !isReleased(state));
  const machines = explainMachines(
    live.filter((each) => isLeased(each) && each.owner === 'sluice'),
  );
  if (machines !== null) {
    const { code, text, since } = machines;
    return { code, text: `${text} (since ${moment(since)}).` };
  }
  const silent = live.filter(({ reason }) => reason !== '');
  const [first] = silent;
  if (first === undefined) {
    return { code: 'engine_starting', text: 'Its engine is being looked at for the first time.' };
  }
  const others = silent.length === 1 ? '' : ` (and ${silent.length - 1} more)`;
  return { code: 'engine_away', text: `It waits for ${describeEngine(first, job)}${others}.` };
}

function describeEngine(provision: ProvisionRecord, { options }: JobRecord): string {
  const { address, reason, reasonAt, createdAt } = provision;
  const machine = options.resources?.machine;
  const where = machine === undefined ? address : `on ${machine.login.host}`;
  return `the engine ${where}, which does not serve it since ${moment(reasonAt ?? createdAt)}: ${withoutStop(reason)}`;
}

async function describeRun(job: JobRecord, deps: JobsDeps): Promise<Explanation> {
  const held = await deps.store.shards.held(job.id);
  const answered = `${job.completed + job.failed} of ${job.lines} requests have their answer`;
  if (held > 0) return { code: 'running', text: `It is running: ${answered}.` };
  if (job.reason !== '') {
    return { code: 'held_up', text: `It is held up: ${withoutStop(job.reason)}.` };
  }
  const others = await countAhead(job, 'in_progress', deps);
  const text =
    others === 0
      ? `It is about to be taken by a worker; ${answered}.`
      : `It takes turns with ${some(others)} that came before; ${answered}.`;
  return { code: others === 0 ? 'starting' : 'queued', text };
}

/** Unfinished jobs that are older and in this state, counted up to a bound. */
async function countAhead(
  job: JobRecord,
  state: JobRecord['state'],
  { store }: JobsDeps,
): Promise<number> {
  let ahead = 0;
  let looked = 0;
  for await (const id of store.jobs.active()) {
    if (id === job.id || looked === MOST_COUNTED) break;
    looked += 1;
    const other = await store.jobs.get(id);
    if (other?.state === state && !isPaused(other)) ahead += 1;
  }
  return ahead;
}

function some(jobs: number): string {
  if (jobs >= MOST_COUNTED) return `at least ${jobs} other jobs`;
  return jobs === 1 ? 'one other job' : `${jobs} other jobs`;
}

function moment(ms: number): string {
  return new Date(ms).toISOString().replace(/\.\d+Z$/, 'Z');
}

/** A sentence that goes on behind it has one full stop only. */
function withoutStop(text: string): string {
  return text.endsWith('.') ? text.slice(0, -1) : text;
}
