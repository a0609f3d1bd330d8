import type { EngineSite, SecretFile } from '../../domain/engines/contract.ts';
import { engineCommand } from '../../domain/engines/index.ts';
import { ENGINE_PORT } from '../../domain/engines/public-url.ts';
import { invalidInput } from '../../domain/errors.ts';
import type { JobResources } from '../../domain/lease.ts';
import type { MachineProvider } from '../../domain/provision.ts';
import type { TemplateSpec } from '../../domain/template.ts';
import type { EngineId, EngineStart } from './engine.ts';

/** One engine a machine, so that another job of the same template finds the one that is there. */
const ENGINE_NAME = 'sluice-engine';
/** Docker gives 64 MB, and the workers of one model talk through it. It is a limit: what is not written costs nothing. */
const SHM_SIZE = '16g';
/** Where a machine that runs containers keeps weights itself, so that a second container need not fetch them again. */
const HOST_CACHE = '/opt/sluice/cache';

/**
 * Of an engine that reads its key from a file only, in the folder that goes with the engine. A leased container is logged
 * in to as root.
 */
const KEY_FILE = `/root/.sluice/engines/${ENGINE_NAME}/key.yaml`;

/** What starting an engine takes beside the template and the machine. */
export interface EngineParts {
  /** How engines are run on this provider's machines: in a container of their own, or as a process. */
  engineForm(provider: MachineProvider, isCallers?: boolean): EngineId['kind'];
  /** Where what keeps weights beyond a lease is mounted on this provider's machines; null: there is none. */
  modelCachePath(provider: MachineProvider): string | null;
  /** Entries of the secret of a name; null: there is none of that name. */
  secret(name: string): Promise<Readonly<Record<string, string>> | null>;
  /** The S3 interface of the object storage that holds weights; null: that of AWS. */
  objectStore(type: TemplateSpec['model_source']['type']): {
    endpoint: string;
    region: string;
  } | null;
}

/** A machine as far as it matters for how its engine is started. */
export interface EnginePlace {
  provider: MachineProvider;
  isCallers?: boolean;
  /** The key that the engine asks the world for; null: it listens to its machine only. */
  apiKey: string | null;
}

export type EngineOrder = Pick<JobResources, 'spec' | 'servingName'>;

export function engineOn(
  { provider, isCallers = false }: Pick<EnginePlace, 'provider' | 'isCallers'>,
  parts: EngineParts,
): EngineId {
  return { name: ENGINE_NAME, kind: parts.engineForm(provider, isCallers) };
}

/**
 * How the engine of a template is started on a provider's machines. Throws InvalidInput: what `engineCommand` throws, and
 * `engine.secret_missing`.
 */
export async function composeStart(
  place: EnginePlace,
  { spec, servingName }: EngineOrder,
  parts: EngineParts,
): Promise<EngineStart> {
  const { provider, isCallers = false, apiKey } = place;
  const { name, kind } = engineOn(place, parts);
  const mounted = isCallers ? null : parts.modelCachePath(provider);
  const cacheDir = mounted ?? (kind === 'docker' ? HOST_CACHE : null);
  const command = engineCommand(spec, {
    servingName,
    port: ENGINE_PORT,
    modelPath: null,
    cacheDir,
    apiKeyFile: apiKey === null ? null : KEY_FILE,
    // The runner's own; its lines go there over stdin, and it is gone once the engine has read them.
    secretsFile: `.sluice/engines/${name}/env`,
    objectStore: parts.objectStore(spec.model_source.type),
    listensTo: listensTo(kind, apiKey),
  });
  const env = { ...command.env };
  const files: EngineStart['files'][number][] = [];
  for (const file of command.secretFiles) {
    const values = await valuesOf(file, apiKey, parts);
    if (file.format === 'env') Object.assign(env, values);
    else files.push({ path: file.path, text: yamlOf(values) });
  }
  if (kind === 'process') return { name, form: { kind }, argv: command.argv, env, files };
  const [entrypoint = '', ...argv] = command.argv;
  return {
    name,
    argv,
    env,
    files,
    form: {
      kind,
      image: command.image,
      entrypoint,
      gpus: 'all',
      shmSize: SHM_SIZE,
      port: ENGINE_PORT,
      volumes: cacheDir === null ? [] : [{ from: cacheDir, to: cacheDir }],
      shared: command.paths.filter((path) => path !== cacheDir),
    },
  };
}

function listensTo(kind: EngineId['kind'], apiKey: string | null): EngineSite['listensTo'] {
  if (kind === 'docker') return 'container';
  return apiKey === null ? 'machine' : 'world';
}

async function valuesOf(
  { entries }: SecretFile,
  apiKey: string | null,
  { secret }: EngineParts,
): Promise<Record<string, string>> {
  const values: Record<string, string> = {};
  for (const { name, source } of entries) {
    const value = source.kind === 'api_key' ? apiKey : (await secret(source.name))?.[source.entry];
    if (source.kind === 'named' && (value ?? '') === '') throw missing(source.name, source.entry);
    values[name] = value ?? '';
  }
  return values;
}

/** JSON's texts are YAML's. */
function yamlOf(values: Readonly<Record<string, string>>): string {
  return Object.entries(values)
    .map(([name, value]) => `${name}: ${JSON.stringify(value)}\n`)
    .join('');
}

function missing(name: string, entry: string) {
  return invalidInput(
    'engine.secret_missing',
    `model_source.auth_secret_ref names the secret '${name}', and its entry '${entry}' is not there: ` +
      `write it into the file ${name}/${entry} of the folder that ENGINE_SECRETS_DIR names (chmod 600), ` +
      'or leave auth_secret_ref empty where the model is public',
    { param: 'model_source.auth_secret_ref' },
  );
}
