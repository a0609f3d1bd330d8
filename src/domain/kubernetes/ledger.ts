import type { Usage } from '../job.ts';
import { countBits, isSet } from '../segment.ts';
import type { AcceptedShard, EngineTally } from '../segment.ts';
import type { ShardPlan } from '../plan.ts';
import { addUsage, NO_USAGE, segmentName } from './run-record.ts';
import type { Commit, RunPlan, RunWriter, Seal } from './run-record.ts';

interface LedgerPart {
  writer: RunWriter;
  sequence: number;
  offset: number;
  length: number;
  crc: number;
  engines: readonly EngineTally[];
}

interface LedgerShard {
  plan: ShardPlan;
  done: Buffer;
  left: number;
  parts: LedgerPart[];
}

/** Which lines have an answer, and where: what all commits that a process has seen come to, in whatever order they came. */
export interface Ledger {
  readonly plan: RunPlan;
  /** Lines answered, each counted once. Where pods answered a line twice, which of its answers counts is not known yet. */
  readonly completed: number;
  readonly failed: number;
  /** What answering took, twice where it was done twice. */
  readonly usage: Usage;
  /** Counts a commit in; one that it has already changes nothing. */
  add(writer: RunWriter, commit: Commit): void;
  /** Notes a commit whose segment is lost. */
  lose(writer: RunWriter, sequence: number): void;
  /** How many commits of a writer it has, counted from the first without a gap. */
  commitsOf(writer: string): number;
  leftOf(n: number): number;
  doneOf(n: number): Buffer;
  /** A shard for the assembler: its parts in the order in which they count. */
  accepted(n: number): AcceptedShard;
  /** What it has, as a seal says it. */
  writers(): Seal['writers'];
}

/** By attempt first: who came later answers again only what had been lost sight of. */
function byTurn(a: LedgerPart, b: LedgerPart): number {
  if (a.writer.attempt !== b.writer.attempt) return a.writer.attempt - b.writer.attempt;
  if (a.sequence !== b.sequence) return a.sequence - b.sequence;
  if (a.writer.name === b.writer.name) return 0;
  return a.writer.name < b.writer.name ? -1 : 1;
}

interface KnownWriter {
  writer: RunWriter;
  sequences: Set<number>;
  upTo: number;
  lost: number[];
}

/** Which commits of which writers were seen. */
function createAttendance() {
  const writers = new Map<string, KnownWriter>();

  function known(writer: RunWriter): KnownWriter {
    const found = writers.get(writer.name);
    if (found !== undefined) return found;
    const fresh = { writer, sequences: new Set<number>(), upTo: 0, lost: [] };
    writers.set(writer.name, fresh);
    return fresh;
  }

  /** False where it was seen before. */
  function note(writer: RunWriter, sequence: number): boolean {
    const seen = known(writer);
    if (sequence <= seen.upTo || seen.sequences.has(sequence)) return false;
    seen.sequences.add(sequence);
    while (seen.sequences.delete(seen.upTo + 1)) seen.upTo += 1;
    return true;
  }

  return {
    note,
    lose(writer: RunWriter, sequence: number): void {
      if (note(writer, sequence)) known(writer).lost.push(sequence);
    },
    upTo: (name: string) => writers.get(name)?.upTo ?? 0,
    list: (): Seal['writers'] =>
      [...writers.values()].map(({ writer, upTo, lost }) => ({
        ...writer,
        commits: upTo,
        lost: lost.toSorted((a, b) => a - b),
      })),
  };
}

export function createLedger(plan: RunPlan): Ledger {
  const shards = plan.shards.map(openShard);
  const attendance = createAttendance();
  const totals = { completed: 0, failed: 0, usage: NO_USAGE };
  return {
    plan,
    get completed() {
      return totals.completed;
    },
    get failed() {
      return totals.failed;
    },
    get usage() {
      return totals.usage;
    },
    add(writer, { sequence, parts }) {
      if (!attendance.note(writer, sequence)) return;
      for (const { n, mask, ok, failed, usage, offset, length, crc, engines } of parts) {
        const shard = shardAt(shards, n);
        const fresh = merge(shard, mask);
        shard.parts.push({ writer, sequence, offset, length, crc, engines });
        // Which of a line's two answers counts is decided when files are written; until then these are for people.
        const failedNow = Math.min(failed, Math.round((failed * fresh) / (ok + failed || 1)));
        totals.failed += failedNow;
        totals.completed += fresh - failedNow;
        totals.usage = addUsage(totals.usage, usage);
      }
    },
    lose: attendance.lose,
    commitsOf: attendance.upTo,
    leftOf: (n) => shardAt(shards, n).left,
    doneOf: (n) => Buffer.from(shardAt(shards, n).done),
    accepted(n) {
      const { plan: shard, done, parts } = shardAt(shards, n);
      const inTurn = parts.toSorted(byTurn).map(({ writer, sequence, ...part }) => ({
        ...part,
        segment: segmentName(writer.name, sequence),
      }));
      return { plan: shard, done, bad: plan.bad.get(n) ?? null, parts: inTurn };
    },
    writers: attendance.list,
  };
}

function openShard(plan: ShardPlan): LedgerShard {
  return { plan, done: Buffer.alloc(Math.ceil(plan.lines / 8)), left: plan.lines, parts: [] };
}

function shardAt(shards: readonly LedgerShard[], n: number): LedgerShard {
  const shard = shards[n];
  if (shard === undefined) throw new Error(`the plan has no shard ${n}`);
  return shard;
}

/** Adds what a part answers, and returns how many lines of it were open. */
function merge(shard: LedgerShard, mask: Buffer): number {
  const before = shard.left;
  for (let at = 0; at < shard.done.length; at += 1) {
    shard.done[at] = (shard.done[at] ?? 0) | (mask[at] ?? 0);
  }
  shard.left = shard.plan.lines - countBits(shard.done);
  return before - shard.left;
}

/** Whether a mask is one of a shard's: as long as its bitmap, and with no line beyond its last. */
export function fitsShard(mask: Buffer, { lines }: ShardPlan): boolean {
  if (mask.length !== Math.ceil(lines / 8)) return false;
  for (let line = lines; line < mask.length * 8; line += 1) if (isSet(mask, line)) return false;
  return true;
}
