/** Where a text stops being JSON, and what stands there instead. */
export interface JsonFault {
  /** From 1, in UTF-16 units, as editors count. */
  column: number;
  /** For people; shows one character of the text at most. */
  reason: string;
}

/** What may come next in a text of JSON. */
type Want = 'value' | 'value or ]' | 'key' | 'key or }' | 'colon' | 'more' | 'end';

const WORDS: Record<Want, string> = {
  value: 'a value',
  'value or ]': "a value or ']'",
  key: 'a key in double quotes',
  'key or }': "a key in double quotes or '}'",
  colon: "':' after the key",
  more: "',' or the closing bracket after a value",
  end: 'nothing after the value',
};

const [QUOTE, BACKSLASH, SPACE] = [0x22, 0x5c, 0x20] as const;
const LITERALS = ['true', 'false', 'null'];
const HEX = /^[0-9a-fA-F]{4}$/;

/** Text that is walked over once, and stops where it is no JSON. */
interface Walk {
  text: string;
  at: number;
  /** Closing brackets that are owed. */
  open: string[];
  want: Want;
}

/**
 * The first place at which a text is no JSON (RFC 8259); null where it is JSON. `JSON.parse` decides faster, and
 * does not always say where: this is for what it refused.
 */
export function findJsonFault(text: string): JsonFault | null {
  const walk: Walk = { text, at: 0, open: [], want: 'value' };
  for (;;) {
    skipSpace(walk);
    if (walk.at >= text.length) {
      return walk.want === 'end'
        ? null
        : fault(walk, `the line ends where ${WORDS[walk.want]} should be`);
    }
    const reason = step(walk, text.charAt(walk.at));
    if (reason !== null) return fault(walk, reason);
  }
}

function fault({ at }: Walk, reason: string): JsonFault {
  return { column: at + 1, reason };
}

/** Takes one token; what is wrong with it, or null. */
function step(walk: Walk, next: string): string | null {
  const { want } = walk;
  if (want === 'colon' || want === 'more' || want === 'end') return punctuation(walk, next);
  const closer = want === 'value or ]' ? ']' : want === 'key or }' ? '}' : '';
  if (next === closer) return close(walk);
  if (next === '"') return string(walk);
  return want === 'key' || want === 'key or }' ? unexpected(walk, next) : value(walk, next);
}

function punctuation(walk: Walk, next: string): string | null {
  const closer = walk.open.at(-1);
  if (walk.want === 'more' && next === closer) return close(walk);
  if (next !== { colon: ':', more: ',' }[walk.want as string]) return unexpected(walk, next);
  walk.at += 1;
  walk.want = walk.want === 'more' && closer === '}' ? 'key' : 'value';
  return null;
}

function value(walk: Walk, next: string): string | null {
  if (next === '{' || next === '[') {
    walk.open.push(next === '{' ? '}' : ']');
    walk.at += 1;
    walk.want = next === '{' ? 'key or }' : 'value or ]';
    return null;
  }
  const literal = LITERALS.find((word) => walk.text.startsWith(word, walk.at));
  if (literal !== undefined) walk.at += literal.length;
  else if (next !== '-' && !isDigit(next)) return unexpected(walk, next);
  else if (!number(walk)) return 'this number is none that JSON has';
  return valueDone(walk);
}

function close(walk: Walk): null {
  walk.open.pop();
  walk.at += 1;
  return valueDone(walk);
}

function valueDone(walk: Walk): null {
  walk.want = walk.open.length === 0 ? 'end' : 'more';
  return null;
}

/** A string, at whose opening quote the walk stands. */
function string(walk: Walk): string | null {
  const { text, at: start } = walk;
  let at = start + 1;
  for (;;) {
    const code = text.charCodeAt(at);
    if (code === QUOTE) break;
    // Also past the end, where the code is not a number.
    if (!(code >= SPACE)) {
      walk.at = at < text.length ? at : start;
      return at < text.length
        ? 'a control character in a text, to be written as \\n, \\t or \\u00XX'
        : 'this text has no closing quote';
    }
    const length = code === BACKSLASH ? escapeLength(text, at) : 1;
    if (length === 0) {
      walk.at = at;
      return "no escape that JSON has; a backslash is written as '\\\\'";
    }
    at += length;
  }
  walk.at = at + 1;
  if (!walk.want.startsWith('key')) return valueDone(walk);
  walk.want = 'colon';
  return null;
}

/** Of an escape that begins here; 0 where it is none. */
function escapeLength(text: string, at: number): number {
  const kind = text.charAt(at + 1);
  if (kind === 'u') return HEX.test(text.slice(at + 2, at + 6)) ? 6 : 0;
  return kind !== '' && '"\\/bfnrt'.includes(kind) ? 2 : 0;
}

/** Walks over a number; false where it is none. */
function number(walk: Walk): boolean {
  const { text } = walk;
  if (text.charAt(walk.at) === '-') walk.at += 1;
  if (text.charAt(walk.at) === '0') walk.at += 1;
  else if (!digits(walk)) return false;
  if (text.charAt(walk.at) === '.') {
    walk.at += 1;
    if (!digits(walk)) return false;
  }
  if (!'eE'.includes(text.charAt(walk.at) || ' ')) return true;
  walk.at += 1;
  if ('+-'.includes(text.charAt(walk.at) || ' ')) walk.at += 1;
  return digits(walk);
}

/** Walks over digits; false where there is none. */
function digits(walk: Walk): boolean {
  const start = walk.at;
  while (isDigit(walk.text.charAt(walk.at))) walk.at += 1;
  return walk.at > start;
}

function isDigit(character: string): boolean {
  return character >= '0' && character <= '9' && character !== '';
}

function skipSpace(walk: Walk): void {
  while (' \t\r\n'.includes(walk.text.charAt(walk.at) || 'x')) walk.at += 1;
}

function unexpected({ want, text, at }: Walk, next: string): string {
  if (next === "'")
    return `expected ${WORDS[want]}, got a single quote (JSON takes double ones only)`;
  const code = text.codePointAt(at) ?? 0;
  const shown =
    code < 0x20 || code === 0x7f ? 'a control character' : `'${String.fromCodePoint(code)}'`;
  return `expected ${WORDS[want]}, got ${shown}`;
}
