import type { ShardWake } from '../../../src/store/shards.ts';

type Life = 'waiting' | 'active';

/** What of BullMQ matters to the store: ids that are there once, are delivered, delivered again, and may all vanish. */
export interface FakeQueue {
  /** Adding an id that is there does nothing. */
  add(shard: ShardWake): void;
  has(shard: ShardWake): boolean;
  /** Those that are in this state. */
  list(life: Life): ShardWake[];
  /** A worker gets it; false when it is gone. */
  deliver(shard: ShardWake): void;
  /** The worker is done with it. */
  end(shard: ShardWake): void;
  /** The worker lost its lock: another gets it, and the first may go on all the same. */
  stall(shard: ShardWake): void;
  flush(): void;
}

export function createFakeQueue(): FakeQueue {
  const jobs = new Map<string, { shard: ShardWake; life: Life }>();
  const idOf = ({ n, wake }: ShardWake) => `${n}.${wake}`;
  function setLife(shard: ShardWake, life: Life): void {
    const job = jobs.get(idOf(shard));
    if (job) job.life = life;
  }
  return {
    add(shard) {
      if (!jobs.has(idOf(shard))) jobs.set(idOf(shard), { shard, life: 'waiting' });
    },
    has: (shard) => jobs.has(idOf(shard)),
    list: (life) => [...jobs.values()].filter((job) => job.life === life).map((job) => job.shard),
    deliver: (shard) => setLife(shard, 'active'),
    end(shard) {
      if (jobs.get(idOf(shard))?.life === 'active') jobs.delete(idOf(shard));
    },
    stall: (shard) => setLife(shard, 'waiting'),
    flush: () => jobs.clear(),
  };
}
