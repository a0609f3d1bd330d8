import type { ApiError } from './api-error.ts';
import { findJsonFault } from './json-fault.ts';

/*
 * What pydantic refuses, as validation_exception_handler of
 * vllm/entrypoints/serve/exception_handling/handlers/validation.py shows it (vLLM 0.32.0, seen).
 */

/** One entry of pydantic's list. */
interface FieldFault {
  type: string;
  /** Dotted, from `body` on. */
  loc: string;
  msg: string;
  input: unknown;
  ctx?: Record<string, string>;
}

const MAX_REPORTED = 10;
const MAX_INPUT_CHARS = 200;

/** A text as Python's repr quotes it. */
function repr(text: string): string {
  const escaped = text.replaceAll('\\', '\\\\').replaceAll('\n', '\\n').replaceAll('\r', '\\r');
  if (text.includes("'") && !text.includes('"')) return `"${escaped}"`;
  return `'${escaped.replaceAll("'", "\\'")}'`;
}

/** Containers are counted, everything else is shown as Python's str() does and cut. */
function summarize(input: unknown): string {
  if (Array.isArray(input)) return `<list of ${input.length} items>`;
  if (input === null || input === undefined) return 'None';
  if (typeof input === 'object') return `<dict of ${Object.keys(input).length} items>`;
  if (typeof input === 'boolean') return input ? 'True' : 'False';
  const text = typeof input === 'string' ? input : JSON.stringify(input);
  return text.length > MAX_INPUT_CHARS ? `${text.slice(0, MAX_INPUT_CHARS)}...[truncated]` : text;
}

function formatFault({ type, loc, msg, input, ctx }: FieldFault): string {
  const parts = [
    `'type': ${repr(type)}, 'loc': ${repr(loc)}, 'msg': ${repr(msg)}`,
    `'input': ${repr(summarize(input))}`,
  ];
  const pairs = Object.entries(ctx ?? {}).map(([key, value]) => `${repr(key)}: ${repr(value)}`);
  if (pairs.length > 0) parts.push(`'ctx': {${pairs.join(', ')}}`);
  return `{${parts.join(', ')}}`;
}

/** The 400 of one or more refused fields; its `param` is the place of the first. */
function invalid(faults: readonly FieldFault[]): ApiError {
  const label = faults.length === 1 ? 'error' : 'errors';
  const lines = faults.slice(0, MAX_REPORTED).map((fault) => `  ${formatFault(fault)}`);
  const more = faults.length - lines.length;
  if (more > 0) lines.push(`  ...and ${more} more ${label}`);
  const message = `${faults.length} validation ${label}:\n${lines.join('\n')}`;
  return { status: 400, message, type: 'Bad Request', param: faults[0]?.loc ?? null };
}

/**
 * The fields that are not there. Where vLLM's request is a union, pydantic complains once for each
 * of its variants, so a name may stand in `fields` several times.
 */
export function missing(body: Record<string, unknown>, fields: readonly string[]): ApiError {
  const absent = fields.filter((field) => body[field] === undefined);
  return invalid(
    absent.map((field) => ({
      type: 'missing',
      loc: `body.${field}`,
      msg: 'Field required',
      input: body,
    })),
  );
}

const WANTED = { string: 'string', list: 'list', dict: 'dictionary', int: 'integer' } as const;

/** A field of the wrong type. */
export function wrongType(field: string, wanted: keyof typeof WANTED, input: unknown): ApiError {
  const msg = `Input should be a valid ${WANTED[wanted]}`;
  const loc = `body.${field}`;
  if (wanted === 'int' && typeof input === 'string') {
    const why = `${msg}, unable to parse string as an integer`;
    return invalid([{ type: 'int_parsing', loc, msg: why, input }]);
  }
  return invalid([{ type: `${wanted}_type`, loc, msg, input }]);
}

/** A field that is none of the words it may be. */
export function notOneOf(field: string, words: readonly string[], input: unknown): ApiError {
  const quoted = words.map(repr);
  const expected = `${quoted.slice(0, -1).join(', ')} or ${quoted.at(-1) ?? ''}`;
  const msg = `Input should be ${expected}`;
  return invalid([{ type: 'literal_error', loc: `body.${field}`, msg, input, ctx: { expected } }]);
}

/** No body at all. */
export function emptyBody(): ApiError {
  return invalid([{ type: 'missing', loc: 'body', msg: 'Field required', input: null }]);
}

/** A body that is no JSON. */
export function malformedJson(text: string): ApiError {
  const { at, message } = findJsonFault(text) ?? { at: 0, message: 'Expecting value' };
  const ctx = { error: message };
  return invalid([
    { type: 'json_invalid', loc: `body.${at}`, msg: 'JSON decode error', input: {}, ctx },
  ]);
}

/** JSON, but no object; one complaint for each variant of the request. */
export function noObject(input: unknown, variants: number): ApiError {
  const msg = 'Input should be a valid dictionary or object to extract fields from';
  const fault = { type: 'model_attributes_type', loc: 'body', msg, input };
  return invalid(Array.from({ length: variants }, () => fault));
}

/** serve/utils/api_utils.py validate_json_request, whose complaint is a text and names no field. */
export function unsupportedMediaType(): ApiError {
  const message =
    "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed";
  return { status: 400, message, type: 'Bad Request', param: null };
}
