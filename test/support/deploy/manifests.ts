import { readdirSync, readFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import * as v from 'valibot';
import { parseAllDocuments } from 'yaml';

/** The top of the repository. */
export const ROOT = join(import.meta.dirname, '../../..');

/** A file of the repository, by its path there. */
export function readText(path: string): string {
  return readFileSync(join(ROOT, path), 'utf8');
}

const container = v.looseObject({
  name: v.string(),
  image: v.string(),
  command: v.optional(v.array(v.string()), []),
  args: v.optional(v.array(v.string()), []),
  restartPolicy: v.optional(v.string()),
  env: v.optional(
    v.array(
      v.looseObject({
        name: v.string(),
        value: v.optional(v.string()),
        valueFrom: v.optional(
          v.looseObject({
            secretKeyRef: v.optional(
              v.looseObject({
                name: v.string(),
                key: v.string(),
                optional: v.optional(v.boolean(), false),
              }),
            ),
          }),
        ),
      }),
    ),
    [],
  ),
  envFrom: v.optional(
    v.array(
      v.looseObject({
        configMapRef: v.optional(v.looseObject({ name: v.string() })),
        secretRef: v.optional(v.looseObject({ name: v.string() })),
      }),
    ),
    [],
  ),
  ports: v.optional(
    v.array(v.looseObject({ name: v.optional(v.string()), containerPort: v.number() })),
    [],
  ),
  volumeMounts: v.optional(v.array(v.looseObject({ name: v.string(), mountPath: v.string() })), []),
  resources: v.optional(
    v.looseObject({
      requests: v.optional(v.record(v.string(), v.union([v.string(), v.number()])), {}),
      limits: v.optional(v.record(v.string(), v.union([v.string(), v.number()])), {}),
    }),
    {},
  ),
  securityContext: v.optional(v.looseObject({}), {}),
});
export type Container = v.InferOutput<typeof container>;

const podSpec = v.looseObject({
  serviceAccountName: v.optional(v.string()),
  automountServiceAccountToken: v.optional(v.boolean()),
  terminationGracePeriodSeconds: v.optional(v.number(), 30),
  securityContext: v.optional(v.looseObject({}), {}),
  initContainers: v.optional(v.array(container), []),
  containers: v.array(container),
  volumes: v.optional(v.array(v.looseObject({ name: v.string() })), []),
});

const labels = v.optional(v.record(v.string(), v.string()), {});
const metadata = v.looseObject({ name: v.string(), namespace: v.optional(v.string()), labels });

const manifest = v.looseObject({
  apiVersion: v.string(),
  kind: v.string(),
  metadata: v.optional(metadata),
});

/** One object of Kubernetes, and where it was read. */
export interface Manifest extends v.InferOutput<typeof manifest> {
  readonly source: string;
}

const workload = v.looseObject({
  selector: v.optional(v.looseObject({ matchLabels: labels }), {}),
  template: v.looseObject({
    metadata: v.looseObject({ labels }),
    spec: podSpec,
  }),
  volumeClaimTemplates: v.optional(v.array(v.looseObject({ metadata })), []),
});
export type Workload = v.InferOutput<typeof workload>;

const WORKLOADS = new Set(['Deployment', 'StatefulSet', 'Job']);

/** The `spec` of what makes pods; null for all other kinds. */
export function workloadOf(object: Manifest): Workload | null {
  return WORKLOADS.has(object.kind) ? v.parse(workload, object['spec']) : null;
}

/** All containers of a pod, sidecars included. */
export function containersOf({ template }: Workload): Container[] {
  return [...template.spec.initContainers, ...template.spec.containers];
}

/** The objects of a YAML text; throws for what YAML itself refuses. */
export function parseManifests(text: string, source: string): Manifest[] {
  return parseAllDocuments(text, { strict: true, uniqueKeys: true }).map((document) => {
    const [problem] = [...document.errors, ...document.warnings];
    if (problem !== undefined) throw new Error(`${source}: ${problem.message}`);
    return { ...v.parse(manifest, document.toJS()), source };
  });
}

/** Every YAML file below a folder of the repository, by its path there. */
export function yamlFiles(folder: string): string[] {
  const found = readdirSync(join(ROOT, folder), { recursive: true, withFileTypes: true });
  return found
    .filter((entry) => entry.isFile() && entry.name.endsWith('.yaml'))
    .map((entry) => relative(ROOT, join(entry.parentPath, entry.name)))
    .toSorted();
}

/** Every object below a folder; what is kustomize's own is none. */
export function readManifests(folder: string): Manifest[] {
  return yamlFiles(folder)
    .filter((path) => !path.endsWith('kustomization.yaml'))
    .flatMap((path) => parseManifests(readText(path), path));
}
