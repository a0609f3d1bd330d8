import type { IncomingMessage } from 'node:http';
import * as v from 'valibot';
import { invalidInput, SluiceError } from '../domain/errors.ts';
import { CLIENT_CLOSED } from './errors.ts';
import { nearest } from './nearest.ts';

/** A JSON body holds ids and settings, never lines. */
const MAX_JSON_BYTES = 1024 * 1024;

/** Of what clients call JSON: what they send without saying so (curl says that it is a form), and JSON itself. */
const JSON_TYPE = /^(?:application\/(?:[\w.+-]*json|x-www-form-urlencoded|octet-stream)|text\/)/i;
/** Deeper than any of our schemas; what walks a value by recursion must not meet the end of the stack. */
const MAX_DEPTH = 64;

/** Reads a JSON object of at most 1 MiB; anything else is invalid input (400, or 413 when it is larger). */
export async function readJson(incoming: IncomingMessage): Promise<Record<string, unknown>> {
  refuseType(incoming);
  const text = decodeText(await readBody(incoming));
  const value = parseJson(text);
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw invalidInput('invalid_json', 'The request body must be a JSON object.');
  }
  return value as Record<string, unknown>;
}

function refuseType({ headers }: IncomingMessage): void {
  const type = headers['content-type'];
  if (type !== undefined && type !== '' && !JSON_TYPE.test(type)) {
    throw invalidInput(
      'invalid_content_type',
      `The body of this request is JSON: send it as Content-Type: application/json, not '${type.slice(0, 100)}'.`,
    );
  }
  const encoding = headers['content-encoding'] ?? 'identity';
  if (encoding.toLowerCase() === 'identity') return;
  throw invalidInput(
    'invalid_content_encoding',
    `Send the body of this request as it is, without Content-Encoding; got '${encoding.slice(0, 100)}'.`,
  );
}

const bodies = new WeakMap<IncomingMessage, Promise<Buffer>>();

/** The whole body of at most 1 MiB, also when it was read before. */
export function readBody(incoming: IncomingMessage): Promise<Buffer> {
  const body = bodies.get(incoming) ?? readBytes(incoming);
  bodies.set(incoming, body);
  return body;
}

async function readBytes(incoming: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  try {
    // Leaving the loop must not destroy the request: its socket still carries the refusal.
    for await (const chunk of incoming.iterator({ destroyOnReturn: false })) {
      chunks.push(chunk);
      bytes += chunk.length;
      if (bytes > MAX_JSON_BYTES) break;
    }
  } catch (cause) {
    throw clientClosed(cause);
  }
  if (bytes > MAX_JSON_BYTES) {
    throw invalidInput(
      'content_size_limit_exceeded',
      `A JSON body may have at most ${MAX_JSON_BYTES} bytes.`,
      { status: 413 },
    );
  }
  return Buffer.concat(chunks);
}

/** Equal values give equal texts, in whatever order their keys came. */
export function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_key, inner: unknown) =>
    typeof inner === 'object' && inner !== null && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).toSorted(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  );
}

/** The same of a body; one that is no JSON, which will be refused, stands for itself. */
export function canonicalBody(bytes: Buffer): string {
  try {
    return canonicalJson(parseJson(decodeText(bytes)));
  } catch (error) {
    if (error instanceof SluiceError) return bytes.toString('latin1');
    throw error;
  }
}

/** The client hung up before its request was complete. */
export function clientClosed(cause?: unknown): SluiceError {
  return invalidInput(
    'client_closed_request',
    'The client hung up before the request was complete.',
    {
      status: CLIENT_CLOSED,
      cause,
    },
  );
}

function decodeText(bytes: Buffer): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (cause) {
    throw invalidInput('invalid_json', 'The request body is not valid UTF-8.', { cause });
  }
}

function parseJson(text: string): unknown {
  if (isTooDeep(text)) {
    throw invalidInput(
      'invalid_json',
      `The request body is nested deeper than ${MAX_DEPTH} levels.`,
    );
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw invalidInput('invalid_json', `The request body is not valid JSON: ${reason}`, { cause });
  }
}

function isTooDeep(text: string): boolean {
  let depth = 0;
  // Strings are skipped whole: what looks like a bracket in them is none.
  for (const [token] of text.matchAll(/"(?:[^"\\]|\\.)*"?|[[\]{}]/gs)) {
    if (token === '{' || token === '[') depth += 1;
    else if (token === '}' || token === ']') depth -= 1;
    if (depth > MAX_DEPTH) return true;
  }
  return false;
}

/** Begins the message of the schema for keys that an object does not have; those that it has follow. */
const UNKNOWN_KEY = 'unknown key: ';

/** An object with no keys but these: OpenAI refuses others, and a typo that has no effect is found too late. */
export function exactObject<const Entries extends v.ObjectEntries>(entries: Entries) {
  const refused = v.never(`${UNKNOWN_KEY}${Object.keys(entries).join(' ')}`);
  return v.objectWithRest(entries, refused, 'an object');
}

/**
 * Parses `input`. A schema's message says what is allowed ("an integer from 1 to 100"); the error, invalid input,
 * names the field. `prefix` stands before the names.
 */
export function parse<Schema extends v.GenericSchema>(
  schema: Schema,
  input: unknown,
): v.InferOutput<Schema> {
  const parsed = v.safeParse(schema, input);
  if (parsed.success) return parsed.output;
  throw explain(parsed.issues);
}

/** So many unknown keys are named in one refusal. */
const MAX_NAMES = 10;

type Issue = v.BaseIssue<unknown>;
type Issues = readonly [Issue, ...Issue[]];

function explain(issues: Issues): SluiceError {
  const unknown = issues.filter((issue) => issue.message.startsWith(UNKNOWN_KEY));
  const [strange] = unknown;
  if (strange !== undefined) return unknownKeys(unknown, strange);
  const [first] = issues;
  const param = fieldOf(first);
  const field = valueAt(first);
  if (field === undefined) {
    return invalidInput('missing_required_parameter', `Missing required parameter: '${param}'.`, {
      param,
    });
  }
  const message = `Invalid '${param}': it must be ${first.message}; got ${clip(field)}.`;
  return invalidInput(isWrongType(first, field) ? 'invalid_type' : 'invalid_value', message, {
    param,
  });
}

function unknownKeys(issues: readonly Issue[], first: Issue): SluiceError {
  const names = issues.slice(0, MAX_NAMES).map((issue) => `'${fieldOf(issue)}'`);
  if (issues.length > MAX_NAMES) names.push('…');
  const what = issues.length === 1 ? 'parameter' : 'parameters';
  const known = first.message.slice(UNKNOWN_KEY.length).split(' ');
  const near = nearest(String(first.path?.at(-1)?.key), known);
  const mend =
    near === null
      ? `Send none but those that the documentation lists: ${known.join(', ')}.`
      : `Did you mean '${near}'?`;
  const message = `Unknown ${what}: ${names.join(', ')}. ${mend}`;
  return invalidInput('unknown_parameter', message, { param: fieldOf(first) });
}

/** Whether the value is of a kind that the field never takes, or of the right kind and not one that it allows. */
function isWrongType(issue: Issue, field: unknown): boolean {
  // Checks come after types; a value that a pipe has changed by then was of the right type.
  if (issue.kind !== 'schema' || issue.input !== field) return false;
  if (issue.issues !== undefined) return issue.issues.every((each) => isWrongType(each, field));
  // The words that a field allows are all texts.
  return !['picklist', 'literal'].includes(issue.type) || typeof field !== 'string';
}

function fieldOf(issue: Issue): string {
  return cut(v.getDotPath(issue) ?? 'body');
}

function valueAt(issue: Issue): unknown {
  const last = issue.path?.at(-1);
  return last === undefined ? issue.input : last.value;
}

/** Users' values in messages are cut: an error is no place for a megabyte. */
function clip(value: unknown): string {
  return typeof value === 'string'
    ? `'${cut(value)}'`
    : cut(JSON.stringify(value) ?? String(value));
}

function cut(text: string): string {
  return text.length > 100 ? `${text.slice(0, 100)}…` : text;
}
