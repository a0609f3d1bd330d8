import { parseShardEntity } from '../../queues/catalog.ts';
import type { Delivery } from '../../queues/catalog.ts';
import type { Queues } from '../../queues/queues.ts';
import type { Store } from '../store/store.ts';

export interface HandBackDeps {
  store: {
    jobs: Pick<Store['jobs'], 'wake'>;
    provisions: Pick<Store['provisions'], 'wake'>;
    shards: Pick<Store['shards'], 'rewake'>;
  };
  queues: Pick<Queues, 'add' | 'inHandOf'>;
}

/**
 * Lets others go on at once with what a dead process had in hand, instead of when its locks have run out; resolves to
 * how many deliveries that were. A delivery gets a new wake, so the old one, still locked, comes to nothing when it is
 * found stalled; a shard's token stays until the next take, so answers whose commit is under way still count. Of one
 * that somebody else has taken over meanwhile nothing is in hand: the queue says who works on it.
 */
export async function handBack(name: string, { store, queues }: HandBackDeps): Promise<number> {
  async function wakeAnew({ entity, wake }: Delivery): Promise<number | 'stale'> {
    const shard = parseShardEntity(entity);
    if (shard !== null) return store.shards.rewake(shard.jobId, { n: shard.n, wake });
    return (entity.startsWith('prov_') ? store.provisions : store.jobs).wake(entity, wake);
  }
  const inHand = await queues.inHandOf(name);
  let handedBack = 0;
  // One by one, each before all that wait: in the end the one that was in hand longest, whose lines were asked
  // already, is the first.
  for (const delivery of inHand.toReversed()) {
    const wake = await wakeAnew(delivery);
    if (wake === 'stale') continue;
    await queues.add({ ...delivery, wake }, { first: true });
    handedBack += 1;
  }
  return handedBack;
}
