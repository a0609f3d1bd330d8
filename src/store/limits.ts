import * as v from 'valibot';
import { blockOf, CATCH_UP_MS } from '../domain/rate-limit.ts';
import type { Bucket, Draw, Drawn } from '../domain/rate-limit.ts';
import { replyNumber } from './parse.ts';
import type { Context } from './records.ts';

/** Long enough for a client that lost its connection to send a command again. */
const REPLY_KEPT_MS = 60_000;

/** Token buckets that all processes share. A bucket is made by its first draw, and vanishes when nobody uses it. */
export interface Limits {
  /**
   * Gives units back to the bucket of this name and draws others, a block (100 ms) at most unless `most` says otherwise; `perSecond` is the limit.
   * The same `op` again gets the same reply and changes nothing, for a minute. `bucket` is what the draw left.
   */
  draw(
    name: string,
    op: string,
    perSecond: number,
    units: Draw,
  ): Promise<Drawn & { bucket: Bucket }>;
}

const float = v.pipe(v.string(), v.transform(Number), v.finite());
const drawn = v.tuple([replyNumber, replyNumber, float, float, float]);

export function createLimits({ scripts, keys }: Context): Limits {
  return {
    async draw(name, op, perSecond, { want, back, need, most = blockOf(perSecond) }) {
      const reply = await scripts.run(
        'limit-draw',
        keys.limit(name),
        op,
        perSecond,
        want,
        back,
        need,
        most,
        CATCH_UP_MS,
        REPLY_KEPT_MS,
      );
      const [granted, waitMs, level, at, hungryAt] = v.parse(drawn, reply);
      return { granted, waitMs, bucket: { level, at, hungryAt } };
    },
  };
}
