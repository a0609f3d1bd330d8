import type { EngineTally, PartBytes } from '../segment.ts';
import type { Usage } from '../job.ts';
import type { ShardPlan } from '../plan.ts';
import { runPrefix } from '../worker-progress.ts';

/**
 * The record of a run of batch workers without Redis, as objects below one prefix for the Job. Nothing of it is ever
 * written twice with another content, so that any number of pods may write it at once:
 * - the plan is made from the input alone: who plans again writes the same bytes
 * - a writer (one process of one pod) has a name of its own, and numbers its segments from 1, one after the other; a
 *   segment counts once its commit is there
 * - of several seals of an index the one that was written first counts, and says which commits do
 */
export interface RunPlan {
  /** Hex digest of the plan as it is stored; commits name it, and those of another plan count for nothing. */
  sha256: string;
  inputKey: string;
  inputBytes: number;
  /** Distinct models of the lines that can be asked. */
  models: string[];
  lines: number;
  shards: readonly ShardPlan[];
  /** Of shards that have lines which cannot be asked, those as bits. */
  bad: ReadonlyMap<number, Buffer>;
}

/** One process that answers lines. */
export interface RunWriter {
  /** `<pod uid>.<random>` */
  name: string;
  index: number;
  /** How many had begun with the index before it, and one. */
  attempt: number;
}

/** The answers of one shard in a segment. */
export interface CommitPart extends PartBytes {
  n: number;
  /** Bits of the lines that it answers. */
  mask: Buffer;
  ok: number;
  failed: number;
  usage: Usage;
  engines: readonly EngineTally[];
}

/** What a segment has, written after it. */
export interface Commit {
  /** Its number among those of its writer, from 1. */
  sequence: number;
  bytes: number;
  /** Hex. */
  sha256: string;
  parts: readonly CommitPart[];
}

/** What an index of the run comes to: nothing that is not in it counts any more. */
export interface Seal {
  outcome: 'completed' | 'expired' | 'failed' | 'cancelled';
  /** Each with how many of its commits count, from the first, but for the lost ones. */
  writers: readonly (RunWriter & { commits: number; lost: readonly number[] })[];
  usage: Usage;
  /** When the first line was sent, and when the last answer was in; ms. */
  inProgressAt: number | null;
  at: number;
  /** Why it failed. */
  errors: readonly { code: string; message: string; line: number | null; param: string | null }[];
}

export const NO_USAGE: Usage = {
  inputTokens: 0,
  cachedTokens: 0,
  outputTokens: 0,
  reasoningTokens: 0,
};

export function addUsage(sum: Usage, more: Usage): Usage {
  return {
    inputTokens: sum.inputTokens + more.inputTokens,
    cachedTokens: sum.cachedTokens + more.cachedTokens,
    outputTokens: sum.outputTokens + more.outputTokens,
    reasoningTokens: sum.reasoningTokens + more.reasoningTokens,
  };
}

/** Which index of an Indexed Job answers a shard: they take turns, since neighbours are often alike. */
export function indexOfShard(n: number, indexes: number): number {
  return n % indexes;
}

export function planKey(uid: string): string {
  return `${runPrefix(uid)}plan.json`;
}

export function writersPrefix(uid: string, index: number): string {
  return `${runPrefix(uid)}writers/${index}/`;
}

export function writerKey(uid: string, { index, name }: Pick<RunWriter, 'index' | 'name'>): string {
  return `${writersPrefix(uid, index)}${name}.json`;
}

export function commitsPrefix(uid: string, writer: string): string {
  return `${runPrefix(uid)}commits/${writer}/`;
}

/** Digits enough for an answer a millisecond over a year, so that names sort as numbers do. */
export function sequenceName(sequence: number): string {
  return String(sequence).padStart(11, '0');
}

export function commitKey(uid: string, writer: string, sequence: number): string {
  return `${commitsPrefix(uid, writer)}${sequenceName(sequence)}.json`;
}

export function runSegmentKey(uid: string, segment: string): string {
  return `${runPrefix(uid)}segments/${segment}`;
}

/** A segment's name within the record. */
export function segmentName(writer: string, sequence: number): string {
  return `${writer}/${sequenceName(sequence)}`;
}

export function lostPrefix(uid: string): string {
  return `${runPrefix(uid)}lost/`;
}

/** Says that storage has lost a segment: its commit counts for nothing, and no seal does that has it. */
export function lostKey(uid: string, writer: string, sequence: number): string {
  return `${lostPrefix(uid)}${segmentName(writer, sequence)}`;
}

export function sealsPrefix(uid: string, index: number): string {
  return `${runPrefix(uid)}seals/${index}/`;
}

export function sealKey(uid: string, index: number, writer: string): string {
  return `${sealsPrefix(uid, index)}${writer}.json`;
}

/** Whether a seal counts on a segment that is lost. */
export function isVoid({ writers }: Seal, lost: ReadonlySet<string>): boolean {
  return writers.some(({ name, commits, lost: known }) =>
    [...lost].some((segment) => {
      const [writer, number] = segment.split('/');
      const sequence = Number(number);
      return writer === name && sequence <= commits && !known.includes(sequence);
    }),
  );
}
