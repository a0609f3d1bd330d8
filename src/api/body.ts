import type { IncomingMessage } from 'node:http';
import * as v from 'valibot';
import { invalidInput } from '../domain/errors.ts';
import type { SluiceError } from '../domain/errors.ts';
import { CLIENT_CLOSED } from './errors.ts';

/** A JSON body holds ids and settings, never lines. */
const MAX_JSON_BYTES = 1024 * 1024;

/** Reads a JSON object of at most 1 MiB; anything else is invalid input (400, or 413 when it is larger). */
export async function readJson(incoming: IncomingMessage): Promise<Record<string, unknown>> {
  const text = decodeText(await readBytes(incoming));
  const value = parseJson(text);
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw invalidInput('invalid_json', 'The request body must be a JSON object.');
  }
  return value as Record<string, unknown>;
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
  try {
    return JSON.parse(text);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw invalidInput('invalid_json', `The request body is not valid JSON: ${reason}`, { cause });
  }
}

/** Message of the schema for keys that an object does not have; `parse` names them all. */
const UNKNOWN_KEY = 'unknown key';

/** An object with no keys but these. Elsewhere unknown keys are ignored, as OpenAI and protojson do. */
export function exactObject<const Entries extends v.ObjectEntries>(entries: Entries) {
  return v.objectWithRest(entries, v.never(UNKNOWN_KEY), 'an object');
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

type Issues = readonly [v.BaseIssue<unknown>, ...v.BaseIssue<unknown>[]];

function explain(issues: Issues): SluiceError {
  const unknown = issues.filter((issue) => issue.message === UNKNOWN_KEY).map(fieldOf);
  const [strange] = unknown;
  if (strange !== undefined) {
    const names = unknown.map((name) => `'${name}'`).join(', ');
    const what = unknown.length === 1 ? 'parameter' : 'parameters';
    return invalidInput('unknown_parameter', `Unknown ${what}: ${names}.`, { param: strange });
  }
  const [first] = issues;
  const param = fieldOf(first);
  const field = valueAt(first);
  if (field === undefined) {
    return invalidInput('missing_required_parameter', `Missing required parameter: '${param}'.`, {
      param,
    });
  }
  const message = `Invalid '${param}': it must be ${first.message}; got ${clip(field)}.`;
  return invalidInput(first.kind === 'schema' ? 'invalid_type' : 'invalid_value', message, {
    param,
  });
}

function fieldOf(issue: v.BaseIssue<unknown>): string {
  return v.getDotPath(issue) ?? 'body';
}

function valueAt(issue: v.BaseIssue<unknown>): unknown {
  const last = issue.path?.at(-1);
  return last === undefined ? issue.input : last.value;
}

/** Users' values in messages are cut: an error is no place for a megabyte. */
function clip(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 100 ? `${text.slice(0, 100)}…` : text;
}
