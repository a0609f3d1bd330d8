import { createHash } from 'node:crypto';
import { batchDocs } from './docs/batches.ts';
import { fileDocs } from './docs/files.ts';
import { jobDocs } from './docs/jobs.ts';
import { jsonSchema, namedJsonSchemas, parameterSchema } from './docs/json-schema.ts';
import type { JsonSchema, NamedSchemas } from './docs/json-schema.ts';
import { TAGS } from './docs/operation.ts';
import type { Answer, Body, Docs, Operation } from './docs/operation.ts';
import { liveDocs } from './docs/live.ts';
import { machineDocs } from './docs/machines.ts';
import { manifestDocs } from './docs/manifest.ts';
import { modelDocs } from './docs/models.ts';
import { opsDocs } from './docs/ops.ts';
import { provisionDocs } from './docs/provisions.ts';
import { webhookDocs } from './docs/webhooks.ts';
import { uploadDocs } from './docs/uploads.ts';
import { validateDocs } from './docs/validate.ts';
import { isKnown } from './etag.ts';
import { METHODS } from './routes.ts';
import type { ApiContext, Route } from './routes.ts';
import * as consoleApi from './schemas/console.ts';
import * as openai from './schemas/openai.ts';

/** Every description; a route that has none here, or a description without a route, fails a test. */
export const DOCS: Docs = {
  ...fileDocs,
  ...uploadDocs,
  ...batchDocs,
  ...validateDocs,
  ...jobDocs,
  ...liveDocs,
  ...manifestDocs,
  ...modelDocs,
  ...provisionDocs,
  ...machineDocs,
  ...webhookDocs,
  ...opsDocs,
};

const NAMED: NamedSchemas = {
  Error: openai.errorSchema,
  File: openai.fileSchema,
  FileList: openai.fileListSchema,
  Batch: openai.batchSchema,
  BatchList: openai.batchListSchema,
  Upload: openai.uploadSchema,
  UploadPart: openai.uploadPartSchema,
  Job: consoleApi.jobSchema,
  JobList: consoleApi.jobListSchema,
  Model: consoleApi.modelSchema,
  Template: consoleApi.templateSchema,
  Provision: consoleApi.provisionSchema,
  Webhook: consoleApi.webhookSchema,
};

/** A body of one content type. */
export interface MediaType {
  schema: JsonSchema;
  example?: unknown;
}

/** One method of one path. */
export interface OperationObject {
  operationId: string;
  tags: string[];
  summary: string;
  description?: string;
  parameters?: JsonSchema[];
  requestBody?: { required: boolean; content: Record<string, MediaType> };
  responses: Record<string, { description: string; content: Record<string, MediaType> }>;
}

/** An OpenAPI 3.1 document. */
export interface OpenApi {
  openapi: string;
  info: { title: string; version: string; description: string };
  servers: { url: string }[];
  tags: { name: string; description: string }[];
  paths: Record<string, Record<string, OperationObject>>;
  components: { schemas: Record<string, JsonSchema> };
}

const ABOUT =
  'Files, batches and uploads are those of OpenAI: its SDKs work with `base_url` set to `/v1` of this server. ' +
  'HEAD is answered wherever GET is, and a slash may end a path. Every answer carries `x-request-id`, by which the ' +
  "server's log is found.";

/** Describes these routes; what `docs` does not know of is left out. */
export function describeApi(routes: readonly Route[], docs: Docs = DOCS): OpenApi {
  const paths: OpenApi['paths'] = {};
  for (const route of routes) {
    const described = METHODS.flatMap((method) => {
      const operation = route[method] === undefined ? undefined : docs[route.path]?.[method];
      const entry = operation && operationObject(method, route.path, operation);
      return entry === undefined ? [] : [[method, entry] as const];
    });
    if (described.length > 0) paths[templated(route.path)] = Object.fromEntries(described);
  }
  return {
    openapi: '3.1.0',
    info: { title: 'Sluice', version: '1', description: ABOUT },
    servers: [{ url: '/' }],
    tags: Object.entries(TAGS).map(([name, description]) => ({ name, description })),
    paths,
    components: { schemas: namedJsonSchemas(NAMED) },
  };
}

/** `/v1/files/:id` as OpenAPI spells it: `/v1/files/{id}`. */
function templated(path: string): string {
  return path.replaceAll(/:(\w+)/g, '{$1}');
}

function operationObject(method: string, path: string, operation: Operation): OperationObject {
  const { tag, summary, description, body, answer } = operation;
  const parameters = [
    ...pathParameters(path),
    ...queryParameters(operation),
    ...headerParameters(operation),
    ...(method === 'post' ? [IDEMPOTENCY_KEY] : []),
  ];
  return {
    operationId: operationId(method, path),
    tags: [tag],
    summary,
    ...(description === undefined ? {} : { description }),
    ...(parameters.length === 0 ? {} : { parameters }),
    ...(body === undefined ? {} : { requestBody: bodyObject(body) }),
    responses: {
      [String(answer.status ?? 200)]: answerObject(answer),
      default: {
        description: 'What went wrong, in the form of OpenAI.',
        content: { 'application/json': { schema: { $ref: '#/components/schemas/Error' } } },
      },
    },
  };
}

/** Unique, since a path has a method once: that of `post /v1/batches/:id/cancel` is `postV1BatchesIdCancel`. */
function operationId(method: string, path: string): string {
  const words = path.split(/[^A-Za-z0-9]+/).filter(Boolean);
  return method + words.map((word) => word.charAt(0).toUpperCase() + word.slice(1)).join('');
}

function pathParameters(path: string): JsonSchema[] {
  return [...path.matchAll(/:(\w+)/g)].map(([, name]) => ({
    name,
    in: 'path',
    required: true,
    schema: { type: 'string' },
  }));
}

function queryParameters({ query }: Operation): JsonSchema[] {
  return Object.entries(query?.entries ?? {}).map(([name, entry]) => {
    const { description, ...schema } = parameterSchema(entry);
    return {
      name,
      in: 'query',
      required: !('default' in entry) && entry.type !== 'optional' && entry.type !== 'nullish',
      ...(description === undefined ? {} : { description }),
      schema,
    };
  });
}

function headerParameters({ headers = {} }: Operation): JsonSchema[] {
  return Object.entries(headers).map(([name, description]) => ({
    name,
    in: 'header',
    required: false,
    description,
    schema: { type: 'string' },
  }));
}

/** Every POST takes the key, whatever it makes. */
const IDEMPOTENCY_KEY = {
  name: 'Idempotency-Key',
  in: 'header',
  required: false,
  description:
    'A text of 1 to 255 characters: a repeat with the same key, path and body gets the answer of the first request, ' +
    'any other request under it is refused.',
  schema: { type: 'string', minLength: 1, maxLength: 255 },
};

function bodyObject(body: Body): NonNullable<OperationObject['requestBody']> {
  const { schema, type = 'application/json', example, optional } = body;
  const described = jsonSchema(schema, NAMED);
  return { required: optional !== true, content: { [type]: { schema: described, example } } };
}

function answerObject(answer: Answer): OperationObject['responses'][string] {
  const { description, type = 'application/json', schema, example, also = {} } = answer;
  const content = {
    schema: jsonSchema(schema, NAMED),
    ...(example === undefined ? {} : { example }),
  };
  const others = Object.entries(also).map(([name, other]) => [
    name,
    { schema: jsonSchema(other, NAMED) },
  ]);
  return { description, content: { [type]: content, ...Object.fromEntries(others) } };
}

/** The route of the document; it is made at the first request, and told unchanged by its ETag. */
export function openApiRoute(routes: () => readonly Route[]): Route {
  let made: { text: string; etag: string } | null = null;
  function document(): { text: string; etag: string } {
    if (made !== null) return made;
    const text = JSON.stringify(describeApi(routes()));
    const digest = createHash('sha256').update(text).digest('base64url');
    made = { text, etag: `"${digest.slice(0, 27)}"` };
    return made;
  }
  function get(c: ApiContext): Response {
    const { text, etag } = document();
    const headers = {
      ETag: etag,
      'Cache-Control': 'no-cache',
      'X-Content-Type-Options': 'nosniff',
    };
    if (isKnown(c, etag)) return c.body(null, 304, headers);
    return c.body(text, 200, { ...headers, 'Content-Type': 'application/json' });
  }
  return { path: '/openapi.json', get };
}
