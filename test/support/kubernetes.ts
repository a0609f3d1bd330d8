import { spawn } from 'node:child_process';
import process from 'node:process';
import {
  AppsV1Api,
  BatchV1Api,
  CoordinationV1Api,
  CoreV1Api,
  KubeConfig,
  RbacAuthorizationV1Api,
} from '@kubernetes/client-node';
import { isRecord } from '../simulators/kubernetes/objects.ts';
import type { KubernetesSimulator } from '../simulators/kubernetes/simulator.ts';

/** Clients of a simulated cluster, by @kubernetes/client-node. */
export interface KubernetesClients {
  config: KubeConfig;
  core: CoreV1Api;
  batch: BatchV1Api;
  apps: AppsV1Api;
  rbac: RbacAuthorizationV1Api;
  coordination: CoordinationV1Api;
}

/** As the administrator, or with another token. */
export function kubernetesClients(cluster: KubernetesSimulator, token?: string): KubernetesClients {
  const config = new KubeConfig();
  config.loadFromFile(cluster.kubeconfig);
  const [user] = config.users;
  if (token !== undefined && user !== undefined) {
    config.loadFromOptions({
      clusters: config.clusters,
      contexts: config.contexts,
      currentContext: config.currentContext,
      users: [{ name: user.name, token }],
    });
  }
  return {
    config,
    core: config.makeApiClient(CoreV1Api),
    batch: config.makeApiClient(BatchV1Api),
    apps: config.makeApiClient(AppsV1Api),
    rbac: config.makeApiClient(RbacAuthorizationV1Api),
    coordination: config.makeApiClient(CoordinationV1Api),
  };
}

/** What an API server answered instead: code, reason and message of its Status. */
export interface Refusal {
  code: number;
  reason: string;
  message: string;
}

/** The Status with which `request` fails; throws if it does not. */
export async function refusalOf(request: Promise<unknown>): Promise<Refusal> {
  try {
    await request;
  } catch (error) {
    const { body, code } = error as { body?: unknown; code?: unknown };
    // It does not even read the body of a 401.
    if (code === 401) return { code, reason: 'Unauthorized', message: '' };
    // The client leaves a body that it does not know as text.
    const status: unknown = typeof body === 'string' ? JSON.parse(body) : body;
    if (isRecord(status)) {
      return {
        code: Number(status['code']),
        reason: String(status['reason']),
        message: String(status['message']),
      };
    }
    throw error;
  }
  throw new Error('the request was not refused');
}

export interface Kubectl {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** Runs kubectl as the administrator; KUBECTL names another program than the one on the PATH. */
export async function kubectl(
  { kubeconfig }: Pick<KubernetesSimulator, 'kubeconfig'>,
  args: readonly string[],
  input = '',
): Promise<Kubectl> {
  return shell({ kubeconfig }, [process.env['KUBECTL'] ?? 'kubectl', ...args], input);
}

/** Runs any program that finds the cluster by KUBECONFIG. */
export async function shell(
  { kubeconfig }: Pick<KubernetesSimulator, 'kubeconfig'>,
  [program = '', ...args]: readonly string[],
  input = '',
  cwd?: string,
): Promise<Kubectl> {
  const child = spawn(program, args, {
    env: { ...process.env, KUBECONFIG: kubeconfig },
    stdio: ['pipe', 'pipe', 'pipe'],
    ...(cwd === undefined ? {} : { cwd }),
  });
  const { promise, resolve, reject } = Promise.withResolvers<Kubectl>();
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  child.once('error', reject);
  child.once('close', (code) => resolve({ code, stdout, stderr }));
  child.stdin.on('error', () => {}); // it may end without reading: its exit code says so
  child.stdin.end(input);
  return promise;
}

/** A Job of one container, to be changed by `more`. */
export function jobOf(
  name: string,
  more: Record<string, unknown> = {},
  container: Record<string, unknown> = {},
) {
  return {
    apiVersion: 'batch/v1',
    kind: 'Job',
    metadata: { name },
    spec: {
      template: {
        spec: {
          restartPolicy: 'Never',
          // A shell that is told to end before its trap is set does not hear it.
          terminationGracePeriodSeconds: 2,
          containers: [{ name: 'main', image: 'busybox', command: ['true'], ...container }],
        },
      },
      ...more,
    },
  };
}
