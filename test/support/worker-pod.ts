import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { buffer } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { finalKey, progressKey } from '../../src/domain/worker-progress.ts';
import type { WorkerProgress } from '../../src/domain/worker-progress.ts';
import type { Storage } from '../../src/storage/contract.ts';
import { createStorage } from '../../src/storage/index.ts';
import { makeCertificates } from '../simulators/kubernetes/certificates.ts';
import type { S3Server } from './s3-server.ts';
import { ANY_KEYS } from './s3-server.ts';
import { until } from './until.ts';

const PROGRAM = fileURLToPath(new URL('../../src/main/batch-worker.ts', import.meta.url));
const PREFIX = 'batch.job.aibrix.ai/';

/** What an API server answers when it is asked for the Job; `away`: it does not. */
export type ApiMood = 'well' | 'away' | 401 | 403 | 404 | 500;

/** The one Job of an API server that knows nothing else. */
export interface TestJob {
  /** Without the prefix. */
  annotations?: Record<string, string>;
  podAnnotations?: Record<string, string>;
  spec?: Record<string, unknown>;
  containers?: readonly object[];
  initContainers?: readonly object[];
  startTime?: string;
}

export interface WorkerSite extends AsyncDisposable {
  uid: string;
  storage: Storage;
  /** How often the Job was asked for. */
  readonly asked: number;
  mood: ApiMood;
  job: TestJob;
  /** Stores an input under an id. */
  upload(id: string, text: string): Promise<void>;
  /** Starts a worker in a pod of its own. */
  start(env?: Record<string, string>, flags?: readonly string[]): WorkerPod;
  progress(index?: number): Promise<WorkerProgress | null>;
  final(index?: number): Promise<WorkerProgress | null>;
  read(key: string): Promise<string>;
  keys(prefix: string): Promise<string[]>;
}

export interface WorkerPod {
  uid: string;
  pid: number;
  /** Resolves with the exit code; null: killed. */
  exited: Promise<number | null>;
  /** What it has logged. */
  log: { level: string; msg: string; [field: string]: unknown }[];
  /** Everything that it wrote. */
  text(): string;
  kill(signal?: NodeJS.Signals): Promise<number | null>;
}

/** A Job, its API server, its storage, and pods of it as processes. */
export async function startSite(options: {
  s3?: S3Server;
  engine: string;
  env?: Record<string, string>;
}): Promise<WorkerSite> {
  const folder = await mkdtemp(join(tmpdir(), 'worker-pod-'));
  const uid = `uid-${randomBytes(6).toString('hex')}`;
  const api = await startApi(uid, folder);
  const { storage, env: storageEnv } = await openStorage(folder, options.s3);
  const pods: WorkerPod[] = [];
  const site: WorkerSite = {
    uid,
    storage,
    get asked() {
      return api.state.asked;
    },
    get mood() {
      return api.state.mood;
    },
    set mood(mood) {
      api.state.mood = mood;
    },
    get job() {
      return api.state.job;
    },
    set job(job) {
      api.state.job = job;
    },
    async upload(id, text) {
      await storage.put(`files/${id}`, [Buffer.from(text)]);
    },
    start(env = {}, flags = []) {
      const podUid = `pod-${randomBytes(4).toString('hex')}`;
      const pod = startPod(podUid, flags, {
        PATH: process.env['PATH'] ?? '',
        ...(process.env['NODE_COMPILE_CACHE'] === undefined
          ? {}
          : { NODE_COMPILE_CACHE: process.env['NODE_COMPILE_CACHE'] }),
        KUBERNETES_SERVICE_HOST: '127.0.0.1',
        KUBERNETES_SERVICE_PORT: String(api.port),
        SERVICE_ACCOUNT_DIR: folder,
        JOB_NAME: 'a-job',
        JOB_NAMESPACE: 'default',
        POD_UID: podUid,
        POD_NAME: `a-job-${podUid}`,
        LLM_READY_ENDPOINT: `${options.engine}/health`,
        LOG_LEVEL: 'DEBUG',
        SHUTDOWN_GRACE: '1s',
        ...storageEnv,
        ...options.env,
        ...env,
      });
      pods.push(pod);
      return pod;
    },
    progress: async (index = 0) => readJson(storage, progressKey(uid, index)),
    final: async (index = 0) => readJson(storage, finalKey(uid, index)),
    read: async (key) => (await buffer(await storage.get(key))).toString('utf8'),
    async keys(prefix) {
      const found: string[] = [];
      for await (const key of storage.list(prefix)) found.push(key);
      return found.toSorted();
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(pods.map(async (pod) => pod.kill('SIGKILL')));
      await api.close();
      await rm(folder, { recursive: true, force: true });
    },
  };
  return site;
}

async function readJson(storage: Storage, key: string): Promise<WorkerProgress | null> {
  if ((await storage.head(key)) === null) return null;
  const text = (await buffer(await storage.get(key))).toString('utf8');
  return JSON.parse(text) as WorkerProgress; // written by the worker of the same commit
}

async function openStorage(folder: string, s3: S3Server | undefined) {
  if (s3 === undefined) {
    const storage = await createStorage({ type: 'LOCAL', directory: join(folder, 'storage') });
    return { storage, env: { DATA_DIR: folder, STORAGE_TYPE: 'LOCAL' } };
  }
  const bucket = await s3.createBucket();
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
  const env = {
    DATA_DIR: folder,
    STORAGE_TYPE: 'S3',
    S3_BUCKET: bucket,
    S3_ENDPOINT: s3.url,
    S3_PATH_STYLE: 'true',
    AWS_ACCESS_KEY_ID: ANY_KEYS.accessKeyId,
    AWS_SECRET_ACCESS_KEY: ANY_KEYS.secretAccessKey,
  };
  return { storage, env };
}

function startPod(uid: string, flags: readonly string[], env: Record<string, string>): WorkerPod {
  const child = spawn(process.execPath, ['--no-maglev', PROGRAM, ...flags], {
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const lines: string[] = [];
  const log: WorkerPod['log'] = [];
  for (const stream of [child.stdout, child.stderr]) {
    createInterface({ input: stream }).on('line', (line) => {
      lines.push(line);
      // Words of the program's own are no JSON.
      if (line.startsWith('{')) log.push(JSON.parse(line) as WorkerPod['log'][number]);
    });
  }
  const exited = once(child, 'close').then(([code]) => code as number | null); // its documented argument
  return {
    uid,
    pid: child.pid ?? 0,
    exited,
    log,
    text: () => lines.join('\n'),
    async kill(signal = 'SIGKILL') {
      child.kill(signal);
      return exited;
    },
  };
}

interface ApiState {
  mood: ApiMood;
  job: TestJob;
  asked: number;
}

/** An HTTPS server with a certificate of its own, whose word is in the folder as a pod has it. */
async function startApi(uid: string, folder: string) {
  const { key, cert, ca } = await makeCertificates(['kubernetes'], ['127.0.0.1']);
  const token = randomBytes(8).toString('hex');
  await Promise.all([
    writeFile(join(folder, 'token'), `${token}\n`),
    writeFile(join(folder, 'ca.crt'), ca),
    writeFile(join(folder, 'namespace'), 'default'),
  ]);
  const state: ApiState = { mood: 'well', job: {}, asked: 0 };
  const server = createServer({ key, cert }, (req, res) => {
    state.asked += 1;
    const isKnown = req.url === '/apis/batch/v1/namespaces/default/jobs/a-job';
    const isAllowed = req.headers.authorization === `Bearer ${token}`;
    if (state.mood === 'away') {
      req.socket.destroy();
      return;
    }
    const status = state.mood === 'well' ? (isAllowed ? (isKnown ? 200 : 404) : 401) : state.mood;
    const body =
      status === 200
        ? jobOf(uid, state.job)
        : { kind: 'Status', status: 'Failure', message: `the test says ${status}`, code: status };
    res.writeHead(status, { 'content-type': 'application/json' });
    res.end(JSON.stringify(body));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    state,
    port: (server.address() as AddressInfo).port, // a TCP server has one
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

function prefixed(annotations: Record<string, string> = {}): Record<string, string> {
  return Object.fromEntries(
    Object.entries(annotations).map(([key, value]) => [`${PREFIX}${key}`, value]),
  );
}

function jobOf(uid: string, job: TestJob) {
  return {
    apiVersion: 'batch/v1',
    kind: 'Job',
    metadata: {
      name: 'a-job',
      namespace: 'default',
      uid,
      creationTimestamp: new Date().toISOString(),
      annotations: prefixed(job.annotations),
    },
    spec: {
      parallelism: 1,
      completions: 1,
      ...job.spec,
      template: {
        metadata: { creationTimestamp: null, annotations: prefixed(job.podAnnotations) },
        spec: {
          containers: [{ name: 'batch-worker', image: 'sluice' }, ...(job.containers ?? [])],
          initContainers: job.initContainers ?? [],
        },
      },
    },
    status: { startTime: job.startTime ?? new Date().toISOString() },
  };
}

/** Waits until a worker has logged a message, and returns it. */
export async function logged(pod: WorkerPod, message: string) {
  return until(() => pod.log.find((line) => line.msg === message), {
    what: `${message} in\n${pod.text()}`,
  });
}

/** Waits for a worker's end; another code than this is an error with all that it wrote. */
export async function expectExit(pod: WorkerPod | undefined, code: number): Promise<void> {
  const found = await pod?.exited;
  if (found !== code) throw new Error(`it ended with ${found}, not ${code}:\n${pod?.text()}`);
}
