import { toJsonSchema } from '@valibot/to-json-schema';
import type { ConversionConfig } from '@valibot/to-json-schema';
import type * as v from 'valibot';

/** A JSON schema of draft 2020-12, which is OpenAPI 3.1's own; only this file looks inside one. */
export type JsonSchema = Record<string, unknown>;
type Converted = ReturnType<typeof toJsonSchema>;

/** Schemas that have a name in `components/schemas`: what uses one refers to it. */
export type NamedSchemas = Record<string, v.GenericSchema>;

/**
 * The JSON schema of what a request may send: before transformations, with the schema's messages ("an integer from
 * 1 to 100") as descriptions, since some rules have no other form in JSON schema. A kind of schema that has no JSON
 * form is an error, so that nothing is left out in silence. What is named is referred to.
 */
export function jsonSchema(schema: v.GenericSchema, named: NamedSchemas = {}): JsonSchema {
  const names = new Map(Object.entries(named).map(([name, each]) => [each, name]));
  return convert(schema, (part) => names.get(part));
}

/** The definitions of the named schemas themselves. */
export function namedJsonSchemas(named: NamedSchemas): Record<string, JsonSchema> {
  const names = new Map(Object.entries(named).map(([name, each]) => [each, name]));
  return Object.fromEntries(
    Object.entries(named).map(([name, schema]) => [
      name,
      convert(schema, (part) => (part === schema ? undefined : names.get(part))),
    ]),
  );
}

function convert(
  schema: v.GenericSchema,
  nameOf: (part: v.GenericSchema) => string | undefined,
): JsonSchema {
  const config: ConversionConfig = {
    target: 'draft-2020-12',
    typeMode: 'input',
    overrideSchema({ valibotSchema, jsonSchema: made, errors }) {
      const name = nameOf(valibotSchema);
      if (name !== undefined) return { $ref: `#/components/schemas/${name}` };
      return errors === undefined ? described(simplified(made), valibotSchema) : null;
    },
    // Checks that are code have no JSON form: their message tells the rule.
    overrideAction: ({ valibotAction, jsonSchema: made }) => described(made, valibotAction),
  };
  const { $schema: _draft, ...converted } = toJsonSchema(schema, config);
  return { ...converted };
}

/** `X or null` as one type, and "no other key" as `false`, which readers of JSON schema know better. */
function simplified(made: Converted): Converted {
  const { additionalProperties: rest, anyOf, required, ...others } = made;
  const kept = {
    ...others,
    ...(required === undefined || required.length === 0 ? {} : { required }),
    ...(rest === undefined ? {} : { additionalProperties: isNever(rest) ? false : rest }),
  };
  if (anyOf === undefined) return kept;
  const [inner, other, ...more] = anyOf;
  const isNullable = more.length === 0 && typeof other === 'object' && other.type === 'null';
  if (!isNullable || typeof inner !== 'object' || typeof inner.type !== 'string') {
    return { ...kept, anyOf };
  }
  const values = inner.enum === undefined ? {} : { enum: [...inner.enum, null] };
  return { ...inner, ...values, ...kept, type: [inner.type, 'null'] };
}

function isNever(schema: unknown): boolean {
  return JSON.stringify(schema) === '{"not":{}}';
}

/** Messages that say no more than the schema's own words. */
const PLAIN = new Set(['an object', 'a string', 'an integer']);

function described(made: Converted, by: { type: string; message?: unknown }): Converted {
  const { type, message } = by;
  if (typeof message !== 'string' || PLAIN.has(message) || type === 'never') return made;
  if (made.description !== undefined || made.enum !== undefined) return made;
  return { ...made, description: `${message.charAt(0).toUpperCase()}${message.slice(1)}.` };
}

/**
 * The schema of a query parameter. A query is text: where only digits are taken it is shown as the integer that it
 * means, within the bounds that the schema checks after its transformation.
 */
export function parameterSchema(entry: v.GenericSchema): JsonSchema {
  const made = jsonSchema(entry);
  const { pattern, default: given, type: _type, ...rest } = made;
  if (typeof pattern !== 'string' || !/^\^(?:-\?)?\\d/.test(pattern)) return made;
  return {
    ...rest,
    type: 'integer',
    ...bounds(entry),
    ...(given === undefined ? {} : { default: Number(given) }),
  };
}

/** Bounds of the numbers that a pipe checks. */
function bounds(entry: v.GenericSchema): JsonSchema {
  const wrapped = 'wrapped' in entry ? entry.wrapped : entry;
  const hasPipe = typeof wrapped === 'object' && wrapped !== null && 'pipe' in wrapped;
  const pipe = hasPipe && Array.isArray(wrapped.pipe) ? wrapped.pipe : [];
  const found: JsonSchema = {};
  for (const { type, requirement } of pipe) {
    if (type === 'min_value') found['minimum'] = requirement;
    if (type === 'max_value') found['maximum'] = requirement;
  }
  return found;
}
