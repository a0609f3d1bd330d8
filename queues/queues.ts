import { Queue } from 'bullmq';
import type { Redis } from 'ioredis';
import * as v from 'valibot';
import type { QueueName } from '../src/domain/job.ts';
import { QUEUE_NAMES } from '../src/domain/job.ts';
import { deliveryId, payload, QUEUES } from './catalog.ts';
import type { Delivery, Payload } from './catalog.ts';

/** Retries of a delivery never run out: what a job ends as is the record's to say, not the queue's. */
const ATTEMPTS = 1_000_000;

export interface Queues {
  /**
   * Adds a delivery; one of the same queue, entity and wake that is there already is left alone. `first` puts it
   * before all that wait.
   */
  add(delivery: Delivery, options?: { first?: boolean }): Promise<void>;
  /** Whether BullMQ holds the delivery: waiting, delayed or being worked on. */
  isLive(delivery: Delivery): Promise<boolean>;
  /** What the process of that name (`startWorker`) has in hand, or had when it died; longest in hand first. */
  inHandOf(name: string): Promise<Delivery[]>;
  /** BullMQ's own queues, for its board and for metrics. */
  all: readonly Queue<Payload>[];
  close(): Promise<void>;
}

/** Key prefix of a queue: one hash tag each, as Redis Cluster wants it. */
export function queuePrefix(namespace: string, queue: QueueName): string {
  return `{${namespace}:${queue}}`;
}

/** Opens the sending side of the five queues on one connection, which stays the caller's to close. */
export function createQueues(
  connection: Redis,
  { namespace, onError }: { namespace: string; onError: (error: Error) => void },
): Queues {
  function open(name: QueueName): Queue<Payload> {
    const queue = new Queue<Payload>(name, {
      connection,
      prefix: queuePrefix(namespace, name),
      defaultJobOptions: {
        attempts: ATTEMPTS,
        backoff: { type: 'custom' },
        removeOnComplete: true,
        removeOnFail: true,
      },
    });
    queue.on('error', onError);
    return queue;
  }
  const queues = {
    planning: open('planning'),
    provisioning: open('provisioning'),
    submission: open('submission'),
    dispatch: open('dispatch'),
    release: open('release'),
  } satisfies Record<QueueName, Queue<Payload>>;
  return {
    all: QUEUE_NAMES.map((name) => queues[name]),
    async add(delivery, { first = false } = {}) {
      const { queue, entity, wake } = delivery;
      const priority = QUEUES[queue].priority?.(delivery) ?? 0;
      await queues[queue].add(
        queue,
        { id: entity, wake },
        // One without a priority goes before all that have one.
        { jobId: deliveryId(delivery), ...(first ? { lifo: true } : { priority }) },
      );
    },
    async isLive(delivery) {
      const state = await queues[delivery.queue].getJobState(deliveryId(delivery));
      return state !== 'unknown' && state !== 'completed' && state !== 'failed';
    },
    async inHandOf(name) {
      const found = await Promise.all(
        QUEUE_NAMES.map(async (queue) => {
          const active = await queues[queue].getActive();
          return active
            .filter((job) => job.processedBy === name && v.is(payload, job.data))
            .toSorted((a, b) => (a.processedOn ?? 0) - (b.processedOn ?? 0))
            .map(({ data }) => ({ queue, entity: data.id, wake: data.wake }));
        }),
      );
      return found.flat();
    },
    async close() {
      await Promise.all(QUEUE_NAMES.map((name) => queues[name].close()));
    },
  };
}
