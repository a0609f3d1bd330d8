const [QUOTE, BACKSLASH, COLON, COMMA] = [0x22, 0x5c, 0x3a, 0x2c] as const;
const [OPEN_BRACE, CLOSE_BRACE, OPEN_BRACKET, CLOSE_BRACKET] = [0x7b, 0x7d, 0x5b, 0x5d] as const;
const CUSTOM_ID = Buffer.from('custom_id');
const BODY = Buffer.from('body');
const MODEL = Buffer.from('model');
/** Where a native search for the quote becomes cheaper than looking at each byte. */
const SHORT_STRING = 32;

/** The two members of a request line that are passed on, as the user wrote them. */
export interface ScannedRequest {
  /** The raw JSON string, quotes included. */
  customId: Buffer;
  /** Raw bytes of the value. */
  body: Buffer;
}

export function skipSpace(line: Buffer, from: number): number {
  let at = from;
  for (;;) {
    const byte = line[at];
    if (byte !== 0x20 && byte !== 0x09 && byte !== 0x0d && byte !== 0x0a) return at;
    at += 1;
  }
}

/** Index after the string whose opening quote is at `from`; -1 when it does not end. */
function skipString(line: Buffer, from: number): number {
  let at = from + 1;
  while (at < line.length) {
    const short = Math.min(at + SHORT_STRING, line.length);
    while (at < short) {
      const byte = line[at];
      if (byte === QUOTE) return at + 1;
      at += byte === BACKSLASH ? 2 : 1;
    }
    const quote = line.indexOf(QUOTE, at);
    if (quote === -1) return -1;
    // An odd run of backslashes escapes the quote; none reaches back over `at`, which is not escaped itself.
    let run = quote;
    while (run > at && line[run - 1] === BACKSLASH) run -= 1;
    at = quote + 1;
    if ((quote - run) % 2 === 0) return at;
  }
  return -1;
}

/** Index after the object or array that opens at `from`; -1 when it does not end. */
function skipNested(line: Buffer, from: number): number {
  let depth = 0;
  let at = from;
  while (at < line.length) {
    const byte = line[at];
    if (byte === QUOTE) {
      at = skipString(line, at);
      if (at === -1) return -1;
      continue;
    }
    at += 1;
    if (byte === OPEN_BRACE || byte === OPEN_BRACKET) depth += 1;
    else if (byte === CLOSE_BRACE || byte === CLOSE_BRACKET) {
      depth -= 1;
      if (depth === 0) return at;
    }
  }
  return -1;
}

/** Index after a number, `true`, `false` or `null`; -1 when there is nothing. */
function skipPlain(line: Buffer, from: number): number {
  let at = from;
  while (at < line.length) {
    const byte = line[at];
    if (byte === COMMA || byte === CLOSE_BRACE || byte === undefined || byte <= 0x20) break;
    at += 1;
  }
  return at === from ? -1 : at;
}

function skipValue(line: Buffer, from: number): number {
  const byte = line[from];
  if (byte === QUOTE) return skipString(line, from);
  if (byte === OPEN_BRACE || byte === OPEN_BRACKET) return skipNested(line, from);
  return skipPlain(line, from);
}

function isBytes(line: Buffer, from: number, to: number, name: Buffer): boolean {
  return to - from === name.length && line.compare(name, 0, name.length, from, to) === 0;
}

/** Which of the two members a key names; `from` and `to` include its quotes. Null for any other. */
function nameOf(line: Buffer, from: number, to: number): 'customId' | 'body' | null {
  if (isBytes(line, from + 1, to - 1, CUSTOM_ID)) return 'customId';
  if (isBytes(line, from + 1, to - 1, BODY)) return 'body';
  const key = escapedText(line, from, to);
  if (key === 'custom_id') return 'customId';
  return key === 'body' ? 'body' : null;
}

/** The text of a string that has escapes; null for one that has none, or malformed ones. */
function escapedText(line: Buffer, from: number, to: number): string | null {
  const escape = line.indexOf(BACKSLASH, from);
  return escape === -1 || escape >= to ? null : textOf(line, from, to);
}

/** The text of a string; null for any other value, or where its escapes are malformed. */
function textOf(line: Buffer, from: number, to: number): string | null {
  if (line[from] !== QUOTE) return null;
  try {
    return String(JSON.parse(line.toString('utf8', from, to)));
  } catch {
    return null; // neither a key nor a model that anybody looks for
  }
}

/** Where a member begins and ends; the key includes its quotes. */
export interface Member {
  key: number;
  keyEnd: number;
  value: number;
  valueEnd: number;
}

/** The member after the brace or comma before `from`; null when there is none. */
function memberAt(line: Buffer, from: number): Member | null {
  const key = skipSpace(line, from);
  const keyEnd = line[key] === QUOTE ? skipString(line, key) : -1;
  if (keyEnd === -1) return null;
  const colon = skipSpace(line, keyEnd);
  if (line[colon] !== COLON) return null;
  const value = skipSpace(line, colon + 1);
  const valueEnd = skipValue(line, value);
  return valueEnd === -1 ? null : { key, keyEnd, value, valueEnd };
}

/** Visits the members of the top level in their order; false when that is no well-formed object. */
export function eachMember(line: Buffer, visit: (member: Member) => void): boolean {
  let at = skipSpace(line, 0);
  let separator = line[at] === OPEN_BRACE ? COMMA : -1;
  while (separator === COMMA) {
    const member = memberAt(line, at + 1);
    if (member === null) return false;
    visit(member);
    at = skipSpace(line, member.valueEnd);
    separator = line[at] ?? -1;
  }
  return separator === CLOSE_BRACE && skipSpace(line, at + 1) === line.length;
}

interface FoundMembers {
  customId: Buffer | null;
  body: Buffer | null;
}

/** The two members, where they are; null when the top level is no well-formed object. */
function scanMembers(line: Buffer): FoundMembers | null {
  const found: FoundMembers = { customId: null, body: null };
  const isObject = eachMember(line, ({ key, keyEnd, value, valueEnd }) => {
    const name = nameOf(line, key, keyEnd);
    if (name !== null) found[name] = line.subarray(value, valueEnd);
  });
  return isObject ? found : null;
}

/**
 * Finds `custom_id` and `body` at the top level of a JSON object without rebuilding anything, so that large integers
 * and key order survive. The last of duplicate members wins and keys are compared unescaped, as in `JSON.parse`.
 * For lines that `JSON.parse` accepts it finds what that finds; nested values are skipped, not checked.
 * Null when the object or one of the members is missing, `custom_id` is no string, or the top level is malformed.
 */
export function scanRequest(line: Buffer): ScannedRequest | null {
  const { customId = null, body = null } = scanMembers(line) ?? {};
  return customId === null || body === null || customId[0] !== QUOTE ? null : { customId, body };
}

/** The raw `custom_id` string, quotes included, of a line that `JSON.parse` accepts; null where it has none. */
export function scanCustomId(line: Buffer): Buffer | null {
  const customId = scanMembers(line)?.customId ?? null;
  return customId?.[0] === QUOTE ? customId : null;
}

/** The model that a body names at its top level, which the last of duplicate members decides; null where it names none. */
export function scanModel(body: Buffer): string | null {
  let model: string | null = null;
  const isObject = eachMember(body, ({ key, keyEnd, value, valueEnd }) => {
    const isModel =
      isBytes(body, key + 1, keyEnd - 1, MODEL) || escapedText(body, key, keyEnd) === 'model';
    if (isModel) model = textOf(body, value, valueEnd);
  });
  return isObject ? model : null;
}
