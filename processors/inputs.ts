import { setTimeout as sleep } from 'node:timers/promises';
import { parseShardEntity } from '../queues/catalog.ts';
import type { Processor } from '../queues/worker.ts';
import type { DispatchJob, TakenShard } from '../src/dispatcher/dispatcher.ts';
import { transient } from '../src/domain/errors.ts';
import type { Deps } from './deps.ts';

const FIRST_WAIT_MS = 1_000;
const LONGEST_WAIT_MS = 30_000;
/** A delivery holds the one place that takes: storage that hangs must not keep other jobs from it. */
const PATIENCE_MS = 250;
const FORGOTTEN_AFTER_MS = 600_000;

/** Where a shard ends in its input; a copy that is still being written has its beginning already. */
interface Place {
  inputKey: string;
  lastByte: number;
}

/** A job of which this process could not read a shard. */
interface Away extends Place {
  waitMs: number;
  /** When the next delivery looks whether it can be read. */
  dueAt: number;
  isLooking: boolean;
  /** It can be read again, but no shard has been since. */
  isBack: boolean;
}

/**
 * The dispatch processor, kept from taking shards of a job while this process cannot read its input: each take opens
 * the next shard, so that one failure after the other would go through the whole job. Deliveries are put off until the
 * next look, which the first of them does. It is known to this process only and lost with it; then a shard fails again.
 */
export function awaitInputs(processor: Processor<Deps>): Processor<Deps> {
  const jobs = new Map<string, Away>();
  return async (task, deps) => {
    const jobId = parseShardEntity(task.id)?.jobId ?? '';
    const away = jobs.get(jobId);
    const wait = away === undefined ? 0 : await waitFor(jobId, away, deps);
    if (wait > 0) return { againInMs: wait };
    const dispatcher: Deps['dispatcher'] = {
      asideMs: (id) => deps.dispatcher.asideMs(id),
      async run(shard, job, signals) {
        try {
          const result = await deps.dispatcher.run(shard, job, signals);
          if (jobs.get(jobId)?.isBack === true) jobs.delete(jobId);
          return result;
        } catch (error) {
          if (!signals.stop.aborted) putOff(jobs, shard, job, deps.now());
          throw error;
        }
      },
    };
    return processor(task, { ...deps, dispatcher });
  };
}

function putOff(jobs: Map<string, Away>, shard: TakenShard, job: DispatchJob, now: number): void {
  for (const [jobId, { dueAt }] of jobs) {
    if (now - dueAt > FORGOTTEN_AFTER_MS) jobs.delete(jobId);
  }
  const known = jobs.get(job.id);
  // Several that were being read fail together.
  if (known?.isBack === false) return;
  const waitMs = known === undefined ? FIRST_WAIT_MS : longer(known.waitMs);
  const state = { isLooking: false, isBack: false };
  jobs.set(job.id, { ...placeOf(shard, job), waitMs, dueAt: now + waitMs, ...state });
}

function placeOf({ plan }: TakenShard, { inputKey }: DispatchJob): Place {
  return { inputKey, lastByte: plan.offset + plan.bytes - 1 };
}

function longer(waitMs: number): number {
  return Math.min(LONGEST_WAIT_MS, waitMs * 2);
}

/** How many ms a delivery of the job is to be put off. */
async function waitFor(jobId: string, away: Away, deps: Deps): Promise<number> {
  const now = deps.now();
  if (!away.isBack && away.dueAt <= now) {
    away.dueAt = now + FIRST_WAIT_MS;
    if (!away.isLooking) {
      await Promise.race([look(jobId, away, deps), sleep(PATIENCE_MS, null, { ref: false })]);
    }
  }
  return away.isBack ? 0 : Math.max(1, away.dueAt - deps.now());
}

async function look(jobId: string, away: Away, deps: Deps): Promise<void> {
  away.isLooking = true;
  try {
    // One that was stopped has to be taken for its shards to be let go.
    if ((await deps.store.jobs.get(jobId))?.state === 'in_progress') {
      await readByte(away, deps);
      await deps.store.jobs.note(jobId, '');
    }
    away.isBack = true;
  } catch (error) {
    away.waitMs = longer(away.waitMs);
    away.dueAt = deps.now() + away.waitMs;
    const fields = { jobId, nextMs: away.waitMs, err: error };
    deps.log.debug(fields, 'the input of a job still cannot be read');
  } finally {
    away.isLooking = false;
  }
}

async function readByte({ inputKey, lastByte }: Place, { storage }: Deps): Promise<void> {
  const source = await storage.get(inputKey, { start: lastByte, end: lastByte + 1 });
  for await (const _byte of source) return;
  throw transient('input.short', 'The input file in storage is shorter than it was.');
}
