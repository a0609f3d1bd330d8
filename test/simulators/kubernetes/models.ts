import { readdirSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { isRecord } from './objects.ts';

/*
 * The fields of each kind, as Kubernetes' own OpenAPI document names them: @kubernetes/client-node
 * carries them with its generated models. Each model is loaded when it is first asked for.
 */

export interface Field {
  name: string;
  /** `string`, `Array<V1EnvVar>`, `{ [key: string]: string; }`, `V1PodSpec` … */
  type: string;
  format: string;
}

interface Model {
  attributeTypeMap?: { baseName: string; type: string; format: string }[];
}

const FOLDER = path.dirname(fileURLToPath(import.meta.resolve('@kubernetes/client-node')));
const MODELS = path.join(FOLDER, 'gen/models');

let names: Set<string> | undefined;
const loaded = new Map<string, Field[] | undefined>();

function isModel(name: string): boolean {
  names ??= new Set(readdirSync(MODELS).filter((file) => file.endsWith('.js')));
  return names.has(`${name}.js`);
}

async function load(name: string): Promise<Field[] | undefined> {
  const url = pathToFileURL(path.join(MODELS, `${name}.js`)).href;
  const models = (await import(url)) as Record<string, Model>; // one class, by the file's name
  return models[name]?.attributeTypeMap?.map(({ baseName, type, format }) => ({
    name: baseName,
    type,
    format,
  }));
}

/** The model inside `Array<V1EnvVar>` or `{ [key: string]: V1X; }`, or the type itself. */
function innerType(type: string): string {
  const inner = /^Array<(.*)>$/.exec(type)?.[1] ?? /^\{ \[key: string\]: (.*); \}$/.exec(type)?.[1];
  return inner === undefined ? type : innerType(inner);
}

/** The fields of `model`; undefined for what is no model. All models below it are loaded, too. */
export async function loadModel(model: string): Promise<void> {
  if (loaded.has(model) || !isModel(model)) return;
  loaded.set(model, undefined);
  const fields = await load(model);
  loaded.set(model, fields);
  for (const { type } of fields ?? []) await loadModel(innerType(type));
}

/** Of a model that `loadModel` has brought. */
function fieldsOf(model: string): readonly Field[] | undefined {
  return loaded.get(model);
}

/** Models that `loadModel` has brought, with their fields. */
export function loadedModels(): [string, readonly Field[]][] {
  return [...loaded].flatMap(([name, fields]) =>
    fields === undefined ? [] : [[name, fields] as [string, readonly Field[]]],
  );
}

const FREE = new Set(['V1FieldsV1', 'IntOrString', 'V1JSONSchemaProps']);

/** Paths in `value` that its model does not know, as strict decoding lists them: `unknown field "spec.x"`. */
export function unknownFields(model: string, value: unknown, at = ''): string[] {
  const array = /^Array<(.*)>$/.exec(model)?.[1];
  if (array !== undefined) {
    const items: unknown[] = Array.isArray(value) ? value : [];
    return items.flatMap((item, index) => unknownFields(array, item, `${at}[${index}]`));
  }
  const fields = FREE.has(model) ? undefined : fieldsOf(model);
  if (fields === undefined || !isRecord(value)) return [];
  return Object.entries(value).flatMap(([key, child]) => {
    const field = fields.find(({ name }) => name === key);
    const where = at === '' ? key : `${at}.${key}`;
    return field === undefined
      ? [`unknown field "${where}"`]
      : unknownFields(field.type, child, where);
  });
}
