import * as v from 'valibot';
import { describe, expect, test } from 'vitest';
import { jsonSchema, parameterSchema } from '../../src/api/docs/json-schema.ts';
import { exactObject } from '../../src/api/body.ts';
import { describeApi, DOCS } from '../../src/api/openapi.ts';
import { limitSchema } from '../../src/api/query.ts';
import { METHODS } from '../../src/api/routes.ts';
import type { Route } from '../../src/api/routes.ts';
import { documentErrors, operationsOf, schemaCheck } from '../support/openapi.ts';

/** Routes that answer nothing, one for each description. */
const routes: Route[] = Object.entries(DOCS).map(([path, docs]) => {
  const described = METHODS.filter((method) => docs[method] !== undefined);
  return { path, ...Object.fromEntries(described.map((method) => [method, answerNothing])) };
});
const document = describeApi(routes);
const operations = operationsOf(document);
const check = schemaCheck(document);

function answerNothing(): Response {
  return new Response();
}

describe('the document', () => {
  test('is valid OpenAPI 3.1', async () => {
    expect(await documentErrors(document)).toBe('');
    const { info: _info, ...headless } = document;
    expect(await documentErrors(headless as typeof document)).not.toBe('');
  });

  test('has every description, each under an id of its own', () => {
    const described = Object.values(DOCS).flatMap((docs) => Object.keys(docs));
    expect(operations).toHaveLength(described.length);
    expect(new Set(operations.map(({ operationId }) => operationId)).size).toBe(operations.length);
  });

  test('leaves a route without a description out', () => {
    const { paths } = describeApi([{ path: '/undescribed', get: answerNothing }]);
    expect(paths).toEqual({});
  });

  test.for(operations)('$method $path: examples are valid by their schemas', (operation) => {
    const bodies = Object.values(operation.requestBody?.content ?? {});
    expect(bodies.filter(({ example }) => example === undefined)).toEqual([]);
    const answers = Object.values(operation.responses).flatMap(({ content }) =>
      Object.values(content).filter(({ example }) => example !== undefined),
    );
    const faults = [...bodies, ...answers].map(({ schema, example }) => check(schema, example));
    expect(faults.filter(Boolean)).toEqual([]);
  });

  const bodies = Object.entries(DOCS).flatMap(([path, docs]) =>
    Object.values(docs).flatMap(({ body }) => (body === undefined ? [] : [{ path, body }])),
  );
  test.for(bodies)('POST $path: the example is valid by what validates it', ({ body }) => {
    expect(v.safeParse(body.schema, body.example).issues).toBeUndefined();
  });

  test('a schema refuses what its request refuses', () => {
    const create = operations.find(({ operationId }) => operationId === 'postV1Batches');
    const { schema, example } = create?.requestBody?.content['application/json'] ?? {};
    const wrong = [
      { endpoint: '/v1/images' },
      { input_file_id: undefined },
      { metadata: { n: 1 } },
      { metadata: ['x'] },
      { aibrix: { clint: {} } },
      { aibrix: { client: { max_concurrency: 0 } } },
    ];
    for (const change of wrong) {
      const body: unknown = JSON.parse(JSON.stringify({ ...Object(example), ...change }));
      expect([change, check(schema ?? {}, body)]).not.toEqual([change, '']);
    }
  });
});

describe('a schema as JSON schema', () => {
  test('a message becomes the description, null joins the type, no other key is false', () => {
    const rule = 'a text of at most 3 characters';
    const name = v.nullish(v.pipe(v.string(rule), v.maxLength(3, rule)));
    expect(jsonSchema(exactObject({ name, kind: v.picklist(['a', 'b'], 'a or b') }))).toEqual({
      type: 'object',
      properties: {
        name: {
          type: ['string', 'null'],
          maxLength: 3,
          description: 'A text of at most 3 characters.',
        },
        kind: { type: 'string', enum: ['a', 'b'] },
      },
      required: ['kind'],
      additionalProperties: false,
    });
  });

  test('a number of a query is an integer within its bounds', () => {
    expect(parameterSchema(limitSchema(100, 20))).toEqual({
      type: 'integer',
      minimum: 1,
      maximum: 100,
      default: 20,
      description: 'An integer from 1 to 100.',
    });
  });

  test('a schema without a JSON form is an error', () => {
    expect(() => jsonSchema(v.object({ when: v.date() }))).toThrow('date');
  });
});
