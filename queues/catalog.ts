import * as v from 'valibot';
import { JOB_CLASSES } from '../src/domain/job.ts';
import type { JobClass, QueueName } from '../src/domain/job.ts';

/** All that a queue carries: which record, and the wake that its state was scheduled under. */
export const payload = v.strictObject({
  id: v.pipe(v.string(), v.minLength(1)),
  wake: v.pipe(v.number(), v.integer(), v.minValue(0)),
});
export type Payload = v.InferOutput<typeof payload>;

export interface QueueSpec {
  /** Deliveries worked on at once in one process. */
  concurrency: number;
  /** Its deliveries prepare jobs, and how many are worked on at once may be set for all such queues. */
  isPlanning?: true;
  /** How long what is due may go unseen, seconds. */
  longestBlindSeconds: number;
  /** Priority of a delivery; 0, where it is not said, goes before any other. */
  priority?: (delivery: Pick<Delivery, 'entity' | 'jobClass'>) => number;
}

/** Assembling a file may take minutes; what waits to be given back goes first. */
function provisionsFirst({ entity }: Pick<Delivery, 'entity'>): number {
  return entity.startsWith('job_') ? 1 : 0;
}

/** Shards of one class take turns: each job has but a few in the queue. */
function byClass({ jobClass = 'normal' }: Pick<Delivery, 'jobClass'>): number {
  return JOB_CLASSES.indexOf(jobClass) + 1;
}

/** The five queues. `dispatch` holds shards only; its concurrency follows the room at the engines. */
export const QUEUES: Readonly<Record<QueueName, QueueSpec>> = {
  planning: { concurrency: 10, longestBlindSeconds: 1, isPlanning: true },
  provisioning: { concurrency: 50, longestBlindSeconds: 1, isPlanning: true },
  submission: { concurrency: 50, longestBlindSeconds: 1, isPlanning: true },
  dispatch: { concurrency: 1, longestBlindSeconds: 0.25, priority: byClass },
  release: { concurrency: 10, longestBlindSeconds: 1, priority: provisionsFirst },
};

/** How many deliveries of a queue a process works on at once; `planners`: what was set, undefined for nothing. */
export function concurrencyOf(queue: QueueName, planners: number | undefined): number {
  const { concurrency, isPlanning = false } = QUEUES[queue];
  return isPlanning ? (planners ?? concurrency) : concurrency;
}

/**
 * A dead worker's delivery is taken over within lock plus stalled check. BullMQ renews a lock at half its renew time,
 * so that the lock survives an event loop that is blocked for four seconds.
 */
export const LOCK = { durationMs: 6_000, renewMs: 3_000, stalledCheckMs: 2_000 } as const;

/** A record that is to be worked on, under the wake that it was scheduled with. */
export interface Delivery {
  queue: QueueName;
  entity: string;
  wake: number;
  /** Of a shard, its job's class. */
  jobClass?: JobClass;
}

/** Name of a delivery: BullMQ refuses `:` in ids and adds an id that is there only once. */
export function deliveryId({ queue, entity, wake }: Delivery): string {
  return `${entity}.${queue}.${wake}`;
}

/** A shard's name in the dispatch queue, and back. */
export function shardEntity(jobId: string, n: number): string {
  return `${jobId}-${n}`;
}

export function parseShardEntity(entity: string): { jobId: string; n: number } | null {
  const match = /^(job_[A-Za-z0-9]+)-(\d+)$/.exec(entity);
  return match?.[1] === undefined ? null : { jobId: match[1], n: Number(match[2]) };
}
