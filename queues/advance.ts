import { permanent } from '../src/domain/errors.ts';
import type { QueueName } from '../src/domain/job.ts';
import type { Delivery } from './catalog.ts';

type Table<S extends string> = Readonly<Record<S, { queue: QueueName | null; next: readonly S[] }>>;

interface Advanceable<S extends string> {
  id: string;
  state: S;
  version: number;
  wake: number;
}

/**
 * The one door between states: a compare-and-set on one record, then one delivery if the new state has a queue.
 * A process that dies between the two leaves a record without a delivery, which the sweeper sees.
 * Resolves to the record as it is now, or `stale` when somebody else moved it first: read it again, or stop.
 */
export type Advance<R extends Advanceable<S>, S extends string, C> = (
  record: R,
  to: S,
  change?: C,
) => Promise<R | 'stale'>;

export function createAdvance<R extends Advanceable<S>, S extends string, C>(
  table: Table<S>,
  transition: (
    record: R,
    to: S,
    change?: C,
  ) => Promise<{ version: number; wake: number } | 'stale'>,
  add: (delivery: Delivery) => Promise<void>,
): Advance<R, S, C> {
  return async function advance(record, to, change) {
    if (!table[record.state].next.includes(to)) {
      throw permanent('state.forbidden', `${record.id} may not go from ${record.state} to ${to}`);
    }
    const moved = await transition(record, to, change);
    if (moved === 'stale') return 'stale';
    const { queue } = table[to];
    if (queue !== null) await add({ queue, entity: record.id, wake: moved.wake });
    return { ...record, state: to, ...moved };
  };
}
