import { Ajv2020 } from 'ajv/dist/2020.js';
import type { ErrorObject } from 'ajv/dist/2020.js';

/*
 * Checks of request bodies by JSON Schema. The words of a refusal are those that RunPod's v2 was seen
 * to use ("$: additional properties 'x' not allowed", "$.action: value must be one of 'start', …").
 */

const ajv = new Ajv2020({ strict: false, allErrors: true, validateFormats: false });

function place(pointer: string): string {
  return `$${pointer.replaceAll(/\/(\d+)/g, '[$1]').replaceAll('/', '.')}`;
}

function kindOf(value: unknown): string {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'array';
  return typeof value;
}

function quoted(words: unknown): string {
  return Array.isArray(words) ? words.map((word) => `'${String(word)}'`).join(', ') : '';
}

function describe(error: ErrorObject, value: unknown): string {
  const params = error.params as Record<string, unknown>; // ajv's, by keyword
  switch (error.keyword) {
    case 'additionalProperties':
      return `additional properties '${String(params['additionalProperty'])}' not allowed`;
    case 'required':
      return `missing property '${String(params['missingProperty'])}'`;
    case 'enum':
      return `value must be one of ${quoted(params['allowedValues'])}`;
    case 'type':
      return `got ${kindOf(value)}, want ${[params['type']].flat().join(' or ')}`;
    case 'minimum':
    case 'maximum':
      return `${error.keyword}: got ${String(value)}, want ${String(params['limit'])}`;
    case 'pattern':
      return `'${String(value)}' does not match pattern '${String(params['pattern'])}'`;
    case 'minLength':
    case 'maxLength':
    case 'minItems':
    case 'maxItems': {
      const length = typeof value === 'string' || Array.isArray(value) ? value.length : 0;
      return `${error.keyword}: got ${length}, want ${String(params['limit'])}`;
    }
    default:
      return error.message ?? error.keyword;
  }
}

function at(value: unknown, pointer: string): unknown {
  let found = value;
  for (const key of pointer.split('/').slice(1)) found = (found as Record<string, unknown>)[key];
  return found;
}

/** What is wrong with a value, one text each; empty when nothing is. */
export type BodyCheck = (value: unknown) => string[];

/** Compiles a schema of JSON Schema 2020-12. */
export function compileCheck(schema: object): BodyCheck {
  const validate = ajv.compile(schema);
  return (value) => {
    if (validate(value)) return [];
    return (validate.errors ?? []).map((error) => {
      const where = error.instancePath;
      return `${place(where)}: ${describe(error, at(value, where))}`;
    });
  };
}
