import * as v from 'valibot';
import type { ShareEngine } from '../dispatcher/engine-window.ts';
import type { Isolation } from '../dispatcher/quarantine.ts';
import type { Logger } from '../observability/log.ts';
import type { Store } from '../store/store.ts';

const count = v.pipe(v.number(), v.minValue(0));
const tallySchema = v.object({
  elapsedMs: count,
  answered: count,
  outputTokens: count,
  latencyMs: count,
  generatingMs: count,
  rejected: count,
  timedOut: count,
  inFlight: count,
  wasFull: v.boolean(),
});

/** Longer than it takes to renew it, and shorter than the work of a dead process is missed. */
const ISOLATION_MS = 6_000;

/** Whose turn it is to isolate is said in Redis; where that is away, it is nobody's. */
export function createIsolation(
  id: string,
  engines: Store['engines'],
  log: Pick<Logger, 'warn'>,
): Isolation {
  function quietly(address: string, err: unknown): false {
    log.warn({ address, err }, 'whose turn it is at an engine is not known');
    return false;
  }
  return {
    take: (address) =>
      engines
        .isolation(address)
        .lease(id, ISOLATION_MS)
        .catch((err: unknown) => quietly(address, err)),
    giveBack(address) {
      engines
        .isolation(address)
        .yield(id)
        .catch((err: unknown) => quietly(address, err));
    },
  };
}

/** Tells the other processes through Redis what this one sees at its engines; each word of theirs counts once. */
export function createShareEngine(id: string, engines: Store['engines']): ShareEngine {
  const heard = new Map<string, number>();
  let number = 0;
  function forgetGone(address: string, others: readonly { id: string }[]): void {
    const there = new Set(others.map((other) => `${address} ${other.id}`));
    for (const name of heard.keys()) {
      if (name.startsWith(`${address} `) && !there.has(name)) heard.delete(name);
    }
  }
  return async (address, tally, limit) => {
    number += 1;
    const standing = await engines.beat(address, { id, number, tally, limit });
    const news = standing.others.filter((other) => {
      const name = `${address} ${other.id}`;
      const isNew = heard.get(name) !== other.beat;
      heard.set(name, other.beat);
      return isNew;
    });
    forgetGone(address, standing.others);
    return { ...standing, others: news.map((other) => v.parse(tallySchema, other.tally)) };
  };
}
