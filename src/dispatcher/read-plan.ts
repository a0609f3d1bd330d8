import { isUtf8 } from 'node:buffer';
import type { Cut, Endpoint, JobError } from '../domain/job.ts';
import { checkLine, isProblem, MAX_MODELS, MAX_REPORTED_ERRORS } from '../domain/plan.ts';
import type { ShardPlan } from '../domain/plan.ts';
import { readLines } from './lines.ts';
import type { InputLine } from './lines.ts';
import type { UniqueIds } from './unique-ids.ts';

export interface ReadPlanOptions {
  endpoint: Endpoint;
  cut: Cut;
  maxLines: number;
  maxLineBytes: number;
  uniqueIds: UniqueIds;
  /** Takes shards a page at a time, in order; the next page is read when it is done. */
  onShards(shards: readonly ShardPlan[]): Promise<void>;
  signal: AbortSignal;
}

/** What one pass over the input found; with errors the shards are of no use. */
export interface ReadPlan {
  lines: number;
  shards: number;
  models: string[];
  errors: JobError[];
}

const PAGE = 500;

/**
 * Validates a whole input and cuts it into shards in one streaming pass. The cut depends on nothing but input and
 * `cut`: whoever reads it again cuts alike. Stops at the first errors that are as many as a job may report.
 */
export async function readPlan(
  source: AsyncIterable<Uint8Array>,
  options: ReadPlanOptions,
): Promise<ReadPlan> {
  const models = new Set<string>();
  const errors: JobError[] = [];
  const cutter = createCutter(options.cut, options.onShards);
  let lines = 0;
  for await (const batch of readLines(source, { maxLineBytes: options.maxLineBytes })) {
    options.signal.throwIfAborted();
    for (const line of batch) {
      lines += 1;
      if (lines > options.maxLines) {
        errors.push(tooMany(line, options));
        break;
      }
      const error = await check(line, options, models);
      if (error !== null) errors.push(error);
      cutter.add(line);
    }
    if (errors.length >= MAX_REPORTED_ERRORS || lines > options.maxLines) break;
    if (errors.length === 0) await cutter.flush(PAGE);
  }
  if (lines === 0) errors.push(error('empty_file', 'The input file has no requests.', null, null));
  if (errors.length < MAX_REPORTED_ERRORS) errors.push(...(await duplicates(options.uniqueIds)));
  if (errors.length === 0) await cutter.flush(1);
  return { lines, shards: cutter.shards, models: [...models], errors: cap(errors) };
}

async function check(
  line: InputLine,
  { endpoint, maxLineBytes, uniqueIds }: ReadPlanOptions,
  models: Set<string>,
): Promise<JobError | null> {
  const { number, bytes } = line;
  if (bytes === null) {
    return error('line_too_long', `This line is longer than ${maxLineBytes} bytes.`, number, null);
  }
  const parsed = parseLine(bytes);
  if (parsed === undefined) {
    return error('invalid_json_line', 'This line is not parseable as valid JSON.', number, null);
  }
  const checked = checkLine(parsed, endpoint);
  if (isProblem(checked)) return error(checked.code, checked.message, number, checked.param);
  if (checked.model !== null && !models.has(checked.model)) {
    if (models.size >= MAX_MODELS) {
      const message = `A batch may name at most ${MAX_MODELS} models.`;
      return error('model_mismatch', message, number, 'body.model');
    }
    models.add(checked.model);
  }
  const spilling = uniqueIds.add(checked.customId, number);
  if (spilling !== undefined) await spilling;
  return null;
}

function parseLine(bytes: Buffer): unknown {
  if (!isUtf8(bytes)) return undefined;
  try {
    return JSON.parse(bytes.toString('utf8')) as unknown;
  } catch {
    return undefined; // the caller reports the line
  }
}

function tooMany(line: InputLine, { maxLines }: ReadPlanOptions): JobError {
  const message = `The input file has more than ${maxLines} requests.`;
  return error('too_many_tasks', message, line.number, null);
}

async function duplicates(uniqueIds: UniqueIds): Promise<JobError[]> {
  const found = await uniqueIds.duplicates(MAX_REPORTED_ERRORS);
  return found.lines.map(({ number, first }) =>
    error(
      'duplicate_custom_id',
      `This custom_id is already used in line ${first}.`,
      number,
      'custom_id',
    ),
  );
}

/** By line, and no more than helps: the last one says that there are more. */
function cap(errors: readonly JobError[]): JobError[] {
  const sorted = errors.toSorted((a, b) => (a.line ?? 0) - (b.line ?? 0));
  if (sorted.length < MAX_REPORTED_ERRORS) return sorted;
  const shown = sorted.slice(0, MAX_REPORTED_ERRORS - 1);
  const message = `There are more errors; only the first ${shown.length} are listed.`;
  return [...shown, error('too_many_errors', message, null, null)];
}

function error(code: string, message: string, line: number | null, param: string | null): JobError {
  return { code, message, line, param };
}

interface Cutter {
  readonly shards: number;
  add(line: InputLine): void;
  /** Hands the finished shards over if they are at least so many; `1` also ends the last one. */
  flush(least: number): Promise<void>;
}

function createCutter(cut: Cut, onShards: (shards: readonly ShardPlan[]) => Promise<void>): Cutter {
  let finished: ShardPlan[] = [];
  let open: ShardPlan | null = null;
  let shards = 0;

  function end(): void {
    if (open !== null) finished.push(open);
    open = null;
  }

  return {
    get shards() {
      return shards;
    },
    add(line) {
      if (open !== null && (open.lines >= cut.lines || line.end - open.offset > cut.bytes)) end();
      open ??= { n: shards++, first: line.index, lines: 0, offset: line.offset, bytes: 0 };
      open.lines += 1;
      open.bytes = line.end - open.offset;
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
