import { permanent } from './errors.ts';

/**
 * How a finished line of an output or error file is laid out, whoever wrote it:
 * `{"id":…,"custom_id":…,"response":{"status_code":…,"request_id":…,"body":…},"error":null}` where an engine answered,
 * `{"id":…,"custom_id":…,"response":null,"error":{"code":…,"message":…}}` where none did. No space is between members,
 * and a string of JSON cannot hold a bare quote: the first `,"response":` is that member, whatever the custom_id says.
 */
const RESPONSE = Buffer.from(',"response":');
const STATUS = '{"status_code":';
const BODY = Buffer.from(',"body":');
const ERROR = Buffer.from(',"error":');
const CUSTOM_ID = ',"custom_id":';
const ANSWERED_END = '},"error":null}';
const LINE_INDEX = /^\{"id":"batch_req_[A-Za-z0-9]+_(\d+)"$/;
const [OPEN_BRACE, CLOSE_BRACE, NEWLINE, ZERO] = [0x7b, 0x7d, 0x0a, 0x30] as const;

/** A finished line in parts, each as raw JSON. */
export interface AnswerParts {
  /** Index of its request in the whole input, from 0: blank lines of that are not counted. */
  index: number;
  customId: Buffer;
  /** The whole `response`; `null` as JSON where no engine answered. */
  response: Buffer;
  /** The whole `error`; `null` as JSON where an engine answered. */
  error: Buffer;
  /** The `body` of the response; null where there is no response. */
  body: Buffer | null;
  /** The response without its body, as an object of its own; null where there is none. */
  head: Buffer | null;
}

/** Where the response of a finished line begins; -1 where no engine answered, or the line is none. */
export function responseAt(line: Buffer): number {
  const at = line.indexOf(RESPONSE);
  const value = at + RESPONSE.length;
  return at !== -1 && line[value] === OPEN_BRACE ? value : -1;
}

/** The HTTP status of the response that begins there; null for -1. */
export function statusAt(line: Buffer, response: number): number | null {
  if (response === -1) return null;
  let status = 0;
  for (let place = response + STATUS.length; ; place += 1) {
    const digit = (line[place] ?? 0) - ZERO;
    if (digit < 0 || digit > 9) return status;
    status = status * 10 + digit;
  }
}

/** The body of the response that begins there, as raw JSON; null for -1, or where the line is cut. */
export function bodyAt(line: Buffer, response: number): Buffer | null {
  const from = response === -1 ? -1 : line.indexOf(BODY, response);
  const length = line.at(-1) === NEWLINE ? line.length - 1 : line.length;
  const end = length - ANSWERED_END.length;
  return from === -1 || end < from + BODY.length ? null : line.subarray(from + BODY.length, end);
}

/**
 * Takes a finished line apart, with or without its newline; the parts are views of it.
 * Throws `answer.malformed` (Permanent) for a line that is none.
 */
export function partsOfLine(bytes: Buffer): AnswerParts {
  const line = bytes.at(-1) === NEWLINE ? bytes.subarray(0, -1) : bytes;
  const at = line.indexOf(RESPONSE);
  const named = line.indexOf(CUSTOM_ID);
  const index = LINE_INDEX.exec(line.toString('latin1', 0, Math.max(named, 0)))?.[1];
  if (at === -1 || index === undefined || line.at(-1) !== CLOSE_BRACE) throw malformed();
  const customId = line.subarray(named + CUSTOM_ID.length, at);
  const from = at + RESPONSE.length;
  const shared = { index: Number(index), customId };
  if (line[from] !== OPEN_BRACE) {
    const error = line.indexOf(ERROR, from);
    if (error === -1) throw malformed();
    const response = line.subarray(from, error);
    const rest = { response, error: line.subarray(error + ERROR.length, -1) };
    return { ...shared, ...rest, body: null, head: null };
  }
  const bodyAt = line.indexOf(BODY, from);
  const end = line.length - ANSWERED_END.length;
  if (bodyAt === -1 || line.toString('latin1', Math.max(end, 0)) !== ANSWERED_END) {
    throw malformed();
  }
  return {
    ...shared,
    response: line.subarray(from, end + 1),
    error: line.subarray(line.length - 5, -1),
    body: line.subarray(bodyAt + BODY.length, end),
    head: Buffer.concat([line.subarray(from, bodyAt), Buffer.from('}')]),
  };
}

function malformed() {
  return permanent('answer.malformed', 'a stored line is no finished line of a batch');
}
