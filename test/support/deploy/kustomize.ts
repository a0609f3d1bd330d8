import { existsSync } from 'node:fs';
import { spawnSync } from 'node:child_process';
import { dirname, join, relative } from 'node:path';
import * as v from 'valibot';
import { parse } from 'yaml';
import { requireProgram } from '../require-program.ts';
import { parseManifests, readText, ROOT, yamlFiles } from './manifests.ts';
import type { Manifest } from './manifests.ts';

const names = v.optional(v.array(v.string()), []);

const kustomization = v.strictObject({
  apiVersion: v.string(),
  kind: v.picklist(['Kustomization', 'Component']),
  namespace: v.optional(v.string()),
  resources: names,
  components: names,
  images: v.optional(
    v.array(v.strictObject({ name: v.string(), newName: v.string(), newTag: v.string() })),
    [],
  ),
  configMapGenerator: v.optional(
    v.array(
      v.strictObject({
        name: v.string(),
        behavior: v.optional(v.picklist(['create', 'merge', 'replace'])),
        literals: names,
        files: names,
      }),
    ),
    [],
  ),
  patches: v.optional(
    v.array(
      v.strictObject({
        target: v.strictObject({
          kind: v.string(),
          name: v.optional(v.string()),
          labelSelector: v.optional(v.string()),
        }),
        patch: v.string(),
      }),
    ),
    [],
  ),
});

export interface Kustomization extends v.InferOutput<typeof kustomization> {
  readonly path: string;
  /** Files and folders of the repository that it takes in. */
  readonly taken: string[];
}

/** Every kustomization below a folder of the repository; throws for a field that is none. */
export function readKustomizations(folder: string): Kustomization[] {
  const paths = yamlFiles(folder).filter((path) => path.endsWith('kustomization.yaml'));
  return paths.map((path) => {
    const read = v.parse(kustomization, parse(readText(path)));
    const taken = [
      ...read.resources,
      ...read.components,
      ...read.configMapGenerator.flatMap(({ files }) => files),
    ].map((name) => relative(ROOT, join(ROOT, dirname(path), name)));
    return { ...read, path, taken };
  });
}

/** What a kustomization takes in that is not there. */
export function missingFiles({ path, taken }: Kustomization): string[] {
  return taken
    .filter((name) => !existsSync(join(ROOT, name)))
    .map((name) => `${path}: there is no ${name}`);
}

const clientVersion = v.pipe(
  v.string(),
  v.parseJson(),
  v.looseObject({ clientVersion: v.looseObject({ gitVersion: v.string() }) }),
);

/** Why no overlay can be rendered here; undefined where one can. Components came with kubectl 1.21. */
export function whyNoKustomize(): string | undefined {
  const args = ['version', '--client', '-o', 'json'];
  const { stdout } = spawnSync(requireProgram('kubectl'), args, { encoding: 'utf8' });
  const { gitVersion } = v.parse(clientVersion, stdout).clientVersion;
  const minor = Number(/^v1\.(\d+)/.exec(gitVersion)?.[1]);
  return minor >= 21 ? undefined : `(kubectl ${gitVersion} knows no components, 1.21 does)`;
}

/** What `kubectl apply -k` would apply. */
export function render(folder: string): Manifest[] {
  const args = ['kustomize', join(ROOT, folder)];
  const { status, stdout, stderr } = spawnSync(requireProgram('kubectl'), args, {
    encoding: 'utf8',
  });
  if (status !== 0) throw new Error(`kubectl kustomize ${folder}: ${stderr}`);
  if (stderr !== '') throw new Error(`kubectl kustomize ${folder} warns: ${stderr}`);
  return parseManifests(stdout, folder);
}
