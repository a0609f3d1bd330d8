import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import * as v from 'valibot';
import { describeError, permanent } from '../../domain/errors.ts';
import { readKubeconfig } from './kubeconfig.ts';
import type { KubeUser } from './kubeconfig.ts';

/** Where a cluster's API server is, and how this process proves itself there. */
export interface ClusterAccess {
  /** Base URL, without a trailing slash. */
  server: string;
  /** Namespace of the credentials; null: they name none. */
  namespace: string | null;
  /** The process runs in a pod of the cluster, so that names of Services lead somewhere. */
  isInCluster: boolean;
  tls: {
    ca?: string;
    cert?: string;
    key?: string;
    rejectUnauthorized?: boolean;
    servername?: string;
  };
  /** Value of the header; null: the client certificate says who we are. Rejects with Permanent `kubernetes.credentials`. */
  authorization(): Promise<string | null>;
  /** Where the credentials are from, for people. */
  source: string;
}

export interface AccessSettings {
  /** Path of a kubeconfig, or several with colons between, as in KUBECONFIG. */
  kubeconfig?: string | undefined;
  /** Unset: the kubeconfig's current one. */
  context?: string | undefined;
  /** Host and port that pods find in KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT; null: outside of any. */
  inCluster: { host: string; port: string } | null;
  /** Folder of the pod's service account. */
  serviceAccount?: string;
}

const SERVICE_ACCOUNT = '/var/run/secrets/kubernetes.io/serviceaccount';
/** Tokens in files are renewed by kubelet long before they end. */
const FILE_TOKEN_MS = 60_000;
/** What is about to expire is asked for anew. */
const EXPIRES_SOON_MS = 60_000;
const EXEC_MS = 30_000;

/**
 * Finds the credentials: a kubeconfig that is named, else the pod's own, else `~/.kube/config`. Rejects with Permanent
 * `kubernetes.credentials` that says what to mend.
 */
export async function openAccess(settings: AccessSettings): Promise<ClusterAccess> {
  const { kubeconfig, context, inCluster } = settings;
  if (kubeconfig === undefined && inCluster !== null) return openPodAccess(settings, inCluster);
  const paths = (kubeconfig ?? join(homedir(), '.kube', 'config')).split(':').filter(Boolean);
  const { cluster, user, namespace, folder, source } = await readKubeconfig(paths, context);
  const { 'insecure-skip-tls-verify': isInsecure } = cluster;
  const servername = cluster['tls-server-name'];
  const ca = await pem(
    cluster['certificate-authority-data'],
    cluster['certificate-authority'],
    folder,
  );
  const cert = await pem(user['client-certificate-data'], user['client-certificate'], folder);
  const key = await pem(user['client-key-data'], user['client-key'], folder);
  return {
    server: cluster.server.replace(/\/+$/, ''),
    namespace,
    isInCluster: false,
    tls: {
      ...(ca === null ? {} : { ca }),
      ...(cert === null || key === null ? {} : { cert, key }),
      ...(isInsecure === true ? { rejectUnauthorized: false } : {}),
      ...(servername === undefined ? {} : { servername }),
    },
    authorization: authorizationOf(user, folder),
    source,
  };
}

async function openPodAccess(
  { serviceAccount = SERVICE_ACCOUNT }: AccessSettings,
  { host, port }: { host: string; port: string },
): Promise<ClusterAccess> {
  const [ca, namespace] = await Promise.all([
    readText(join(serviceAccount, 'ca.crt')),
    readText(join(serviceAccount, 'namespace')),
  ]);
  const shown = host.includes(':') ? `[${host}]` : host;
  return {
    server: `https://${shown}:${port}`,
    namespace: namespace.trim() || null,
    isInCluster: true,
    tls: { ca },
    authorization: fileToken(join(serviceAccount, 'token')),
    source: 'the service account of this pod',
  };
}

function refused(message: string, cause?: unknown) {
  return permanent('kubernetes.credentials', message, cause === undefined ? {} : { cause });
}

async function readText(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    throw refused(
      `${path} of the credentials for Kubernetes cannot be read: ${describeError(error)}`,
    );
  }
}

async function pem(
  data: string | undefined,
  path: string | undefined,
  folder: string,
): Promise<string | null> {
  if (data !== undefined) return Buffer.from(data, 'base64').toString('utf8');
  return path === undefined ? null : readText(resolve(folder, path));
}

function authorizationOf(user: KubeUser, folder: string): ClusterAccess['authorization'] {
  if (user.exec !== undefined) return execToken(user.exec, folder);
  if (user.tokenFile !== undefined) return fileToken(resolve(folder, user.tokenFile));
  const { token, username, password } = user;
  if (token !== undefined) return async () => `Bearer ${token}`;
  if (username === undefined) return async () => null;
  const basic = Buffer.from(`${username}:${password ?? ''}`).toString('base64');
  return async () => `Basic ${basic}`;
}

function fileToken(path: string): ClusterAccess['authorization'] {
  let kept: { until: number; value: Promise<string> } | null = null;
  return async () => {
    if (kept === null || performance.now() >= kept.until) {
      const value = readText(path).then((text) => `Bearer ${text.trim()}`);
      kept = { until: performance.now() + FILE_TOKEN_MS, value };
      // The next one reads it anew.
      value.catch(() => (kept = null));
    }
    return kept.value;
  };
}

const credential = v.pipe(
  v.string(),
  v.parseJson(),
  v.object({
    status: v.object({
      token: v.string(),
      expirationTimestamp: v.nullish(v.string()),
    }),
  }),
);

/** A program that prints a credential (client.authentication.k8s.io), as those of EKS, GKE and AKS do. */
function execToken(
  { command, args, env, apiVersion }: NonNullable<KubeUser['exec']>,
  folder: string,
): ClusterAccess['authorization'] {
  let kept: { until: number; value: Promise<string> } | null = null;
  const version = apiVersion ?? 'client.authentication.k8s.io/v1';
  const info = JSON.stringify({
    apiVersion: version,
    kind: 'ExecCredential',
    spec: { interactive: false },
  });
  // A path in it is meant from the kubeconfig's folder, a bare name from PATH.
  const program = command.includes('/') ? resolve(folder, command) : command;
  const pairs = [...(env ?? []), { name: 'KUBERNETES_EXEC_INFO', value: info }];
  const words = [...pairs.map(({ name, value }) => `${name}=${value}`), program, ...(args ?? [])];

  async function ask(): Promise<string> {
    try {
      const { stdout } = await promisify(execFile)('env', words, { timeout: EXEC_MS });
      const { status } = v.parse(credential, stdout);
      const expires = Date.parse(status.expirationTimestamp ?? '');
      const leftMs = Number.isNaN(expires) ? Infinity : expires - Date.now() - EXPIRES_SOON_MS;
      if (kept !== null) kept.until = performance.now() + leftMs;
      return `Bearer ${status.token}`;
    } catch (error) {
      kept = null;
      throw refused(
        `The program ${command} of the kubeconfig gives no credential for Kubernetes: run it by hand to see why.`,
        error,
      );
    }
  }
  return async () => {
    if (kept === null || performance.now() >= kept.until) {
      kept = { until: Infinity, value: Promise.resolve('') };
      kept.value = ask();
    }
    return kept.value;
  };
}
