import * as v from 'valibot';
import type { MeasuredSpeed } from '../domain/cost.ts';
import { jsonText, parseRecord } from './parse.ts';
import { enterIndex } from './records.ts';
import type { Context } from './records.ts';

/** What stands between provisions that lease machines. */
export interface Leases {
  /**
   * Lets a provision lease a machine; false where `most` have one. It keeps its seat until it is released. `from` is a
   * provision whose machine, and seat, it takes over.
   */
  sit(id: string, most: number, from?: string): Promise<boolean>;
  /** Those that have a seat, in order of coming. */
  seated(): Promise<string[]>;
  /** Enters a provision among those that wait for a machine of a kind, and would take over another's. */
  want(kind: string, id: string): Promise<void>;
  /** It waits no longer. */
  unwant(kind: string, id: string): Promise<void>;
  /** Those that wait, longest first; some may wait no longer. */
  wanting(kind: string): Promise<string[]>;
  /** A provision keeps its machine, which no job needs, for whoever wants one of the kind. */
  warm(kind: string, id: string): Promise<void>;
  cool(kind: string, id: string): Promise<void>;
  /** Those that keep one; some may keep it no longer. */
  kept(kind: string): Promise<string[]>;
  /** Remembers for `ms` that machines on this host are of no use. */
  shun(host: string, ms: number): Promise<void>;
  isShunned(host: string): Promise<boolean>;
  /** Notes what a job of a template did on a kind of GPU; the last one counts. */
  learn(templateId: string, gpuType: string, speed: MeasuredSpeed): Promise<void>;
  /** What jobs of a template did, by GPU type. */
  speeds(templateId: string): Promise<ReadonlyMap<string, MeasuredSpeed>>;
}

const speed = v.pipe(
  jsonText,
  v.object({ tokensPerSecond: v.number(), outputTokensPerLine: v.number() }),
);

export function createLeases(context: Context): Leases {
  const { redis, scripts, keys } = context;
  return {
    sit: async (id, most, from = '') =>
      (await scripts.run('seat', keys.seats, id, most, from)) === 1,
    seated: () => redis.zrange(keys.seats, '0', '-1'),
    async want(kind, id) {
      await enterIndex(context, `${keys.wanting}${kind}`, id, false);
    },
    async unwant(kind, id) {
      await redis.zrem(`${keys.wanting}${kind}`, id);
    },
    wanting: (kind) => redis.zrange(`${keys.wanting}${kind}`, '0', '-1'),
    async warm(kind, id) {
      await enterIndex(context, `${keys.warm}${kind}`, id, false);
    },
    async cool(kind, id) {
      await redis.zrem(`${keys.warm}${kind}`, id);
    },
    kept: (kind) => redis.zrange(`${keys.warm}${kind}`, '0', '-1'),
    async shun(host, ms) {
      await scripts.run('enter', keys.badHosts, host, 1, ms);
    },
    async isShunned(host) {
      // The age of an entry of the future is negative.
      const age = await scripts.run('age', keys.badHosts, host);
      return Number(age) < -1;
    },
    async learn(templateId, gpuType, measured) {
      await redis.hset(`${keys.speeds}${templateId}`, gpuType, JSON.stringify(measured));
    },
    async speeds(templateId) {
      const found = Object.entries(await redis.hgetall(`${keys.speeds}${templateId}`));
      return new Map(
        found.map(([type, text]) => [type, parseRecord(`speed of ${templateId}`, speed, text)]),
      );
    },
  };
}
