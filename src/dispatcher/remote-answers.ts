import { permanent } from '../domain/errors.ts';
import type { SluiceError } from '../domain/errors.ts';
import { errorOnlyLine, outputLine } from './answer-lines.ts';
import { eachMember } from './json-scan.ts';
import { readLines } from './lines.ts';

const [OPEN_BRACE, QUOTE] = [0x7b, 0x22] as const;
/** What a line may have beside the answer: the custom_id, and the names of its members. */
const AROUND_ANSWER_BYTES = 1024 * 1024;

/** A line of another service's output or error file. */
export interface RemoteAnswer {
  customId: string;
  /** The line as it stood there, without its newline. */
  bytes: Buffer;
}

/** The answers of a file, in its order. Rejects with `remote.bad_line` (Permanent) for a line that is none. */
export async function* readRemoteAnswers(
  source: AsyncIterable<Uint8Array>,
  maxResponseBytes: number,
): AsyncGenerator<RemoteAnswer[]> {
  const maxLineBytes = maxResponseBytes + AROUND_ANSWER_BYTES;
  for await (const lines of readLines(source, { maxLineBytes })) {
    yield lines.map(({ bytes, number }) => {
      if (bytes === null) throw badLine(number, `is longer than ${maxLineBytes} bytes`);
      const customId = textOf(membersOf(bytes)?.get('custom_id'));
      if (customId === null) throw badLine(number, 'has no custom_id');
      return { customId, bytes };
    });
  }
}

/**
 * The answer as a finished line of ours. Whatever its members' order and the space between them there, here it is laid
 * out like all others; the engine's bytes and the status stay as they are, and `customId` is the user's raw JSON.
 */
export function finishedLine({ bytes }: RemoteAnswer, id: string, customId: Buffer): Buffer {
  const members = membersOf(bytes);
  const response = objectOf(members?.get('response'));
  const body = response?.get('body');
  if (response !== null && body !== undefined) return responseLine(id, customId, response, body);
  const error = objectOf(members?.get('error'));
  if (error === null) throw badLine(null, 'has neither a response nor an error');
  const code = textOf(error.get('code')) ?? 'remote.failed';
  const message = textOf(error.get('message')) ?? 'The remote service does not say why.';
  return errorOnlyLine({ id, customId, code, message });
}

function responseLine(
  id: string,
  customId: Buffer,
  response: Map<string, Buffer>,
  body: Buffer,
): Buffer {
  const status = Number(response.get('status_code')?.toString('latin1'));
  if (!Number.isInteger(status)) throw badLine(null, 'has no status_code');
  const requestId = textOf(response.get('request_id'));
  const pieces = outputLine({ id, customId, status, requestId, body });
  return Buffer.concat(pieces.map((each) => (typeof each === 'string' ? Buffer.from(each) : each)));
}

function objectOf(raw: Buffer | undefined): Map<string, Buffer> | null {
  return raw?.[0] === OPEN_BRACE ? membersOf(raw) : null;
}

/** Raw values of the members of an object; null for anything else. */
function membersOf(object: Buffer): Map<string, Buffer> | null {
  const members = new Map<string, Buffer>();
  const isObject = eachMember(object, ({ key, keyEnd, value, valueEnd }) => {
    members.set(object.toString('latin1', key + 1, keyEnd - 1), object.subarray(value, valueEnd));
  });
  return isObject ? members : null;
}

/** The text of a raw JSON string; null for any other value. */
function textOf(raw: Buffer | undefined): string | null {
  if (raw?.[0] !== QUOTE) return null;
  try {
    return String(JSON.parse(raw.toString('utf8')));
  } catch {
    return null; // malformed escapes are no text
  }
}

function badLine(number: number | null, what: string): SluiceError {
  const where = number === null ? 'a line' : `line ${number}`;
  return permanent('remote.bad_line', `${where} of the remote results ${what}`);
}
