import { createHash } from 'node:crypto';
import type { Readable } from 'node:stream';
import { customIdOf } from '../dispatcher/check-line.ts';
import { readLines } from '../dispatcher/lines.ts';
import type { InputLine } from '../dispatcher/lines.ts';
import { partsOfLine, responseAt, statusAt } from '../domain/answer-line.ts';
import type { AnswerParts } from '../domain/answer-line.ts';
import type { Manifest, ManifestFile } from '../domain/manifest.ts';

/** One thing that was looked at; `detail` says what was found, for people. */
export interface Check {
  name: string;
  ok: boolean;
  detail: string;
}

/** The files of a job as they are now; null: there is none where the manifest has one. */
export type OpenFiles = Record<'input' | 'output' | 'error', Readable | null>;

/** Longer than any answer may be. */
const MOST_LINE_BYTES = 2 ** 28;
const MOST_SHOWN = 100;

/**
 * Reads the files side by side, each once, and says whether they are those of the manifest, whether the output and the
 * error file together have every request of the input once and in its order, and whether the counts are right. Without
 * the input, requests are told by their numbers. Memory does not grow with the files, since all are in one order.
 */
export async function checkFiles(manifest: Manifest, files: OpenFiles): Promise<Check[]> {
  const [input, output, error] = [
    read('input', files.input),
    read('output', files.output),
    read('error', files.error),
  ];
  try {
    const statuses = new Map<string, number>();
    const wrong = await matchAnswers(manifest, { input, answers: [output, error], statuses });
    return [
      checkFile(manifest.input, input),
      ...(manifest.output === null ? [] : [checkFile(manifest.output, output)]),
      ...(manifest.error === null ? [] : [checkFile(manifest.error, error)]),
      checkRequests(manifest, input, wrong),
      ...checkUnnamed(manifest),
      checkStatuses(manifest, statuses),
      checkCounts(manifest, output.lines, error.lines),
    ];
  } finally {
    for (const file of [input, output, error]) await file.close();
  }
}

type Name = keyof OpenFiles;

/** A file that is read line by line, and what is known of it when its end is reached. */
interface Reading {
  name: Name;
  isGone: boolean;
  lines: number;
  bytes: number;
  sha256(): string;
  /** The next line that is not blank; null at the end. */
  next(): Promise<InputLine | null>;
  close(): Promise<void>;
}

function read(name: Name, source: Readable | null): Reading {
  const hash = createHash('sha256');
  async function* taken(): AsyncGenerator<Uint8Array> {
    for await (const chunk of source ?? []) {
      hash.update(chunk);
      reading.bytes += chunk.length;
      yield chunk;
    }
  }
  const batches = readLines(taken(), { maxLineBytes: MOST_LINE_BYTES });
  let waiting: InputLine[] = [];
  let at = 0;
  let digest: string | null = null;
  const reading: Reading = {
    name,
    isGone: source === null,
    lines: 0,
    bytes: 0,
    sha256: () => (digest ??= hash.digest('hex')),
    async next() {
      while (at === waiting.length) {
        const batch = await batches.next();
        if (batch.done === true) return null;
        waiting = batch.value;
        at = 0;
      }
      const line = waiting[at] ?? null;
      at += 1;
      reading.lines += 1;
      return line;
    },
    async close() {
      await batches.return(undefined);
      source?.destroy();
    },
  };
  return reading;
}

/** A line of the output or error file that has not found its request yet. */
interface Head {
  file: Name;
  number: number;
  parts: AnswerParts | null;
}

interface Matching {
  input: Reading;
  answers: readonly Reading[];
  /** Answers by file and status, counted as they are read. */
  statuses: Map<string, number>;
}

/** The first thing that is wrong with the order of answers, or null; everything is read to its end in any case. */
async function matchAnswers(manifest: Manifest, matching: Matching): Promise<string | null> {
  const { input, answers } = matching;
  const heads: (Head | null)[] = [];
  for (const file of answers) heads.push(await nextHead(file, matching));
  let wrong: string | null = null;
  let unnamed = unnamedOf(manifest);
  for (let index = 0; ; index += 1) {
    const line = input.isGone ? null : await input.next();
    if (input.isGone ? index >= manifest.input.lines : line === null) break;
    if (wrong !== null) continue;
    if (unnamed > 0 && isMissing(index, heads)) {
      unnamed -= 1;
      continue;
    }
    wrong = faultAt(index, line, heads);
    if (wrong !== null) continue;
    const place = heads.findIndex((head) => head?.parts?.index === index);
    const file = answers[place];
    if (file !== undefined) heads[place] = await nextHead(file, matching);
  }
  const rest = await readRest(heads, matching);
  return wrong ?? rest;
}

/** The first line that is left, or null; all are read. */
async function readRest(heads: (Head | null)[], matching: Matching): Promise<string | null> {
  let wrong: string | null = null;
  for (const [place, file] of matching.answers.entries()) {
    for (let head = heads[place]; head; head = await nextHead(file, matching)) {
      wrong ??= `${where(head)} answers no request of the input`;
    }
  }
  return wrong;
}

/** Whether all that is left answers later requests. */
function isMissing(index: number, heads: readonly (Head | null)[]): boolean {
  return heads.every((head) => head === null || (head.parts?.index ?? -1) > index);
}

async function nextHead(file: Reading, { statuses }: Matching): Promise<Head | null> {
  const line = await file.next();
  if (line === null) return null;
  const bytes = line.bytes ?? Buffer.alloc(0);
  const key = `${file.name} ${statusAt(bytes, responseAt(bytes)) ?? 'none'}`;
  statuses.set(key, (statuses.get(key) ?? 0) + 1);
  return { file: file.name, number: line.number, parts: partsOrNull(line) };
}

function partsOrNull({ bytes }: InputLine): AnswerParts | null {
  try {
    return bytes === null ? null : partsOfLine(bytes);
  } catch {
    return null; // which is what is looked for
  }
}

/** What is wrong with the answer of one request; `line` is null where the input is gone. */
function faultAt(
  index: number,
  line: InputLine | null,
  heads: readonly (Head | null)[],
): string | null {
  const own = heads.filter((head) => head?.parts?.index === index);
  const [first, second] = own;
  const customId = line === null ? null : customIdOf(line);
  const shown = customId === null ? '' : ` (custom_id ${show(customId)})`;
  const request = `request ${index + 1}${line === null ? '' : `, input line ${line.number}`}${shown}`;
  const early = heads.find((head) => head !== null && (head.parts?.index ?? -1) < index);
  if (early) return earlyFault(early);
  if (!first) return `${request} has no answer at its place${nextOf(heads)}`;
  if (second) return `${request} is in both files: ${where(first)} and ${where(second)}`;
  const answered = first.parts?.customId ?? null;
  if (customId === null || answered === null || customId.equals(answered)) return null;
  return `${where(first)} has the custom_id ${show(answered)}, not that of ${request}`;
}

/** Whether it is missing, or only further on, is not known as long as the rest has not been read. */
function nextOf(heads: readonly (Head | null)[]): string {
  const next = heads.flatMap((head) =>
    head?.parts ? [`${where(head)} (request ${head.parts.index + 1})`] : [],
  );
  return next.length === 0 ? ': no line is left' : `: next is ${next.join(', or ')}`;
}

function earlyFault(head: Head): string {
  if (head.parts === null) return `${where(head)} is no finished line`;
  return `${where(head)} (custom_id ${show(head.parts.customId)}) is there twice, or out of order`;
}

function where({ file, number }: Head): string {
  return `${file} line ${number}`;
}

function show(customId: Buffer): string {
  return customId.toString().slice(0, MOST_SHOWN);
}

function checkFile(expected: ManifestFile, found: Reading): Check {
  const { name, bytes, lines, isGone } = found;
  if (isGone) return { name, ok: false, detail: `${expected.file_id} is gone` };
  const sha256 = found.sha256();
  const faults = [
    expected.bytes === bytes ? '' : `${bytes} bytes instead of ${expected.bytes}`,
    expected.lines === lines ? '' : `${lines} lines instead of ${expected.lines}`,
    expected.sha256 === sha256 ? '' : `sha256 ${sha256} instead of ${expected.sha256}`,
  ].filter((fault) => fault !== '');
  const whole = `${lines} lines, ${bytes} bytes, sha256 ${sha256}`;
  const ok = faults.length === 0;
  return { name, ok, detail: ok ? whole : faults.join(', ') };
}

function checkRequests(manifest: Manifest, { isGone }: Reading, wrong: string | null): Check {
  const lines = manifest.input.lines - unnamedOf(manifest);
  const by = isGone ? 'by its number, since the input is gone' : 'in the order of the input';
  const detail = wrong ?? `each of ${lines} is in one of the files once, ${by}`;
  return { name: 'requests', ok: wrong === null, detail };
}

/** Requests that count as failed and are in no file, since the input that names them was changed. */
function unnamedOf({ error, request_counts: { failed } }: Manifest): number {
  return Math.max(0, failed - (error?.lines ?? 0));
}

function checkUnnamed(manifest: Manifest): Check[] {
  const unnamed = unnamedOf(manifest);
  if (unnamed === 0) return [];
  const detail = `${unnamed} requests failed and are in no file: the input that names them was changed`;
  return [{ name: 'left out', ok: true, detail }];
}

function checkStatuses({ status_codes: expected }: Manifest, found: Map<string, number>): Check {
  const left = new Map(found);
  const faults: string[] = [];
  for (const { status_code: status, completed, failed } of expected) {
    for (const [file, count] of [['output', completed] as const, ['error', failed] as const]) {
      const key = `${file} ${status ?? 'none'}`;
      const seen = left.get(key) ?? 0;
      left.delete(key);
      if (seen !== count) faults.push(`${key}: ${seen} instead of ${count}`);
    }
  }
  for (const [key, count] of left) faults.push(`${key}: ${count} instead of 0`);
  const whole = expected.map(
    ({ status_code: status, completed, failed }) => `${status ?? 'none'}: ${completed + failed}`,
  );
  const ok = faults.length === 0;
  return { name: 'status codes', ok, detail: (ok ? whole : faults).join(', ') };
}

function checkCounts(manifest: Manifest, output: number, error: number): Check {
  const { total, completed, failed } = manifest.request_counts;
  const isTold = output === completed && error === (manifest.error?.lines ?? 0);
  const ok = isTold && error <= failed && total === completed + failed;
  const said = `${completed} completed and ${failed} failed of ${total}`;
  const detail = ok ? said : `${said}, but ${output} and ${error} lines are there`;
  return { name: 'counts', ok, detail };
}
