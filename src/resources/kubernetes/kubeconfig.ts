import { readFile } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import * as v from 'valibot';
import { parse } from 'yaml';
import { describeError, errorCode, permanent } from '../../domain/errors.ts';
import type { SluiceError } from '../../domain/errors.ts';

const text = v.optional(v.string());

const clusterSchema = v.object({
  server: v.string(),
  'certificate-authority': text,
  'certificate-authority-data': text,
  'insecure-skip-tls-verify': v.optional(v.boolean()),
  'tls-server-name': text,
});

const userSchema = v.object({
  token: text,
  tokenFile: text,
  username: text,
  password: text,
  'client-certificate': text,
  'client-certificate-data': text,
  'client-key': text,
  'client-key-data': text,
  exec: v.optional(
    v.object({
      command: v.string(),
      args: v.nullish(v.array(v.string())),
      env: v.nullish(v.array(v.object({ name: v.string(), value: v.string() }))),
      apiVersion: text,
    }),
  ),
  'auth-provider': v.optional(v.object({ name: v.string() })),
});
export type KubeUser = v.InferOutput<typeof userSchema>;

const kubeconfigSchema = v.object({
  'current-context': v.nullish(v.string()),
  clusters: v.nullish(v.array(v.object({ name: v.string(), cluster: clusterSchema })), []),
  users: v.nullish(v.array(v.object({ name: v.string(), user: v.nullish(userSchema) })), []),
  contexts: v.nullish(
    v.array(
      v.object({
        name: v.string(),
        context: v.object({ cluster: v.string(), user: text, namespace: text }),
      }),
    ),
    [],
  ),
});

/** What one context of a kubeconfig says. */
export interface KubeContext {
  cluster: v.InferOutput<typeof clusterSchema>;
  user: KubeUser;
  namespace: string | null;
  /** Relative paths in it are meant from here. */
  folder: string;
  /** For people. */
  source: string;
}

/**
 * Reads a context, the current one unless named; of several files each name counts where it stands first, as for
 * kubectl. Rejects with Permanent `kubernetes.credentials`.
 */
export async function readKubeconfig(
  paths: readonly string[],
  wanted: string | undefined,
): Promise<KubeContext> {
  const files = await readAll(paths);
  const where = files.map(({ path }) => path).join(', ');
  const name = wanted ?? files.map(({ config }) => config['current-context']).find(Boolean);
  if (!name) {
    throw refused(`${where} has no current-context: set KUBERNETES_CONTEXT to one of its contexts`);
  }
  const known = files.flatMap(({ config }) => config.contexts);
  const context = known.find((each) => each.name === name)?.context;
  if (context === undefined) {
    const names = known.map((each) => each.name).join(', ') || 'none';
    throw refused(`${where} has no context '${name}', but ${names}: mend KUBERNETES_CONTEXT`);
  }
  const cluster = files
    .flatMap(({ config }) => config.clusters)
    .find((each) => each.name === context.cluster)?.cluster;
  if (cluster === undefined) throw refused(`${where} has no cluster '${context.cluster}'`);
  const user = userOf(files, context.user, where);
  return {
    cluster,
    user,
    namespace: context.namespace ?? null,
    folder: dirname(resolve(files[0]?.path ?? '.')),
    source: `context ${name} of ${where}`,
  };
}

function userOf(files: readonly File[], name: string | undefined, where: string): KubeUser {
  if (name === undefined) return {};
  const found = files.flatMap(({ config }) => config.users).find((each) => each.name === name);
  if (found === undefined) throw refused(`${where} has no user '${name}'`);
  const user = found.user ?? {};
  const provider = user['auth-provider'];
  if (provider !== undefined) {
    throw refused(
      `user '${name}' of ${where} has the auth-provider ${provider.name}, which kubectl has dropped, too: ` +
        'use its exec plugin, a token or a client certificate',
    );
  }
  return user;
}

interface File {
  path: string;
  config: v.InferOutput<typeof kubeconfigSchema>;
}

async function readAll(paths: readonly string[]): Promise<File[]> {
  const files: File[] = [];
  for (const path of paths) {
    const config = await read(path);
    // kubectl skips those of a list that are not there, too.
    if (config !== null) files.push({ path, config });
  }
  if (files.length > 0) return files;
  throw refused(
    `there is no kubeconfig at ${paths.join(' or ')}: name one in KUBECONFIG, or run in a pod with a service account`,
  );
}

async function read(path: string): Promise<File['config'] | null> {
  let content: string;
  try {
    content = await readFile(path, 'utf8');
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return null;
    throw refused(`the kubeconfig ${path} cannot be read: ${describeError(error)}`);
  }
  let document: unknown;
  try {
    document = parse(content);
  } catch {
    // The parser's message shows the line, which may hold a secret.
    throw refused(`the kubeconfig ${path} is no YAML`);
  }
  const parsed = v.safeParse(kubeconfigSchema, document);
  if (parsed.success) return parsed.output;
  const place = v.getDotPath(parsed.issues[0]) ?? 'it';
  throw refused(
    `the kubeconfig ${path} is not as it should be: ${place} is missing or of the wrong type`,
  );
}

function refused(message: string): SluiceError {
  return permanent('kubernetes.credentials', `No credentials for Kubernetes: ${message}.`);
}
