import { createHash } from 'node:crypto';
import * as v from 'valibot';
import { ENGINE_PARTS } from './keys.ts';
import { createLease } from './lease.ts';
import type { Lease } from './lease.ts';
import type { Context } from './records.ts';

/** A process that has not beaten for this long sends nothing there any more. */
const BEAT_MAX_AGE_MS = 3_000;

/** What stands of an engine between the processes that send to it. */
export interface EngineStanding<Tally> {
  /** Those that send to it, whoever asks included. */
  processes: number;
  /** How many of them came before whoever asks; 0: it is for this one to steer the window. */
  rank: number;
  /** Lines in flight for all of them together, as it was decided last; null: not yet. */
  limit: number | null;
  /** What each of the others saw since its beat before, with the beat's number; the same again until the next one. */
  others: readonly { id: string; beat: number; tally: Tally }[];
}

/** How processes that send to one engine keep to one window. Nothing of it lasts: it is known again within a second. */
export interface Engines {
  /**
   * To be called about twice a second by each process that sends to the engine. `tally` is JSON that the others get as
   * it is; `limit` counts only from who leads.
   */
  beat(
    address: string,
    beat: { id: string; number: number; tally: object; limit: number | null },
  ): Promise<EngineStanding<unknown>>;
  /** Sending lines there of which it may die, and nothing else. */
  isolation(address: string): Lease;
}

export function createEngines(context: Context): Engines {
  const { scripts, keys } = context;
  function keyOf(address: string): string {
    const name = createHash('sha256').update(address).digest('hex').slice(0, 32);
    return `${keys.engine}${name}`;
  }
  return {
    isolation: (address) => createLease(context, `${keyOf(address)}${ENGINE_PARTS.ISOLATION}`),
    async beat(address, { id, number, tally, limit }) {
      const text = JSON.stringify(tally);
      const window = limit === null ? '' : String(limit);
      const [rank = '', decided = '', ...entries] = v.parse(
        v.array(v.string()),
        await scripts.run('engine-beat', keyOf(address), id, number, text, window, BEAT_MAX_AGE_MS),
      );
      const others: { id: string; beat: number; tally: unknown }[] = [];
      for (let at = 0; at < entries.length; at += 2) {
        const [other = '', entry = ''] = entries.slice(at, at + 2);
        if (other !== id) others.push({ id: other, ...parseEntry(entry) });
      }
      return {
        processes: others.length + 1,
        rank: Number(rank),
        limit: decided === '' ? null : Number(decided),
        others,
      };
    },
  };
}

function parseEntry(entry: string): { beat: number; tally: unknown } {
  const space = entry.indexOf(' ');
  return {
    beat: Number(entry.slice(0, space)),
    tally: JSON.parse(entry.slice(space + 1)) as unknown,
  };
}
