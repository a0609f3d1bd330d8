import type { Cut, JobError } from '../domain/job.ts';
import { isProblem, MAX_REPORTED_ERRORS } from '../domain/plan.ts';
import type { BadLines, CheckedLine, LineRules, Problem, ShardPlan } from '../domain/plan.ts';
import { createBadMarks } from './bad-marks.ts';
import type { BadMarks } from './bad-marks.ts';
import { checkInputLine, tooManyModels } from './check-line.ts';
import { readLines } from './lines.ts';
import type { InputLine } from './lines.ts';
import { createModelSeats, lineOf, seatOf, withSeat } from './model-seats.ts';
import type { ModelSeats } from './model-seats.ts';
import type { Duplicate, UniqueIds } from './unique-ids.ts';

export interface ReadPlanOptions extends LineRules {
  cut: Cut;
  maxLines: number;
  maxLineBytes: number;
  uniqueIds: UniqueIds;
  /** Takes shards a page at a time, in order; the next page is read when it is done. */
  onShards(shards: readonly ShardPlan[]): Promise<void>;
  /**
   * Takes the bad lines of those shards that have any, after all shards, a page at a time. Null where one bad line
   * makes the whole input bad: then nothing is cut any more after the first one.
   */
  onBadLines: ((shards: readonly BadLines[]) => Promise<void>) | null;
  /** Hears of every line that can be asked, and of those that are found to be duplicates later. */
  onLine?: (line: CheckedLine) => void;
  signal: AbortSignal;
}

/** What one pass over the input found; unless bad lines are taken, shards are of use only without problems. */
export interface ReadPlan {
  lines: number;
  shards: number;
  /** Those that lines name which can be asked, in their order. */
  models: string[];
  /** Lines that cannot be asked. */
  bad: number;
  /** The first problems by line; duplicates are not among them where bad lines are taken. */
  problems: JobError[];
  /** How many problems there are: the bad lines, and one for the input as a whole. */
  total: number;
  /** What is wrong with the input as a whole, which no bad line can be blamed for. */
  unfit: JobError | null;
}

const PAGE = 500;

/**
 * Validates a whole input and cuts it into shards in one streaming pass. The cut depends on nothing but input and
 * `cut`: whoever reads it again cuts alike. Reads to the end, so that all problems are counted, but not past `maxLines`.
 * Of lines with one custom_id the first that can be asked is asked, the others are bad.
 */
export async function readPlan(
  source: AsyncIterable<Uint8Array>,
  options: ReadPlanOptions,
): Promise<ReadPlan> {
  const { maxLines, maxLineBytes, onBadLines, signal } = options;
  const pass = begin(options);
  const { findings, cutter, marks } = pass;
  let lines = 0;
  for await (const batch of readLines(source, { maxLineBytes })) {
    signal.throwIfAborted();
    for (const line of batch) {
      lines += 1;
      if (lines > maxLines) {
        const message = `The input file has more than ${maxLines} requests: split it, or raise MAX_BATCH_LINES of the server.`;
        findings.refuse({ code: 'too_many_tasks', message, line: line.number, param: null });
        break;
      }
      const spilling = takeLine(pass, line);
      if (spilling !== undefined) await spilling;
    }
    if (lines > maxLines) break;
    await cutter.flush(PAGE);
  }
  if (lines === 0) {
    const message = 'The input file has no requests.';
    findings.refuse({ code: 'empty_file', message, line: null, param: null });
  }
  await findDuplicates(pass);
  await cutter.flush(1);
  const { bad, total, unfit } = findings;
  if (marks !== null && unfit === null) {
    for (const page of marks.pages(lines)) await onBadLines?.(page);
  }
  const models = pass.models.asked();
  return { lines, shards: cutter.shards, models, bad, total, unfit, problems: findings.first() };
}

/** What one pass knows. */
interface Pass {
  options: ReadPlanOptions;
  models: ModelSeats;
  findings: Findings;
  cutter: Cutter;
  /** Null where one bad line makes the whole input bad. */
  marks: BadMarks | null;
}

function begin(options: ReadPlanOptions): Pass {
  const marks = options.onBadLines === null ? null : createBadMarks();
  const cutter = createCutter(options.cut, async (shards) => {
    marks?.cut(shards);
    await options.onShards(shards);
  });
  return { options, models: createModelSeats(), findings: createFindings(), cutter, marks };
}

/** Takes one line in; a promise is to be awaited before the next. */
function takeLine(pass: Pass, line: InputLine): Promise<void> | void {
  const { options, models, findings, cutter, marks } = pass;
  const checked = checkInputLine(line, options, options.maxLineBytes);
  const seat = isProblem(checked) ? null : models.take(checked.model);
  const problem = isProblem(checked) ? checked : seat === null ? tooManyModels() : null;
  if (problem !== null) {
    findings.addLine(line.number, problem);
    marks?.add(line.index);
    if (marks === null) cutter.stop();
  }
  cutter.add(line);
  if (isProblem(checked) || seat === null) return undefined;
  options.onLine?.(checked);
  // Marks are of lines that are not blank, while a user counts them all.
  const number = marks === null ? line.number : line.index + 1;
  return options.uniqueIds.add(checked.customId, withSeat(number, seat));
}

async function findDuplicates({ options, models, findings, cutter, marks }: Pass): Promise<void> {
  const { lines, total } = await options.uniqueIds.duplicates(
    marks === null ? MAX_REPORTED_ERRORS : 0,
    ({ number }) => {
      models.leave(seatOf(number));
      marks?.add(lineOf(number) - 1);
    },
  );
  const found = lines.map(({ number, first }) => ({
    number: lineOf(number),
    first: lineOf(first),
  }));
  findings.addDuplicates(found, total);
  if (marks === null && total > 0) cutter.stop();
}

function byLine(a: JobError, b: JobError): number {
  return (a.line ?? 0) - (b.line ?? 0);
}

/** The first problems by line, and how many there are. */
interface Findings {
  readonly bad: number;
  readonly total: number;
  readonly unfit: JobError | null;
  /** Lines come in order. */
  addLine(number: number, problem: Problem): void;
  /** For what the input is as a whole. */
  refuse(error: JobError): void;
  /** `lines` are the first of them. */
  addDuplicates(lines: readonly Duplicate[], total: number): void;
  first(): JobError[];
}

function createFindings(): Findings {
  const kept: JobError[] = [];
  let bad = 0;
  let unfit: JobError | null = null;
  return {
    get bad() {
      return bad;
    },
    get total() {
      return bad + (unfit === null ? 0 : 1);
    },
    get unfit() {
      return unfit;
    },
    addLine(number, { code, message, param }) {
      bad += 1;
      if (bad <= MAX_REPORTED_ERRORS) kept.push({ code, message, line: number, param });
    },
    refuse(error) {
      unfit = error;
    },
    addDuplicates(lines, total) {
      bad += total;
      for (const { number, first } of lines) {
        const message = `This custom_id is already used in line ${first}.`;
        kept.push({ code: 'duplicate_custom_id', message, line: number, param: 'custom_id' });
      }
    },
    first() {
      // No number of bad lines may hide it.
      const whole = unfit === null ? [] : [unfit];
      const lines = kept.toSorted(byLine).slice(0, MAX_REPORTED_ERRORS - whole.length);
      return [...lines, ...whole].toSorted(byLine);
    },
  };
}

interface Cutter {
  readonly shards: number;
  add(line: InputLine): void;
  /** Nobody will need the shards: cuts no more, and hands none over. */
  stop(): void;
  /** Hands the finished shards over if they are at least so many; `1` also ends the last one. */
  flush(least: number): Promise<void>;
}

function createCutter(cut: Cut, onShards: (shards: readonly ShardPlan[]) => Promise<void>): Cutter {
  let finished: ShardPlan[] = [];
  let open: ShardPlan | null = null;
  let shards = 0;
  let isStopped = false;

  function end(): void {
    if (open !== null) finished.push(open);
    open = null;
  }

  return {
    get shards() {
      return shards;
    },
    add(line) {
      if (isStopped) return;
      if (open !== null && (open.lines >= cut.lines || line.end - open.offset > cut.bytes)) end();
      open ??= { n: shards++, first: line.index, lines: 0, offset: line.offset, bytes: 0 };
      open.lines += 1;
      open.bytes = line.end - open.offset;
    },
    stop() {
      isStopped = true;
      open = null;
      finished = [];
    },
    async flush(least) {
      if (least === 1) end();
      if (finished.length === 0 || finished.length < least) return;
      const page = finished;
      finished = [];
      await onShards(page);
    },
  };
}
