import { describeError } from '../domain/errors.ts';
import type { Part, PartBytes, PartResult, SegmentInfo } from '../domain/segment.ts';
import type { Answered } from './ask.ts';
import type { Budget } from './budget.ts';
import type { ChunkPool } from './chunk-pool.ts';
import type { Clock } from './clock.ts';
import type { LineTable } from './line-table.ts';
import { OpenSegment } from './open-segment.ts';
import type { GatheredPart } from './open-segment.ts';
import type { Room } from './room.ts';

/** A committed part, kept in case Redis loses the commit. */
interface KeptPart {
  segment: SegmentInfo;
  range: PartBytes;
  lines: LineTable;
}

/**
 * What this process holds of a shard, known by its token: it may hold one shard twice for a moment.
 * `holding` until every line is committed (`done`), or the store answers that the shard is not ours (`lost`).
 */
export interface Holder {
  readonly shard: number;
  readonly token: string;
  readonly lines: number;
  state: 'holding' | 'done' | 'lost';
  /** Lines without a commit, as Redis said last. */
  left: number;
  /** Answers without a commit yet. */
  pending: number;
  readonly kept: KeptPart[];
}

export interface SegmentDeps {
  clock: Clock;
  budget: Budget;
  room: Room;
  pool: ChunkPool;
  /** A fresh random name; never used again. */
  newSegmentId(): string;
  /** Stores a segment durably. */
  putSegment(
    jobId: string,
    segmentId: string,
    chunks: Buffer[],
  ): Promise<{ bytes: number; sha256: string }>;
  /** Commits parts of one segment; answers one result a part, in order. */
  commit(
    jobId: string,
    segment: SegmentInfo,
    parts: readonly Part[],
  ): Promise<readonly PartResult[]>;
  log: {
    warn(fields: object, message: string): void;
    error(fields: object, message: string): void;
  };
}

const MOST_SEGMENT_BYTES = 8 * 1024 * 1024;
const FIRST_INTERVAL_MS = 2_000;
const LONGEST_INTERVAL_MS = 10_000;
/** A segment that times out below this is small: the next one may gather for longer. */
const SMALL_SEGMENT_BYTES = 64 * 1024;
const LONGEST_RETRY_MS = 10_000;

/**
 * The open segment of one job in this process. Answers gather until they are many, old, or the last in hand; then
 * they are stored, and committed only after that. Segments of a job are written one after the other.
 */
export class SegmentWriter {
  readonly #jobId: string;
  readonly #deps: SegmentDeps;
  readonly #giveUp: AbortSignal;
  #open: OpenSegment<Holder>;
  #intervalMs = FIRST_INTERVAL_MS;
  #cancelTimer: (() => void) | null = null;
  #writing: Promise<void> = Promise.resolve();
  #written = Promise.withResolvers<void>();
  #pending = 0;

  /** `giveUp` ends the tries to store what storage or Redis refuses: the process has to stop. */
  constructor(jobId: string, deps: SegmentDeps, giveUp: AbortSignal) {
    this.#jobId = jobId;
    this.#deps = deps;
    this.#giveUp = giveUp;
    this.#open = new OpenSegment(deps.pool);
  }

  /** Answers that are not committed yet. */
  get pending(): number {
    return this.#pending;
  }

  add(holder: Holder, { answer, usage }: Answered): void {
    const { budget, clock } = this.#deps;
    const bytes = this.#open.add(holder, answer, usage);
    holder.pending += 1;
    this.#pending += 1;
    budget.add(bytes);
    if (this.#open.bytes >= MOST_SEGMENT_BYTES || budget.isOver()) void this.close();
    else this.#cancelTimer ??= clock.after(this.#intervalMs, () => this.#timeIsUp());
  }

  /**
   * Stores and commits what is gathered, after what is being written already. Resolves whether or not that worked:
   * a holder's state tells.
   */
  async close(): Promise<void> {
    this.#cancelTimer?.();
    this.#cancelTimer = null;
    const segment = this.#open;
    if (segment.rows > 0) {
      this.#open = new OpenSegment(this.#deps.pool);
      this.#writing = this.#writing.then(() => this.#write(segment));
    }
    await this.#writing;
  }

  /** Resolves when no answer of the holder waits to be written; its state tells what became of them. */
  async committed(holder: Holder): Promise<void> {
    while (holder.pending > 0) await this.#written.promise;
  }

  /**
   * Commits again what the store has forgotten of a holder: after a failover it may lack the newest commits.
   * The segments still lie in storage, so that nothing is asked twice.
   */
  async recommit(holder: Holder): Promise<void> {
    for (const part of holder.kept) {
      if (holder.state === 'holding') await this.#recommitPart(holder, part);
    }
  }

  #timeIsUp(): void {
    const small = this.#open.bytes < SMALL_SEGMENT_BYTES;
    this.#intervalMs = small
      ? Math.min(this.#intervalMs * 2, LONGEST_INTERVAL_MS)
      : FIRST_INTERVAL_MS;
    void this.close();
  }

  async #write(open: OpenSegment<Holder>): Promise<void> {
    const { rows, bytes } = open;
    const holders = [...open.holders()];
    try {
      const { chunks, parts } = open.encode();
      open.release();
      const id = this.#deps.newSegmentId();
      const stored = await this.#persist(() => this.#deps.putSegment(this.#jobId, id, chunks));
      await this.#commit({ id, ...stored }, parts);
    } catch (error) {
      // Nothing is lost: lines without a commit are asked again by whoever holds them next.
      const reason = describeError(error);
      this.#deps.log.error({ jobId: this.#jobId, lines: rows, reason }, 'answers given up');
      for (const [holder] of holders) holder.state = 'lost';
    } finally {
      for (const [holder, answers] of holders) holder.pending -= answers;
      this.#pending -= rows;
      this.#deps.budget.remove(bytes);
      this.#written.resolve();
      this.#written = Promise.withResolvers();
    }
  }

  async #commit(segment: SegmentInfo, gathered: readonly GatheredPart<Holder>[]): Promise<void> {
    const parts = gathered.map(({ holder, range, lines }) =>
      toPart(holder, { segment, range, lines }),
    );
    const results = await this.#persist(() => this.#deps.commit(this.#jobId, segment, parts));
    for (const [index, { holder, range, lines }] of gathered.entries()) {
      const result = results[index];
      if (result?.outcome === 'committed') {
        holder.kept.push({ segment, range, lines });
        holder.left = result.left;
        if (result.left === 0) holder.state = 'done';
        continue;
      }
      holder.state = 'lost';
      if (result?.outcome === 'overlap') {
        const fields = { jobId: this.#jobId, shard: holder.shard };
        this.#deps.log.error(fields, 'a line was answered twice under one token');
      }
    }
  }

  /** A line that others answered meanwhile is left out; the assembler takes the first answer of a line. */
  async #recommitPart(holder: Holder, kept: KeptPart): Promise<void> {
    let done: Buffer | null = null;
    for (;;) {
      const part = toPart(holder, kept, done);
      if (part.ok + part.failed === 0) return;
      const [result] = await this.#persist(() =>
        this.#deps.commit(this.#jobId, kept.segment, [part]),
      );
      if (result?.outcome === 'overlap') {
        ({ done } = result);
        continue;
      }
      if (result?.outcome === 'committed') holder.left = result.left;
      else holder.state = 'lost';
      if (holder.state === 'holding' && holder.left === 0) holder.state = 'done';
      return;
    }
  }

  /** Tries until it works, since what is in hand was paid for; nothing more is sent meanwhile. */
  async #persist<T>(attempt: () => Promise<T>): Promise<T> {
    const { clock, log, room } = this.#deps;
    for (let delay = 250; ; delay = Math.min(delay * 2, LONGEST_RETRY_MS)) {
      try {
        const result = await attempt();
        room.setClosed(this, false);
        return result;
      } catch (error) {
        room.setClosed(this, true);
        const fields = { jobId: this.#jobId, reason: describeError(error) };
        log.warn(fields, 'answers cannot be stored, trying again');
        await clock.sleep(delay, this.#giveUp);
        if (this.#giveUp.aborted) room.setClosed(this, false);
        this.#giveUp.throwIfAborted();
      }
    }
  }
}

/** A part as it is committed, without the lines that `done` has. */
function toPart({ shard, token, lines }: Holder, kept: KeptPart, done: Buffer | null = null): Part {
  return { n: shard, token, ...kept.lines.tally(lines, done), ...kept.range };
}
