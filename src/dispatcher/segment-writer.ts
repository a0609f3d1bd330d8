import { describeError } from '../domain/errors.ts';
import type { Usage } from '../domain/job.ts';
import type { Answered } from './ask.ts';
import type { Budget } from './budget.ts';
import type { Clock } from './clock.ts';
import type { PartRange } from './contract.ts';
import type { Room } from './room.ts';
import { encodeSegment } from './segments.ts';
import { addUsage, NO_USAGE } from './usage.ts';

type PartBytes = Pick<PartRange, 'offset' | 'length' | 'crc'>;

/** One line of a committed part, kept in case Redis loses the commit. */
interface KeptLine {
  line: number;
  ok: boolean;
  usage: Usage;
}

interface KeptPart {
  segment: SegmentInfo;
  range: PartBytes;
  lines: readonly KeptLine[];
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

export interface SegmentInfo {
  id: string;
  bytes: number;
  sha256: string;
}

export interface Part {
  n: number;
  token: string;
  mask: Buffer;
  ok: number;
  failed: number;
  usage: Usage;
  offset: number;
  length: number;
  crc: number;
}

export type PartResult =
  | { outcome: 'committed'; left: number }
  | { outcome: 'sealed' | 'stale' }
  | { outcome: 'overlap'; done: Buffer };

export interface SegmentDeps {
  clock: Clock;
  budget: Budget;
  room: Room;
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

interface Gathered {
  holder: Holder;
  answered: Answered;
}

/**
 * The open segment of one job in this process. Answers gather until they are many, old, or the last in hand; then
 * they are stored, and committed only after that. Segments of a job are written one after the other.
 */
export class SegmentWriter {
  readonly #jobId: string;
  readonly #deps: SegmentDeps;
  readonly #giveUp: AbortSignal;
  #gathered: Gathered[] = [];
  #bytes = 0;
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
  }

  /** Answers that are not committed yet. */
  get pending(): number {
    return this.#pending;
  }

  add(holder: Holder, answered: Answered): void {
    const { budget, clock } = this.#deps;
    const { length } = answered.answer.bytes;
    this.#gathered.push({ holder, answered });
    holder.pending += 1;
    this.#pending += 1;
    this.#bytes += length;
    budget.add(length);
    if (this.#bytes >= MOST_SEGMENT_BYTES || budget.isOver()) void this.close();
    else this.#cancelTimer ??= clock.after(this.#intervalMs, () => this.#timeIsUp());
  }

  /**
   * Stores and commits what is gathered, after what is being written already. Resolves whether or not that worked:
   * a holder's state tells.
   */
  async close(): Promise<void> {
    this.#cancelTimer?.();
    this.#cancelTimer = null;
    const batch = this.#gathered;
    const bytes = this.#bytes;
    this.#gathered = [];
    this.#bytes = 0;
    if (batch.length > 0) this.#writing = this.#writing.then(() => this.#write(batch, bytes));
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
    const small = this.#bytes < SMALL_SEGMENT_BYTES;
    this.#intervalMs = small
      ? Math.min(this.#intervalMs * 2, LONGEST_INTERVAL_MS)
      : FIRST_INTERVAL_MS;
    void this.close();
  }

  async #write(batch: readonly Gathered[], bytes: number): Promise<void> {
    const answersOf = new Map<Holder, Answered[]>();
    for (const { holder, answered } of batch) {
      const answers = answersOf.get(holder);
      if (answers === undefined) answersOf.set(holder, [answered]);
      else answers.push(answered);
    }
    const groups = [...answersOf];
    try {
      const encoded = encodeSegment(
        groups.map(([{ shard }, all]) => ({
          shard,
          answers: all.map(({ answer }) => answer),
        })),
      );
      const id = this.#deps.newSegmentId();
      const stored = await this.#persist(() =>
        this.#deps.putSegment(this.#jobId, id, encoded.bytes),
      );
      const parts = groups.map(([holder, all], index) => {
        const range = encoded.parts[index];
        if (range === undefined) throw new Error('a segment has one part for each holder');
        return { holder, part: keep({ id, ...stored }, range, all) };
      });
      await this.#commit({ id, ...stored }, parts);
    } catch (error) {
      // Nothing is lost: lines without a commit are asked again by whoever holds them next.
      const reason = describeError(error);
      this.#deps.log.error({ jobId: this.#jobId, lines: batch.length, reason }, 'answers given up');
      for (const [holder] of groups) holder.state = 'lost';
    } finally {
      for (const { holder } of batch) holder.pending -= 1;
      this.#pending -= batch.length;
      this.#deps.budget.remove(bytes);
      this.#written.resolve();
      this.#written = Promise.withResolvers();
    }
  }

  async #commit(
    segment: SegmentInfo,
    parts: readonly { holder: Holder; part: KeptPart }[],
  ): Promise<void> {
    const results = await this.#persist(() =>
      this.#deps.commit(
        this.#jobId,
        segment,
        parts.map(({ holder, part }) => toPart(holder, part)),
      ),
    );
    for (const [index, { holder, part }] of parts.entries()) {
      const result = results[index];
      if (result?.outcome === 'committed') {
        holder.kept.push(part);
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
  async #recommitPart(holder: Holder, part: KeptPart): Promise<void> {
    let { lines } = part;
    while (lines.length > 0) {
      const parts = [toPart(holder, { ...part, lines })];
      const [result] = await this.#persist(() =>
        this.#deps.commit(this.#jobId, part.segment, parts),
      );
      if (result?.outcome === 'overlap') {
        const { done } = result;
        lines = lines.filter(({ line }) => !isSet(done, line));
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

function keep(segment: SegmentInfo, range: PartBytes, answered: readonly Answered[]): KeptPart {
  const lines = answered.map(({ answer, usage }) => ({
    line: answer.line,
    ok: answer.kind === 'output',
    usage,
  }));
  return { segment, range, lines };
}

function toPart(holder: Holder, { range, lines }: KeptPart): Part {
  const mask = Buffer.alloc(Math.ceil(holder.lines / 8));
  let usage = NO_USAGE;
  let ok = 0;
  for (const each of lines) {
    mask[each.line >> 3] = (mask[each.line >> 3] ?? 0) | (1 << (each.line & 7));
    usage = addUsage(usage, each.usage);
    if (each.ok) ok += 1;
  }
  const { offset, length, crc } = range;
  return {
    n: holder.shard,
    token: holder.token,
    mask,
    ok,
    failed: lines.length - ok,
    usage,
    offset,
    length,
    crc,
  };
}

/** Whether a done-bitmap has the bit of a line. */
export function isSet(bitmap: Buffer, line: number): boolean {
  return (((bitmap[line >> 3] ?? 0) >> (line & 7)) & 1) === 1;
}
