import { readFile } from 'node:fs/promises';
import { isIPv6 } from 'node:net';
import { join } from 'node:path';
import { Agent, request } from 'undici';
import * as v from 'valibot';
import { describeError, permanent, SluiceError, transient } from '../../domain/errors.ts';

/** Where the API server is, and what the pod's service account shows it. */
export interface InCluster {
  host: string;
  port: string;
  /** Folder of the service account. */
  directory: string;
}

const ASK_MS = 10_000;
const FIRST_AGAIN_MS = 500;
const LONGEST_AGAIN_MS = 5_000;

const annotations = v.optional(v.record(v.string(), v.string()), {});
const port = v.union([v.number(), v.string()]);
const probe = v.optional(
  v.object({
    httpGet: v.optional(
      v.object({
        path: v.optional(v.string()),
        port,
        host: v.optional(v.string()),
        scheme: v.optional(v.string()),
      }),
    ),
  }),
);
const container = v.object({
  name: v.string(),
  restartPolicy: v.optional(v.string()),
  ports: v.optional(
    v.array(v.object({ name: v.optional(v.string()), containerPort: v.number() })),
    [],
  ),
  readinessProbe: probe,
  livenessProbe: probe,
  startupProbe: probe,
});

/** Of a `batch/v1` Job what a worker needs. */
const jobSchema = v.object({
  metadata: v.object({
    name: v.string(),
    namespace: v.string(),
    uid: v.string(),
    creationTimestamp: v.optional(v.string()),
    annotations,
  }),
  spec: v.object({
    activeDeadlineSeconds: v.optional(v.number()),
    completions: v.optional(v.number()),
    parallelism: v.optional(v.number()),
    completionMode: v.optional(v.string()),
    template: v.object({
      metadata: v.optional(v.object({ annotations }), { annotations: {} }),
      spec: v.object({
        containers: v.array(container),
        initContainers: v.optional(v.array(container), []),
      }),
    }),
  }),
  status: v.optional(v.object({ startTime: v.optional(v.string()) }), {}),
});

export type KubernetesJob = v.InferOutput<typeof jobSchema>;
export type JobContainer = v.InferOutput<typeof container>;

interface JobName {
  name: string;
  namespace: string;
}

export interface JobReading {
  /** How long the API server may be away, ms. */
  patienceMs: number;
  signal: AbortSignal;
  sleep(ms: number, signal: AbortSignal): Promise<void>;
  /** Hears why it has to wait. */
  onWait(reason: string, ms: number): void;
}

/**
 * Reads a Job, for which the pod's service account needs `get` on jobs. One GET with what undici can do: Kubernetes'
 * own client would take 130 MB of the worker's memory for it. An API server that is away or busy is asked again for as
 * long as `patienceMs`. Rejects with `kubernetes.denied` (401, 403) and `kubernetes.no_job` (404), both Permanent and
 * with the mend, with `kubernetes.unavailable` (Transient) once the patience is over, and with the signal's reason.
 */
export async function readJob(
  where: InCluster,
  job: JobName,
  { patienceMs, signal, sleep, onWait }: JobReading,
): Promise<KubernetesJob> {
  const begun = performance.now();
  for (let waitMs = FIRST_AGAIN_MS; ; waitMs = Math.min(waitMs * 2, LONGEST_AGAIN_MS)) {
    try {
      return await askOnce(where, job, signal);
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof SluiceError && error.kind === 'Permanent') throw error;
      const waitedMs = performance.now() - begun;
      if (waitedMs > patienceMs) {
        const message = `The API server at ${originOf(where)} did not answer for ${Math.round(waitedMs / 1_000)} s: ${describeError(error)}`;
        throw transient('kubernetes.unavailable', message, { cause: error });
      }
      onWait(describeError(error), waitMs);
    }
    await sleep(waitMs, signal);
    signal.throwIfAborted();
  }
}

/** The namespace of the pod's service account; null where there is none. */
export async function ownNamespace({ directory }: InCluster): Promise<string | null> {
  try {
    return (await readFile(join(directory, 'namespace'), 'utf8')).trim();
  } catch {
    // Whether it is there decides nothing alone: JOB_NAMESPACE says the same.
    return null;
  }
}

async function askOnce(where: InCluster, job: JobName, signal: AbortSignal) {
  // The token is replaced in its file before it expires, which may be while we wait.
  const [token, ca] = await Promise.all([readOwn(where, 'token'), readOwn(where, 'ca.crt')]);
  const agent = new Agent({ connect: { ca, timeout: ASK_MS } });
  try {
    const path = `/apis/batch/v1/namespaces/${encodeURIComponent(job.namespace)}/jobs/${encodeURIComponent(job.name)}`;
    const { statusCode, body } = await request(`${originOf(where)}${path}`, {
      dispatcher: agent,
      headers: { authorization: `Bearer ${token.trim()}`, accept: 'application/json' },
      signal: AbortSignal.any([signal, AbortSignal.timeout(ASK_MS)]),
    });
    const text = await body.text();
    if (statusCode !== 200) throw refusal(statusCode, text, job, where);
    return parseJob(text);
  } finally {
    await agent.destroy();
  }
}

async function readOwn({ directory }: InCluster, file: string): Promise<string> {
  try {
    return await readFile(join(directory, file), 'utf8');
  } catch (cause) {
    throw permanent(
      'kubernetes.denied',
      `The pod has no service account: ${join(directory, file)} cannot be read (${describeError(cause)}). Set serviceAccountName: job-reader-sa and automountServiceAccountToken: true in the pod's template.`,
    );
  }
}

function originOf({ host, port: number }: InCluster): string {
  return `https://${isIPv6(host) ? `[${host}]` : host}:${number}`;
}

const statusSchema = v.pipe(v.string(), v.parseJson(), v.object({ message: v.string() }));

function refusal(status: number, text: string, { name, namespace }: JobName, where: InCluster) {
  const parsed = v.safeParse(statusSchema, text);
  const said = parsed.success ? parsed.output.message : text.slice(0, 500);
  const what = `Job ${namespace}/${name}`;
  if (status === 401) {
    const message = `The API server does not accept the pod's service account token (401: ${said}), so that ${what} cannot be read. See whether the ServiceAccount still exists: kubectl -n ${namespace} get serviceaccount`;
    return permanent('kubernetes.denied', message);
  }
  if (status === 403) {
    const message = `The pod's service account may not read ${what} (403: ${said}). It needs a Role with apiGroups ["batch"], resources ["jobs"], verbs ["get"] and a RoleBinding to it in namespace ${namespace} (config/kubernetes/job-rbac.yaml), and serviceAccountName: job-reader-sa in the pod's template.`;
    return permanent('kubernetes.denied', message);
  }
  if (status === 404) {
    const message = `There is no ${what} (404: ${said}). JOB_NAME and JOB_NAMESPACE have to name the Job that this pod belongs to: fill them from metadata.labels['job-name'] and metadata.namespace.`;
    return permanent('kubernetes.no_job', message);
  }
  return transient('kubernetes.unavailable', `${originOf(where)} answers ${status}: ${said}`);
}

function parseJob(text: string): KubernetesJob {
  const parsed = v.safeParse(v.pipe(v.string(), v.parseJson(), jobSchema), text);
  if (parsed.success) return parsed.output;
  const [issue] = parsed.issues;
  const where = v.getDotPath(issue) ?? 'it';
  throw transient(
    'kubernetes.unavailable',
    `What the API server sent is no Job: ${where}: ${issue.message}`,
  );
}
