import * as v from 'valibot';
import { replyNumber } from './parse.ts';
import type { Context } from './records.ts';
import { newOp } from './scripts.ts';

/** What is kept of a request that succeeded. `print` tells it from another request under the same key. */
export interface KeptAnswer {
  print: string;
  /** HTTP status; null while the request still runs. */
  status: number | null;
  /** As it was given to `answer`. */
  body: Buffer;
}

/** Requests by their idempotency keys. A key is any text; it is held by one request at a time. */
export interface Idempotency {
  /**
   * Takes the key for `leaseMs`, and returns who has it now; or what another request under this key left or is about
   * to leave. A holder that neither renews nor answers loses the key, so that a process that died blocks nobody.
   */
  claim(
    key: string,
    print: string,
    leaseMs: number,
  ): Promise<{ holder: string } | { found: KeptAnswer }>;
  /** Holds on for `leaseMs` from now; does nothing once the key is lost or answered. */
  renew(key: string, holder: string, leaseMs: number): Promise<void>;
  /**
   * Keeps the answer for `keepMs`; false when the key was lost meanwhile. `about` are ids of what it tells of, and with
   * which it is to go.
   */
  answer(
    key: string,
    holder: string,
    { print, status, body }: KeptAnswer & { status: number },
    keepMs: number,
    about?: readonly string[],
  ): Promise<boolean>;
  /** Forgets all kept answers that tell of this id. */
  eraseAbout(id: string): Promise<void>;
  /** Gives the key back, as if the request had never come. */
  free(key: string, holder: string): Promise<void>;
  /**
   * The seed from which what this request creates gets its id, kept for `keepMs`: `fresh`, or for a retry the one of
   * the last request of this print, so that both create the same.
   */
  seed(print: string, fresh: string, isRetry: boolean, keepMs: number): Promise<string>;
}

const claimed = v.union([
  v.tuple([v.instance(Buffer), v.instance(Buffer), v.instance(Buffer)]),
  v.tuple([]),
]);

export function createIdempotency({ redis, scripts, keys }: Context): Idempotency {
  const keyOf = (key: string): string => keys.idempotency + key;
  return {
    async claim(key, print, leaseMs) {
      const holder = newOp();
      const reply = await scripts.runBinary(
        'idempotency-claim',
        keyOf(key),
        holder,
        print,
        leaseMs,
      );
      const [found, status, body] = v.parse(claimed, reply);
      if (found === undefined || status === undefined || body === undefined) return { holder };
      const answered = status.length === 0 ? null : v.parse(replyNumber, status);
      return { found: { print: found.toString(), status: answered, body } };
    },
    async renew(key, holder, leaseMs) {
      await scripts.run('idempotency-renew', keyOf(key), holder, leaseMs);
    },
    async answer(key, holder, { print, status, body }, keepMs, about = []) {
      // Index first: what is kept is always found again.
      for (const id of about) {
        await redis.sadd(keys.answers + id, key);
        await redis.pexpire(keys.answers + id, keepMs);
      }
      const reply = await scripts.run(
        'idempotency-answer',
        keyOf(key),
        holder,
        print,
        status,
        body,
        keepMs,
      );
      return v.parse(replyNumber, reply) === 1;
    },
    async eraseAbout(id) {
      const kept = await redis.smembers(keys.answers + id);
      await Promise.all(kept.map((key) => redis.del(keyOf(key))));
      await redis.del(keys.answers + id);
    },
    async free(key, holder) {
      await scripts.run('idempotency-renew', keyOf(key), holder, 0);
    },
    async seed(print, fresh, isRetry, keepMs) {
      const key = keys.seeds + print;
      if (!isRetry) {
        await redis.set(key, fresh, 'PX', keepMs);
        return fresh;
      }
      await redis.set(key, fresh, 'PX', keepMs, 'NX');
      return (await redis.get(key)) ?? fresh;
    },
  };
}
