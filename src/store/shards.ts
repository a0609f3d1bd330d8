import * as v from 'valibot';
import { permanent } from '../domain/errors.ts';
import type { BadLines, ShardPlan } from '../domain/plan.ts';
import { countBits } from '../domain/segment.ts';
import type { AcceptedShard, LostParts, Part, PartResult, SegmentInfo } from '../domain/segment.ts';
import { jobKey, recordKey, shardKey } from './keys.ts';
import type { Context } from './records.ts';
import { wakeReply } from './records.ts';
import { newOp } from './scripts.ts';
import {
  commitReply,
  formatEngines,
  parseAccepted,
  parseSegment,
  pendingReply,
  SHARD_FIELDS,
  takeReply,
  waitingReply,
} from './shard-record.ts';

/** A shard that waits or is held; the id of its queue job is `<job>-<n>.dispatch.<wake>`. */
export interface ShardWake {
  n: number;
  wake: number;
}

export type Taken =
  | {
      outcome: 'taken';
      plan: ShardPlan;
      done: Buffer;
      /** Lines that no engine is to be asked; null: none. */
      bad: Buffer | null;
      left: number;
      /** How often it was taken since the last commit, this time included, and not given back. */
      takes: number;
      /** A line (index within the shard) that was alone in hand of holders that died; `at` is when the last did. */
      crashed: { line: number; deaths: number; at: number } | null;
      waiting: ShardWake[];
    }
  | { outcome: 'stale'; waiting: ShardWake[] }
  | { outcome: 'not now' };

/** Shards of jobs. Where `waiting` is returned, its queue jobs are to be added: those that are there stay as they are. */
export interface Shards {
  /** Writes what planning knows of shards; may be repeated at any time, also while they are worked on. */
  write(jobId: string, shards: readonly ShardPlan[]): Promise<void>;
  /** Writes which lines of shards are bad; like `write`, and before the job leaves planning. */
  markBad(jobId: string, shards: readonly BadLines[]): Promise<void>;
  /** Lets `ahead` shards wait, if the job is in progress, and returns all that wait. */
  open(jobId: string, ahead: number): Promise<ShardWake[]>;
  /**
   * Makes `token`, a fresh random one, the only one that may commit, and opens the next shards.
   * `stale`: the wake is another one, or the shard is done or given back. `not now`: the job is not in progress, or
   * paused, or its deadline is over.
   * Deaths of holders with one line alone in hand count where they are `apartMs` apart.
   * A shard that was never planned is `store.damaged_record` (Permanent).
   */
  take(
    jobId: string,
    shard: ShardWake,
    token: string,
    ahead: number,
    apartMs?: number,
  ): Promise<Taken>;
  /** Notes which line is alone in the holder's hand from now on, until a commit or `give`; false: the token does not hold it. */
  markAlone(jobId: string, n: number, token: string, line: number): Promise<boolean>;
  /**
   * Accepts the parts of a segment that storage has, each whole or not at all; results are in the order of `parts`.
   * `last`: every shard of the job is done. A mask of another length than the shard's is `store.bad_mask` (Permanent),
   * as is one whose bits are not as many as its answers.
   */
  commit(
    jobId: string,
    segment: SegmentInfo,
    parts: readonly Part[],
  ): Promise<{ last: boolean; parts: PartResult[] }>;
  /**
   * Takes back what a job that is `finalizing` counted of lost parts, and returns its new version: who ends the job
   * has to read again. Nothing changes and it is `stale` where the job moved on, or the parts are struck out already.
   * Where lines cannot be told apart, the whole shard is taken back. `message` is for the job's history; '' for none.
   * A lost part whose counts were never recorded is `store.damaged_record` (Permanent).
   */
  strike(
    job: { id: string; version: number },
    lost: Pick<LostParts, 'n' | 'lost' | 'rest'>,
    message: string,
  ): Promise<number | 'stale'>;
  /** Forgets those of the segments of which no part is accepted any more. */
  forgetSegments(jobId: string, segments: Iterable<string>): Promise<void>;
  /** Gives back what the token holds, if it does, opens shards and returns all that wait. */
  give(jobId: string, n: number, token: string, ahead: number): Promise<ShardWake[]>;
  /** Lets a queued or held shard wait under a new wake, which is returned; its holder may commit until it is taken. */
  rewake(jobId: string, shard: ShardWake): Promise<number | 'stale'>;
  /** Shards queued and held; `at` is since when, Redis time in ms. */
  pending(jobId: string): Promise<{ n: number; wake: number; at: number; held: boolean }[]>;
  /** How many shards are held. */
  held(jobId: string): Promise<number>;
  /** Shards `from` to `to`, end excluded, in order, for the assembler; a damaged one ends it with an error. */
  accepted(jobId: string, from: number, to: number): AsyncIterable<AcceptedShard>;
  /** The segments of which a part was accepted. */
  segments(jobId: string): Promise<Map<string, { bytes: number; sha256: string }>>;
}

/** What kills all processes at once, as a full machine does, is not a line. */
const CRASH_APART_MS = 10_000;

/** Records that are written or read with one breath; bounds memory, and what waits in the client. */
const AT_ONCE = 200;

export function createShards(context: Context): Shards {
  const { redis, scripts } = context;
  return {
    write: async (jobId, shards) =>
      writeEach(shards, ({ n, first, lines, offset, bytes }) =>
        redis.hset(shardKey(jobId, n), { first, lines, offset, bytes }),
      ),
    markBad: async (jobId, shards) =>
      writeEach(shards, ({ n, bad }) => redis.hset(shardKey(jobId, n), { bad })),
    open: async (jobId, ahead) =>
      v.parse(waitingReply, await scripts.run('open', recordKey(jobId), ahead)),
    async take(jobId, { n, wake }, token, ahead, apartMs = CRASH_APART_MS) {
      const args = [n, wake, token, ahead, apartMs];
      return takeReply(jobId, n, await scripts.runBinary('take', recordKey(jobId), ...args));
    },
    markAlone: async (jobId, n, token, line) =>
      (await scripts.run('alone', recordKey(jobId), n, token, line)) === 1,
    commit: (jobId, segment, parts) => commitSegment(context, jobId, segment, parts),
    async strike({ id, version }, { n, lost, rest }, message) {
      const parts = lost.flatMap(({ segment, offset }) => [segment, offset]);
      const args = [newOp(), version, n, rest, message, ...parts];
      return wakeReply(await scripts.run('strike', recordKey(id), ...args));
    },
    async forgetSegments(jobId, segments) {
      for (const id of segments) await redis.hdel(jobKey(jobId, 'SEGMENTS'), id);
    },
    give: async (jobId, n, token, ahead) =>
      v.parse(waitingReply, await scripts.run('give', recordKey(jobId), n, token, ahead)),
    rewake: async (jobId, { n, wake }) =>
      wakeReply(await scripts.run('rewake', recordKey(jobId), n, wake, newOp())),
    pending: async (jobId) => v.parse(pendingReply, await scripts.run('pending', recordKey(jobId))),
    held: (jobId) => redis.zcard(jobKey(jobId, 'HELD')),
    accepted: (jobId, from, to) => readAccepted(context, jobId, from, to),
    async segments(jobId) {
      const entries = Object.entries(await redis.hgetall(jobKey(jobId, 'SEGMENTS')));
      return new Map(entries.map(([id, text]) => [id, parseSegment(jobId, id, text)]));
    },
  };
}

/** Single commands: of a pipeline that a lost connection cuts in two, ioredis sends the rest not again. */
async function writeEach<T>(
  shards: readonly T[],
  write: (shard: T) => Promise<unknown>,
): Promise<void> {
  for (let start = 0; start < shards.length; start += AT_ONCE) {
    await Promise.all(shards.slice(start, start + AT_ONCE).map(write));
  }
}

async function commitSegment(
  { scripts }: Context,
  jobId: string,
  segment: SegmentInfo,
  parts: readonly Part[],
): ReturnType<Shards['commit']> {
  const args = parts.flatMap((part) => {
    const { n, token, mask, ok, failed, usage, offset, length, crc, engines = [] } = part;
    if (countBits(mask) !== ok + failed) {
      throw permanent(
        'store.bad_mask',
        `a part of shard ${n} of ${jobId} has ${ok + failed} answers and ${countBits(mask)} bits`,
      );
    }
    const { inputTokens, cachedTokens, outputTokens, reasoningTokens } = usage;
    const tokens = [inputTokens, cachedTokens, outputTokens, reasoningTokens];
    const range = [offset, length, crc];
    return [n, token, mask, ok, failed, ...tokens, ...range, formatEngines(engines)];
  });
  const { id, bytes, sha256 } = segment;
  const key = recordKey(jobId);
  const reply = await scripts.runBinary('commit', key, id, bytes, sha256, ...args);
  const [last, ...results] = v.parse(commitReply, reply);
  return { last: last === 1, parts: results };
}

async function* readAccepted(
  { redis }: Context,
  jobId: string,
  from: number,
  to: number,
): AsyncIterable<AcceptedShard> {
  for (let start = from; start < to; start += AT_ONCE) {
    const numbers = Array.from({ length: Math.min(AT_ONCE, to - start) }, (_, i) => start + i);
    const found = await Promise.all(
      numbers.map((n) => redis.hmgetBuffer(shardKey(jobId, n), ...SHARD_FIELDS)),
    );
    for (const [i, n] of numbers.entries()) yield parseAccepted(jobId, n, found[i] ?? []);
  }
}
