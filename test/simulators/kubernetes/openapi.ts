import type { Kind } from './kinds.ts';
import { apiVersionOf, KINDS } from './kinds.ts';
import { loadedModels, loadModel } from './models.ts';
import { VERSION } from './discovery.ts';

/*
 * OpenAPI documents for kubectl: version 2 as protobuf (kubectl before 1.27 reads nothing else, to
 * validate what it applies) and as JSON, version 3 as JSON, one a group. Schemas are made of the
 * client's models; what they do not say (required fields, formats) is left out.
 */

export interface Schema {
  $ref?: string;
  description?: string;
  type?: string;
  format?: string;
  items?: Schema;
  properties?: Record<string, Schema>;
  additionalProperties?: Schema;
  'x-kubernetes-group-version-kind'?: { group: string; kind: string; version: string }[];
  'x-kubernetes-patch-merge-key'?: string;
  'x-kubernetes-patch-strategy'?: string;
}

/** `io.k8s.api.batch.v1.Job`: only what kubectl shows or compares has to be the real name, and nothing does. */
const definitionOf = (model: string): string => `io.k8s.api.${model}`;

function schemaOf(type: string, format: string, prefix: string): Schema {
  const list = /^Array<(.*)>$/.exec(type)?.[1];
  if (list !== undefined) return { type: 'array', items: schemaOf(list, '', prefix) };
  if (type.startsWith('{ [key: string]:')) {
    return {
      type: 'object',
      additionalProperties: schemaOf(/\]: (.*); \}$/.exec(type)?.[1] ?? 'any', '', prefix),
    };
  }
  if (type === 'string') return { type: 'string', ...(format === '' ? {} : { format }) };
  if (type === 'boolean') return { type: 'boolean' };
  if (type === 'number')
    return format.startsWith('int') ? { type: 'integer', format } : { type: 'number' };
  if (type === 'Date' || type === 'V1MicroTime') return { type: 'string', format: 'date-time' };
  if (type === 'IntOrString') return { type: 'string', format: 'int-or-string' };
  if (type === 'any' || type === 'object') return { type: 'object' };
  return { $ref: `${prefix}${definitionOf(type)}` };
}

const MERGE_KEYS: Readonly<Record<string, string>> = {
  'V1PodSpec.containers': 'name',
  'V1PodSpec.initContainers': 'name',
  'V1PodSpec.volumes': 'name',
  'V1PodSpec.imagePullSecrets': 'name',
  'V1Container.env': 'name',
  'V1Container.ports': 'containerPort',
  'V1Container.volumeMounts': 'mountPath',
  'V1ServiceSpec.ports': 'port',
  'V1ObjectMeta.ownerReferences': 'uid',
};

let schemas: Promise<void> | undefined;

async function loadAll(): Promise<void> {
  schemas ??= (async () => {
    for (const { model } of KINDS) await loadModel(model);
  })();
  return schemas;
}

function definitions(prefix: string): Record<string, Schema> {
  const kinds = new Map(KINDS.map((kind): [string, Kind] => [kind.model, kind]));
  const all = loadedModels().map(([model, fields]): [string, Schema] => {
    const kind = kinds.get(model);
    const properties = fields.map(({ name, type, format }): [string, Schema] => {
      const schema = schemaOf(type, format, prefix);
      const key = MERGE_KEYS[`${model}.${name}`];
      if (key === undefined) return [name, schema];
      return [
        name,
        { ...schema, 'x-kubernetes-patch-merge-key': key, 'x-kubernetes-patch-strategy': 'merge' },
      ];
    });
    const { group = '', version = '' } = kind ?? {};
    return [
      definitionOf(model),
      {
        type: 'object',
        ...(properties.length === 0 ? {} : { properties: Object.fromEntries(properties) }),
        ...(kind === undefined
          ? {}
          : { 'x-kubernetes-group-version-kind': [{ group, kind: kind.kind, version }] }),
      },
    ];
  });
  return Object.fromEntries(all);
}

const INFO = { title: 'Kubernetes', version: VERSION.gitVersion };

export async function openApiV2(): Promise<{ definitions: Record<string, Schema> }> {
  await loadAll();
  return { swagger: '2.0', info: INFO, paths: {}, definitions: definitions('#/definitions/') } as {
    definitions: Record<string, Schema>;
  };
}

/** One group's paths: kubectl looks here whether the server validates fields and knows dry runs. */
export async function openApiV3(path: string): Promise<unknown> {
  await loadAll();
  const kinds = KINDS.filter(
    (kind) => `${kind.group === '' ? 'api' : 'apis'}/${apiVersionOf(kind)}` === path,
  );
  const parameters = ['dryRun', 'fieldManager', 'fieldValidation', 'force'].map((name) => ({
    name,
    in: 'query',
    schema: { type: 'string', uniqueItems: true },
  }));
  const paths = kinds.map((kind) => {
    const gvk = { group: kind.group, kind: kind.kind, version: kind.version };
    const scope = kind.namespaced ? '/namespaces/{namespace}' : '';
    const operation = (action: string) => ({
      'x-kubernetes-action': action,
      'x-kubernetes-group-version-kind': gvk,
      parameters,
      responses: { '200': { description: 'OK' } },
    });
    return [
      `/${path}${scope}/${kind.plural}/{name}`,
      { get: operation('get'), patch: operation('patch'), put: operation('put') },
    ];
  });
  return {
    openapi: '3.0.0',
    info: INFO,
    paths: Object.fromEntries(paths),
    components: { schemas: definitions('#/components/schemas/') },
  };
}

/* Protocol buffers: what gnostic's OpenAPIv2.proto numbers, as far as schemas need it. */

function varint(value: number): Buffer {
  const bytes: number[] = [];
  let rest = value;
  while (rest > 127) {
    bytes.push((rest & 127) | 128);
    rest >>>= 7;
  }
  bytes.push(rest);
  return Buffer.from(bytes);
}

function field(number: number, content: Buffer | string): Buffer {
  const bytes = typeof content === 'string' ? Buffer.from(content) : content;
  return Buffer.concat([varint((number << 3) | 2), varint(bytes.length), bytes]);
}

/** `name: value` pairs; both kinds of them number their parts 1 and 2. */
const named = (name: string, value: Buffer): Buffer =>
  Buffer.concat([field(1, name), field(2, value)]);

/** An extension's value is YAML text. */
const extension = (name: string, value: unknown): Buffer =>
  field(31, named(name, field(2, `${JSON.stringify(value)}\n`)));

function encodeSchema(schema: Schema): Buffer {
  const parts: Buffer[] = [];
  if (schema.$ref !== undefined) parts.push(field(1, schema.$ref));
  if (schema.format !== undefined) parts.push(field(2, schema.format));
  if (schema.additionalProperties !== undefined) {
    parts.push(field(21, field(1, encodeSchema(schema.additionalProperties))));
  }
  if (schema.type !== undefined) parts.push(field(22, field(1, schema.type)));
  if (schema.items !== undefined) parts.push(field(23, field(1, encodeSchema(schema.items))));
  if (schema.properties !== undefined) {
    const properties = Object.entries(schema.properties).map(([name, property]) =>
      field(1, named(name, encodeSchema(property))),
    );
    parts.push(field(25, Buffer.concat(properties)));
  }
  for (const [key, value] of Object.entries(schema)) {
    if (key.startsWith('x-')) parts.push(extension(key, value));
  }
  return Buffer.concat(parts);
}

/** The same document as a gnostic openapi.v2.Document. */
export async function openApiV2Protobuf(): Promise<Buffer> {
  const { definitions: all } = await openApiV2();
  const schemas = Object.entries(all).map(([name, schema]) =>
    field(1, named(name, encodeSchema(schema))),
  );
  const info = Buffer.concat([field(1, INFO.title), field(2, INFO.version)]);
  return Buffer.concat([
    field(1, '2.0'),
    field(2, info),
    field(8, Buffer.alloc(0)),
    field(9, Buffer.concat(schemas)),
  ]);
}

/** All models that kinds of objects are made of, for strict decoding. */
export async function loadKinds(): Promise<void> {
  await loadAll();
}
