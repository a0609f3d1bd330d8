import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import type { IncomingHttpHeaders, Server } from 'node:http';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Queue } from 'bullmq';
import { Redis } from 'ioredis';
import OpenAI from 'openai';
import { pino } from 'pino';
import { eraseJob } from '../../processors/erase-job.ts';
import { forgetContent } from '../../processors/expiry.ts';
import { openPartial } from '../../processors/partial.ts';
import { releaseByHand } from '../../processors/release-by-hand.ts';
import type { SettleDeps } from '../../processors/deps.ts';
import { createAdvance } from '../../queues/advance.ts';
import { createApp } from '../../src/api/app.ts';
import { createHttpServer } from '../../src/api/http-server.ts';
import type { ApiDeps } from '../../src/api/app.ts';
import { assemble } from '../../src/dispatcher/assemble.ts';
import { readEntries } from '../../src/dispatcher/segments.ts';
import { notFound } from '../../src/domain/errors.ts';
import { JOB, stopTarget } from '../../src/domain/job.ts';
import type { JobRecord, JobState } from '../../src/domain/job.ts';
import { PROVISION } from '../../src/domain/provision.ts';
import type { ProvisionRecord, ProvisionState } from '../../src/domain/provision.ts';
import { createStaticManager } from '../../src/resources/static/index.ts';
import { inspectInput } from '../../src/main/plan-input.ts';
import type { Storage } from '../../src/storage/contract.ts';
import { createLocalStorage } from '../../src/storage/local.ts';
import type { JobChange } from '../../src/store/jobs.ts';
import { createStore } from '../../src/store/store.ts';
import type { ProvisionChange } from '../../src/store/provisions.ts';
import type { Store } from '../../src/store/store.ts';

/** The API on a port of its own, over real storage and a real store under a random prefix. */
export interface TestApi {
  url: string;
  store: Store;
  storage: Storage;
  openai: OpenAI;
  /** What the app answers, as its router knows it. */
  routes: readonly { method: string; path: string }[];
  /** Every line that was logged, parsed. */
  logs: Record<string, unknown>[];
  /** What `observe` was called with. */
  observed: { route: string; method: string; status: number; seconds: number }[];
  /** Keys of all stored objects of uploads. */
  stored(): Promise<string[]>;
  stop(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

export type Overrides = (deps: ApiDeps) => Partial<ApiDeps>;

/** Starts the API as a worker-less server would: jobs are recorded and stopped, but nothing runs them. */
export async function startApi(
  redisUrl: string,
  overrides: Overrides = () => ({}),
): Promise<TestApi> {
  const namespace = `test-${randomUUID()}`;
  const redis = new Redis(redisUrl, { maxRetriesPerRequest: 1, retryStrategy: () => 100 });
  redis.on('error', () => undefined); // each command that fails says so itself
  const folder = await mkdtemp(join(tmpdir(), 'sluice-api-'));
  const storage = createLocalStorage({ directory: folder });
  const store = createStore({ redis, namespace });
  const queue = new Queue('planning', { connection: redis, prefix: `{${namespace}}` });
  queue.on('error', () => undefined);
  const logs: TestApi['logs'] = [];
  const observed: TestApi['observed'] = [];
  const base: ApiDeps = {
    store,
    storage,
    createJob: (job) => store.jobs.create(job),
    stopJob: (id) => stopJob(store, id),
    pauseJob: (id, by) => store.jobs.pause(id, by),
    resumeJob: (id) => store.jobs.resume(id),
    extendJob: (job, window, windowMs) => store.jobs.extend(job, window, windowMs),
    eraseJob: (id) => eraseJob(id, { withFiles: true }, { ...settling(store), store, storage }),
    forgetContent: (id) => forgetContent(id, { store, storage }),
    limits: {
      maxFileBytes: 512 * 1024 ** 2,
      maxBatchFileBytes: 200 * 1024 ** 2,
      maxUploadBytes: 8 * 1024 ** 3,
      maxBatchLines: 50_000,
      maxLineBytes: 1024 ** 2,
    },
    defaults: {
      maxConcurrency: 256,
      engineUrls: ['http://engine:8000'],
      providers: [],
      defaultTemplate: null,
      spend: { maxCostUsd: null, maxIdleMinutes: null },
      mostReplicas: 0,
      cluster: { namespaces: [], form: 'deployment' },
    },
    provider: 'static',
    catalog: { offers: async () => [] },
    surveyMachines: async () => ({ machines: [], failures: [] }),
    releaseProvision: (id, choice) => releaseByHand(id, choice, settling(store)),
    live: { liveStreams: 1_000, stopping: new AbortController().signal },
    openPartial: (job, wish) =>
      openPartial(job, wish, {
        store,
        storage,
        assemble: (source, sinks, options) =>
          assemble(source, sinks, { ...options, maxLineBytes: 1024 ** 2 }),
        readEntries,
      }),
    inspectInput: inspectInput.bind(null, {
      storage,
      dataDir: folder,
      maxBatchLines: 50_000,
      maxLineBytes: 1024 ** 2,
    }),
    places: {
      allowed: [],
      look: async () => null,
      isThere: async () => false,
      tryWriting: async () => undefined,
    },
    webhooks: { signsJobs: true, allowPrivate: false },
    queues: [queue],
    ready: () => Promise.resolve({ redis: 'ok', storage: 'ok' }),
    metrics: () => Promise.resolve({ contentType: 'text/plain; version=0.0.4', body: 'up 1\n' }),
    log: pino({ level: 'debug' }, { write: (line) => void logs.push(JSON.parse(line)) }),
    observe: (route, method, status, seconds) =>
      void observed.push({ route, method, status, seconds }),
  };
  const app = createApp({ ...base, ...overrides(base) });
  const server = createHttpServer({ app, log: base.log }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const url = `http://127.0.0.1:${portOf(server)}`;
  async function stop(): Promise<void> {
    await closeServer(server);
    await queue.close();
    redis.disconnect();
    await rm(folder, { recursive: true, force: true });
  }
  return {
    url,
    store,
    storage,
    openai: new OpenAI({ apiKey: 'unused', baseURL: `${url}/v1`, maxRetries: 0 }),
    routes: app.routes,
    logs,
    observed,
    stored: async () => (await collect(storage.list('files/'))).toSorted(),
    stop,
    [Symbol.asyncDispose]: stop,
  };
}

/** Moves records as a server does whose queues nobody serves. */
function settling(store: Store): SettleDeps {
  return {
    store,
    advanceJob: createAdvance<JobRecord, JobState, JobChange>(JOB, store.jobs.move, nobodyServes),
    advanceProvision: createAdvance<ProvisionRecord, ProvisionState, ProvisionChange>(
      PROVISION,
      store.provisions.move,
      nobodyServes,
    ),
    add: nobodyServes,
    manager: createStaticManager({ engineUrls: ['http://engine:8000'] }),
    pauseReleaseMs: 60_000,
    ahead: () => 2,
    now: Date.now,
    log: pino({ level: 'silent' }),
  };
}

async function nobodyServes(): Promise<void> {}

/** As a server without workers stops a job: one move on the record. */
async function stopJob(store: Store, id: string): Promise<JobRecord> {
  for (;;) {
    const job = await store.jobs.get(id);
    if (job === null) throw notFound('job_not_found', `no job ${id}`);
    const target = stopTarget(job, 'cancelled');
    if (target === null) return job;
    const moved = await store.jobs.move(job, target, {
      outcome: 'cancelled',
      event: 'Cancelled by the user.',
    });
    if (moved !== 'stale') return (await store.jobs.get(id)) ?? job;
  }
}

function portOf(server: Server): number {
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('the server has no port');
  return address.port;
}

async function closeServer(server: Server): Promise<void> {
  const closed = once(server, 'close');
  server.close();
  server.closeAllConnections();
  await closed;
}

export interface RawAnswer {
  status: number;
  headers: IncomingHttpHeaders;
  text: string;
}

export interface RawRequest {
  method?: string;
  headers?: Record<string, string>;
  /** Written piece by piece; without a Content-Length the request is chunked. */
  body?: Iterable<string | Buffer> | AsyncIterable<string | Buffer>;
}

/** One request by hand, for what `fetch` does not send; the body is written to its end before the answer is read. */
export async function rawRequest(url: string, options: RawRequest = {}): Promise<RawAnswer> {
  const outgoing = request(url, {
    method: options.method ?? 'GET',
    headers: options.headers ?? {},
    agent: false,
  });
  const answered = once(outgoing, 'response');
  answered.catch(() => undefined); // awaited below, after the body
  for await (const piece of options.body ?? []) {
    // Not `drain`, which Node's client no longer tells once a response has come.
    await new Promise((written) => outgoing.write(piece, written));
  }
  outgoing.end();
  const [incoming] = await answered;
  const chunks: Buffer[] = [];
  for await (const chunk of incoming) chunks.push(chunk);
  return {
    status: incoming.statusCode ?? 0,
    headers: incoming.headers,
    text: Buffer.concat(chunks).toString(),
  };
}

export interface FormPart {
  name: string;
  filename?: string;
  value: string;
}

const BOUNDARY = 'a-boundary-that-no-test-writes';
export const FORM_TYPE = `multipart/form-data; boundary=${BOUNDARY}`;

/** A multipart form with its parts in this very order. */
export function formBody(parts: readonly FormPart[]): string {
  const rendered = parts.map(({ name, filename, value }) => {
    const file = filename === undefined ? '' : `; filename="${filename}"`;
    return `--${BOUNDARY}\r\nContent-Disposition: form-data; name="${name}"${file}\r\n\r\n${value}\r\n`;
  });
  return `${rendered.join('')}--${BOUNDARY}--\r\n`;
}

/** Uploads a form, chunked, in pieces of 64 KiB. */
export function postForm(
  api: { url: string },
  parts: readonly FormPart[],
  path = '/v1/files',
): Promise<RawAnswer> {
  const bytes = Buffer.from(formBody(parts));
  const pieces = Array.from({ length: Math.ceil(bytes.length / 65_536) }, (_, n) =>
    bytes.subarray(n * 65_536, (n + 1) * 65_536),
  );
  return rawRequest(`${api.url}${path}`, {
    method: 'POST',
    headers: { 'content-type': FORM_TYPE },
    body: pieces,
  });
}

/** A stored input file of purpose `batch`, and its id. */
export async function uploadInput(api: TestApi, lines = '{}\n'): Promise<string> {
  const answer = await postForm(api, [
    { name: 'purpose', value: 'batch' },
    { name: 'file', filename: 'input.jsonl', value: lines },
  ]);
  if (answer.status !== 200)
    throw new Error(`the upload answered ${answer.status}: ${answer.text}`);
  return JSON.parse(answer.text).id;
}

/** Posts JSON and parses the answer. */
export async function postJson(
  api: { url: string },
  path: string,
  body: unknown,
  headers: Record<string, string> = {},
): Promise<{ status: number; headers: Headers; body: unknown }> {
  const response = await fetch(`${api.url}${path}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  });
  return { status: response.status, headers: response.headers, body: await response.json() };
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}
