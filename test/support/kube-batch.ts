import { readFile } from 'node:fs/promises';
import { buffer } from 'node:stream/consumers';
import { parse } from 'yaml';
import { isRecord } from '../simulators/kubernetes/objects.ts';
import { startKubernetes } from '../simulators/kubernetes/simulator.ts';
import type { KubernetesOptions, KubernetesSimulator } from '../simulators/kubernetes/simulator.ts';
import { finalKey, progressKey } from '../../src/domain/worker-progress.ts';
import type { WorkerProgress } from '../../src/domain/worker-progress.ts';
import type { Storage } from '../../src/storage/contract.ts';
import { createStorage } from '../../src/storage/index.ts';
import { expectExactLines, parseLines } from './batch.ts';
import type { Input, Results } from './batch.ts';
import { kubectl } from './kubernetes.ts';
import { ANY_KEYS, startS3Server } from './s3-server.ts';
import { until } from './until.ts';

const FOLDER = new URL('../../config/kubernetes/', import.meta.url);

/** Of an object of the API what a test changes. */
export type Loose = Record<string, unknown>;

/** A field of a loose object that is one itself. */
export function at(object: unknown, ...path: (string | number)[]): Loose {
  let found = object;
  for (const key of path) {
    if (Array.isArray(found)) found = found[Number(key)];
    else if (isRecord(found)) found = found[key];
  }
  if (!isRecord(found)) throw new Error(`there is nothing at ${path.join('.')}`);
  return found;
}

/** A cluster with the rights and the secret that the template wants, and a bucket. */
export interface BatchCluster extends AsyncDisposable {
  cluster: KubernetesSimulator;
  storage: Storage;
  /** Creates a Job from the template, with these annotations (without their prefix) and changes. */
  apply(
    name: string,
    annotations: Record<string, string>,
    options?: { template?: string; edit?(job: Loose): void },
  ): Promise<void>;
  /** What kubectl prints; an error unless it succeeds. */
  kubectl(...args: string[]): Promise<string>;
  uidOf(job: string): string;
  /** Names of pods of a Job that are there and have not ended, the newest last. */
  livePods(job: string): string[];
  progress(job: string): Promise<WorkerProgress | null>;
  final(job: string): Promise<WorkerProgress | null>;
  /** Waits until so many lines are committed. */
  untilAnswered(job: string, lines: number): Promise<void>;
  /** Waits until the Job has a condition: `Complete`, `Failed`. */
  untilCondition(job: string, type: string): Promise<void>;
  /** The files of a Job that is over: each line once, in order, and with its own answer. */
  expectAll(job: string, input: Input): Promise<Results>;
  /** What the worker of a pod wrote. */
  log(pod: string, previous?: boolean): string;
}

/** Two nodes with a GPU each, unless said otherwise. */
export async function startBatchCluster(options: KubernetesOptions = {}): Promise<BatchCluster> {
  const s3 = await startS3Server();
  const cluster = await startKubernetes(options);
  const bucket = await s3.createBucket();
  const { host, port } = await cluster.control.publish(Number(new URL(s3.url).port));
  const storage = await createStorage({
    type: 'S3',
    bucket,
    prefix: '',
    endpoint: s3.url,
    region: 'us-east-1',
    pathStyle: 'true',
    partBytes: 9 * 2 ** 20,
    credentials: ANY_KEYS,
  });

  async function run(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await kubectl(cluster, args);
    if (code !== 0) throw new Error(`kubectl ${args.join(' ')}: ${stderr}`);
    return stdout;
  }

  function jobOf(name: string) {
    const job = cluster.control.jobs().find(({ metadata }) => metadata.name === name);
    if (job === undefined) throw new Error(`there is no Job ${name}`);
    return job;
  }

  async function read(key: string): Promise<string> {
    return (await buffer(await storage.get(key))).toString('utf8');
  }

  async function document(key: string): Promise<WorkerProgress | null> {
    if ((await storage.head(key)) === null) return null;
    return JSON.parse(await read(key)) as WorkerProgress; // written by the worker of the same commit
  }

  function podsOf(job: string) {
    return cluster.control.pods().filter(({ metadata }) => metadata.labels?.['job-name'] === job);
  }

  /** What helps where something did not come. */
  function told(job: string): string {
    const pods = podsOf(job).map(({ metadata: { name } }) => `${name}:\n${world.log(name)}`);
    const events = cluster.control.events(`job/${job}`).map((event) => JSON.stringify(event));
    return [...pods.slice(-2), ...events.slice(-5)].join('\n');
  }

  function isOver(job: string): boolean {
    const { conditions = [] } = jobOf(job).status ?? {};
    return conditions.some(({ type, status }) => type === 'Failed' && status === 'True');
  }

  const world: BatchCluster = {
    cluster,
    storage,
    kubectl: run,
    async apply(name, annotations, { template = 'job-template.yaml', edit } = {}) {
      const job: unknown = parse(await readFile(new URL(template, FOLDER), 'utf8'));
      const metadata = at(job, 'metadata');
      metadata['name'] = name;
      metadata['annotations'] = Object.fromEntries(
        Object.entries(annotations).map(([key, value]) => [`batch.job.aibrix.ai/${key}`, value]),
      );
      edit?.(at(job));
      const { code, stderr } = await kubectl(cluster, ['apply', '-f', '-'], JSON.stringify(job));
      if (code !== 0) throw new Error(stderr);
    },
    uidOf: (name) => jobOf(name).metadata.uid,
    livePods: (job) =>
      podsOf(job)
        .filter(({ status }) => !['Succeeded', 'Failed'].includes(String(status?.phase)))
        .map(({ metadata }) => metadata.name),
    progress: async (job) => document(progressKey(world.uidOf(job), 0)),
    final: async (job) => document(finalKey(world.uidOf(job), 0)),
    async untilAnswered(job, lines) {
      const answered = async () => (await world.progress(job))?.request_counts?.completed ?? 0;
      const look = async () => isOver(job) || (await answered()) >= lines;
      await until(look, { timeoutMs: 60_000 }).catch(() => undefined);
      if ((await answered()) >= lines) return;
      throw new Error(`${lines} lines were not answered:\n${told(job)}`);
    },
    async untilCondition(job, type) {
      const isSo = () => {
        const { conditions = [] } = jobOf(job).status ?? {};
        return conditions.some((each) => each.type === type && each.status === 'True');
      };
      await until(() => isSo() || isOver(job), { timeoutMs: 60_000 }).catch(() => undefined);
      if (!isSo()) throw new Error(`the Job is not ${type}:\n${told(job)}`);
    },
    async expectAll(job, input) {
      const final = await world.final(job);
      const output = parseLines(final?.output == null ? '' : await read(final.output.key));
      const error = parseLines(final?.error == null ? '' : await read(final.error.key));
      expectExactLines({ output, error }, input);
      return { output, error };
    },
    log: (pod, previous) => cluster.control.logs(pod, 'batch-worker', previous).join('\n'),
    async [Symbol.asyncDispose]() {
      await cluster[Symbol.asyncDispose]();
      await s3[Symbol.asyncDispose]();
    },
  };
  await run('apply', '-f', new URL('job-rbac.yaml', FOLDER).pathname);
  const secret = {
    'access-key-id': ANY_KEYS.accessKeyId,
    'secret-access-key': ANY_KEYS.secretAccessKey,
    region: 'us-east-1',
    'bucket-name': bucket,
    'endpoint-url': `http://${host}:${port}`,
  };
  const metadata = { name: 'aibrix-s3-credentials' };
  const manifest = { apiVersion: 'v1', kind: 'Secret', metadata, stringData: secret };
  await kubectl(cluster, ['apply', '-f', '-'], JSON.stringify(manifest));
  return world;
}
