import { crc32 } from 'node:zlib';
import type { Endpoint } from '../domain/job.ts';
import { skipSpace } from './json-scan.ts';
import type { InputLine } from './lines.ts';

/** Bytes beyond what all lines begin with that two lines must share for it to matter: a block of vLLM's cache, 16 tokens. */
const WORTH_BYTES = 64;
/** Of a system prompt, and of a prompt without one, that lines are spread by. */
const MOST_AFFINE_BYTES = 1_024;
const PLAIN_AFFINE_BYTES = 256;
/** Of a generation whose length the line does not limit. */
const UNLIMITED = Number.MAX_SAFE_INTEGER;

const PROMPTS: Partial<Record<Endpoint, Buffer>> = {
  '/v1/chat/completions': Buffer.from('"messages"'),
  '/v1/completions': Buffer.from('"prompt"'),
};
const INPUT = Buffer.from('"input"');
const LIMIT = Buffer.from('"max_');
const LIMITS = ['"max_tokens"', '"max_completion_tokens"', '"max_output_tokens"'].map((name) =>
  Buffer.from(name),
);
const CLOSERS = Buffer.from('},');
const [COLON, ZERO, OPEN_BRACE, OPEN_BRACKET] = [0x3a, 0x30, 0x7b, 0x5b] as const;

interface Keyed {
  line: InputLine;
  bytes: Buffer;
  /** Where its prompt begins. */
  from: number;
  /** Tokens that may come of it. */
  longest: number;
  group: Group;
}

interface Group {
  longest: number;
}

/**
 * The lines in the order in which an engine's prefix cache serves them best: those that begin alike beside each other,
 * long generations first, so that none is left to run alone at the end. As they came where neither matters.
 */
export function orderForCache(
  lines: readonly InputLine[],
  endpoint: Endpoint,
): readonly InputLine[] {
  if (lines.length < 3) return lines;
  const keyed: Keyed[] = [];
  const others: InputLine[] = [];
  for (const line of lines) {
    const { bytes } = line;
    const from = bytes === null ? -1 : promptAt(bytes, endpoint);
    if (bytes === null || from === -1) {
      others.push(line);
      continue;
    }
    const longest = longestOf(bytes);
    keyed.push({ line, bytes, from, longest, group: { longest } });
  }
  const isShared = group(keyed, commonBytes(keyed));
  if (!isShared && keyed.every(({ longest }) => longest === keyed[0]?.longest)) return lines;
  keyed.sort(isShared ? byGroup : byLength);
  return [...others, ...keyed.map(({ line }) => line)];
}

/**
 * A number by which lines that begin alike find the same engine: of the first message where others follow, else of as
 * much of the prompt as several lines may share. Null where there is no prompt.
 */
export function affinityOf(line: Buffer, endpoint: Endpoint): number | null {
  const from = promptAt(line, endpoint);
  if (from === -1) return null;
  let end = from + PLAIN_AFFINE_BYTES;
  if (line[from] === OPEN_BRACKET && line[from + 1] === OPEN_BRACE) {
    // Where a message has braces of its own, less of it decides.
    const firstEnd = line.indexOf(CLOSERS, from);
    if (firstEnd !== -1) end = Math.min(firstEnd, from + MOST_AFFINE_BYTES);
  }
  return crc32(line.subarray(from, end));
}

/**
 * Where the prompt of a line begins; -1 where it is not found. A name in its quotes stands in no other string, where
 * they would be escaped, so that a native search finds it at a tenth of what reading all members costs; one of another
 * object that comes first may be mistaken for it, at the price of a worse order.
 */
function promptAt(line: Buffer, endpoint: Endpoint): number {
  const name = PROMPTS[endpoint] ?? INPUT;
  for (let at = line.indexOf(name); at !== -1; at = line.indexOf(name, at + 1)) {
    const value = valueAt(line, at + name.length);
    if (value !== -1) return value;
  }
  return -1;
}

function longestOf(line: Buffer): number {
  let longest = -1;
  for (let at = line.indexOf(LIMIT); at !== -1; at = line.indexOf(LIMIT, at + 1)) {
    const name = LIMITS.find(
      (each) => line.compare(each, 0, each.length, at, at + each.length) === 0,
    );
    const value = name === undefined ? -1 : valueAt(line, at + name.length);
    if (value !== -1) longest = Math.max(longest, integerAt(line, value));
  }
  return longest === -1 ? UNLIMITED : longest;
}

/** Where the value of the member begins whose name ends before `at`; -1 where that was a value itself. */
function valueAt(line: Buffer, at: number): number {
  const colon = skipSpace(line, at);
  return line[colon] === COLON ? skipSpace(line, colon + 1) : -1;
}

/** -1 where there are no digits. */
function integerAt(line: Buffer, from: number): number {
  let number = -1;
  for (let at = from; ; at += 1) {
    const digit = (line[at] ?? 0) - ZERO;
    if (digit < 0 || digit > 9) return number;
    number = Math.max(number, 0) * 10 + digit;
  }
}

/** How many bytes all prompts begin with alike. */
function commonBytes([first, ...rest]: readonly Keyed[]): number {
  if (first === undefined) return 0;
  const { bytes: a, from: start } = first;
  let common = a.length - start;
  for (const { bytes: b, from } of rest) {
    common = Math.min(common, b.length - from);
    if (a.compare(b, from, from + common, start, start + common) === 0) continue;
    let at = 0;
    while (a[start + at] === b[from + at]) at += 1;
    common = at;
  }
  return common;
}

/** Puts lines that share enough beyond what all share into one group; false where there are none. */
function group(lines: readonly Keyed[], common: number): boolean {
  const groups = new Map<number, Group>();
  let isShared = false;
  for (const keyed of lines) {
    const begin = keyed.from + common;
    if (begin + WORTH_BYTES > keyed.bytes.length) continue;
    const key = crc32(keyed.bytes.subarray(begin, begin + WORTH_BYTES));
    const known = groups.get(key);
    if (known === undefined) {
      groups.set(key, keyed.group);
      continue;
    }
    isShared = true;
    known.longest = Math.max(known.longest, keyed.longest);
    keyed.group = known;
  }
  return isShared;
}

function byLength(a: Keyed, b: Keyed): number {
  return b.longest - a.longest;
}

function byGroup(a: Keyed, b: Keyed): number {
  const byLongest = a.group === b.group ? b.longest - a.longest : b.group.longest - a.group.longest;
  if (byLongest !== 0) return byLongest;
  return a.bytes.compare(b.bytes, b.from, b.bytes.length, a.from, a.bytes.length);
}
