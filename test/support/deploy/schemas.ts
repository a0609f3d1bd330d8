import { Ajv } from 'ajv';
import type { validate as validateJob } from 'kubernetes-models/_schemas/IoK8sApiBatchV1Job';
import * as v from 'valibot';
import type { Manifest } from './manifests.ts';
import { SCALED_OBJECT } from './keda-schema.ts';

/** All modules of schemas are alike. */
const schemaModule = v.looseObject({
  validate: v.custom<typeof validateJob>((value) => typeof value === 'function'),
});
const problems = v.nullish(
  v.array(v.looseObject({ instancePath: v.string(), keyword: v.string(), params: v.unknown() })),
  [],
);

const scaledObject = new Ajv({ allErrors: true }).compile(SCALED_OBJECT);

/** `rbac.authorization.k8s.io/v1` and `Role` are in the module IoK8sApiRbacV1Role. */
function moduleOf({ apiVersion, kind }: Manifest): string {
  const [group, version] = apiVersion.includes('/') ? apiVersion.split('/') : ['core', apiVersion];
  const [first = ''] = (group ?? '').split('.');
  const words = [first, version ?? ''].map((word) => word.charAt(0).toUpperCase() + word.slice(1));
  return `kubernetes-models/_schemas/IoK8sApi${words.join('')}${kind}`;
}

/** A value whose every read is noted by its path, so that fields that no rule looks at are found. */
function watched(value: unknown, path: string, seen: Set<string>): unknown {
  if (typeof value !== 'object' || value === null) return value;
  return new Proxy(value, {
    get(target, key) {
      const below = `${path}/${String(key)}`;
      seen.add(below);
      return watched(Reflect.get(target, key), below, seen);
    },
  });
}

function* pathsOf(value: unknown, path: string): Generator<string> {
  if (typeof value !== 'object' || value === null) return;
  for (const [key, below] of Object.entries(value)) {
    yield `${path}/${key}`;
    yield* pathsOf(below, `${path}/${key}`);
  }
}

/**
 * What Kubernetes' own schemas say against an object, and every field that they do not know: the API server refuses or
 * drops such a one, while the schemas pass it. Empty for a good object.
 */
export async function faultsOf(object: Manifest): Promise<string[]> {
  const { source, ...plain } = object;
  const where = `${source}: ${object.kind} ${object.metadata?.name ?? ''}`;
  if (object.apiVersion === 'keda.sh/v1alpha1') {
    if (scaledObject(plain)) return [];
    return (scaledObject.errors ?? []).map(
      ({ instancePath, message, params }) =>
        `${where} ${instancePath} ${message ?? ''} ${JSON.stringify(params)}`,
    );
  }
  const loaded: unknown = await import(moduleOf(object));
  const { validate } = v.parse(schemaModule, loaded);
  const seen = new Set<string>();
  const isValid = validate(watched(plain, '', seen));
  const errors = v.parse(problems, 'errors' in validate ? validate.errors : null);
  const unknown = [...pathsOf(plain, '')].filter(
    (path) => !seen.has(path) && (seen.has(path.slice(0, path.lastIndexOf('/'))) || isTop(path)),
  );
  return [
    ...(isValid ? [] : ['is not valid']),
    ...(errors ?? []).map(
      (each) => `${each.instancePath} ${each.keyword} ${JSON.stringify(each.params)}`,
    ),
    ...unknown.map((path) => `${path} is unknown`),
  ].map((fault) => `${where} ${fault}`);
}

function isTop(path: string): boolean {
  return path.lastIndexOf('/') === 0;
}
