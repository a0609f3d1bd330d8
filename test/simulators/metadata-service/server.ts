import { randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { batchView, now, OPEN_STATES, requestsOf, resultsOf } from './batches.ts';
import type { RunOptions, StoredBatch, StoredFile } from './batches.ts';
import { apiError, refuseCreate } from './check.ts';

const OPERATIONS = [
  'upload',
  'files',
  'file',
  'content',
  'create',
  'batches',
  'batch',
  'cancel',
] as const;
export type Operation = (typeof OPERATIONS)[number];

/**
 * What goes wrong with the next call of an operation. `status` answers that, before anything is done or after it;
 * `silence` does it and never answers; `reset` cuts the connection, `cut` the answer, after it is done.
 */
export type Fault =
  | { kind: 'status'; status: number; done?: boolean; retryAfter?: string }
  | { kind: 'silence' | 'reset' | 'cut' };

export interface MetadataServiceOptions {
  port?: number;
  /** How each batch is run, and how many ms after it was made; null: the test runs it by hand. */
  auto?: { afterMs: number; run?: RunOptions } | null;
}

export interface MetadataService extends AsyncDisposable {
  url: string;
  files: Map<string, StoredFile>;
  batches: Map<string, StoredBatch>;
  calls: { operation: Operation; authorization: string | undefined }[];
  /** For the next calls of an operation, one each. */
  fail(operation: Operation, ...faults: Fault[]): void;
  /** Says how far a batch is. */
  progress(id: string, counts: { completed: number; failed: number }): void;
  /** Ends a batch; its files are there from then on. */
  run(id: string, options?: RunOptions): void;
}

interface Answer {
  status: number;
  body: Buffer;
  type?: string;
}

function json(value: unknown, status = 200): Answer {
  return { status, body: Buffer.from(JSON.stringify(value)) };
}

const NOT_FOUND = json({ detail: 'Not Found' }, 404);
const PAGE_MOST = 100;

/**
 * A metadata service as AIBrix has it, as far as a client sees it: files and batches with its words, states, error
 * bodies and line formats, and no memory of what was asked before: a create that is repeated makes another batch.
 */
export async function startMetadataService(
  options: MetadataServiceOptions = {},
): Promise<MetadataService> {
  const files = new Map<string, StoredFile>();
  const batches = new Map<string, StoredBatch>();
  const calls: MetadataService['calls'] = [];
  const faults = new Map<Operation, Fault[]>();
  const timers = new Set<NodeJS.Timeout>();
  const world = { files, batches };

  function made(batch: StoredBatch): void {
    const { auto = null } = options;
    if (auto === null) return;
    timers.add(setTimeout(() => runBatch(world, batch.id, auto.run ?? {}), auto.afterMs));
  }

  const server = createServer((req, res) => {
    void serve(req, res).catch((error: unknown) => res.destroy(error as Error));
  });
  async function serve(req: IncomingMessage, res: ServerResponse): Promise<void> {
    const url = new URL(req.url ?? '', 'http://localhost');
    const operation = operationOf(req.method ?? '', url.pathname);
    const body = await readBody(req);
    if (operation === null) return send(res, NOT_FOUND);
    calls.push({ operation, authorization: req.headers.authorization });
    const fault = faults.get(operation)?.shift();
    if (fault?.kind === 'status' && fault.done !== true) {
      const after = fault.retryAfter === undefined ? {} : { 'retry-after': fault.retryAfter };
      return send(res, json(apiError('Internal server error'), fault.status), after);
    }
    const answer = answerTo(
      world,
      { operation, url, body, type: req.headers['content-type'] },
      made,
    );
    if (fault === undefined) send(res, answer);
    else breakOff(res, answer, fault);
  }

  server.listen(options.port ?? 0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const { port } = server.address() as AddressInfo; // a TCP server that listens has one
  return {
    url: `http://127.0.0.1:${port}`,
    files,
    batches,
    calls,
    fail(operation, ...more) {
      faults.set(operation, [...(faults.get(operation) ?? []), ...more]);
    },
    progress(id, counts) {
      const batch = find(batches, id);
      begin(world, batch);
      Object.assign(batch, counts);
    },
    run: (id, run = {}) => runBatch(world, id, run),
    async [Symbol.asyncDispose]() {
      for (const timer of timers) clearTimeout(timer);
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      await closed;
    },
  };
}

interface World {
  files: Map<string, StoredFile>;
  batches: Map<string, StoredBatch>;
}

function find(batches: Map<string, StoredBatch>, id: string): StoredBatch {
  const batch = batches.get(id);
  if (batch === undefined) throw new Error(`no batch ${id}`);
  return batch;
}

function begin({ files }: World, batch: StoredBatch): void {
  const input = files.get(String(batch.body['input_file_id']));
  batch.total = input === undefined ? 0 : requestsOf(input.content).length;
  if (batch.status !== 'cancelling') batch.status = 'in_progress';
  batch.times['in_progress_at'] ??= now();
}

function runBatch(world: World, id: string, options: RunOptions): void {
  const batch = find(world.batches, id);
  if (!OPEN_STATES.includes(batch.status)) return;
  const { status = batch.status === 'cancelling' ? 'cancelled' : 'completed' } = options;
  begin(world, batch);
  const input = world.files.get(String(batch.body['input_file_id']));
  const requests = requestsOf(input?.content ?? Buffer.alloc(0));
  const results = resultsOf(id, requests, options);
  for (const kind of ['output', 'error'] as const) {
    const file = {
      id: randomUUID(),
      filename: '',
      purpose: null,
      createdAt: now(),
      content: Buffer.from(results[kind].map((line) => `${line}\n`).join('')),
    };
    world.files.set(file.id, file);
    batch[kind] = file.id;
  }
  batch.completed = results.output.length;
  batch.failed = results.error.length;
  batch.errors = options.errors ?? [];
  batch.status = status;
  batch.times['finalizing_at'] = now();
  batch.times[`${status}_at`] = now();
}

function operationOf(method: string, path: string): Operation | null {
  const [, version, collection, id, action] = path.replace(/\/$/, '').split('/');
  if (version !== 'v1') return null;
  const key = `${method} ${collection} ${id === undefined ? '' : ':id'} ${action ?? ''}`.trim();
  const known: Record<string, Operation> = {
    'POST files': 'upload',
    'GET files': 'files',
    'GET files :id': 'file',
    'GET files :id content': 'content',
    'POST batches': 'create',
    'GET batches': 'batches',
    'GET batches :id': 'batch',
    'POST batches :id cancel': 'cancel',
  };
  return known[key.replaceAll(/ +/g, ' ')] ?? null;
}

interface Call {
  operation: Operation;
  url: URL;
  body: Buffer;
  type: string | undefined;
}

function answerTo(world: World, call: Call, made: (batch: StoredBatch) => void): Answer {
  const id = call.url.pathname.split('/')[3] ?? '';
  const { files, batches } = world;
  switch (call.operation) {
    case 'upload':
      return upload(files, call);
    case 'files': {
      const listed = [...files.values()].filter(({ purpose }) => purpose === 'batch');
      return json({ object: 'list', ...page(listed.map(fileView), call.url) });
    }
    case 'file':
    case 'content': {
      const file = files.get(id);
      if (file === undefined) return json(apiError('File not found'), 404);
      if (call.operation === 'file') return json(fileView(file));
      return { status: 200, body: file.content, type: 'application/jsonl' };
    }
    case 'create':
      return create(world, call, made);
    case 'batches': {
      const newest = [...batches.values()].toReversed().map(batchView);
      const { data, has_more: more } = page(newest as { id: string }[], call.url); // a view has its id
      const ends = data.length === 0 ? {} : { first_id: data[0]?.id, last_id: data.at(-1)?.id };
      return json({ object: 'list', data, ...ends, has_more: more });
    }
    case 'batch':
    case 'cancel': {
      const batch = batches.get(id);
      if (batch === undefined) return json(apiError('Batch not found'), 404);
      return call.operation === 'batch' ? json(batchView(batch)) : cancel(batch);
    }
  }
}

function cancel(batch: StoredBatch): Answer {
  if (!OPEN_STATES.includes(batch.status) || batch.status === 'finalizing') {
    const message = `Cannot cancel a batch with status 'finalized'.`;
    return json({ error: { message, type: 'invalid_request_error' } }, 409);
  }
  const isWaiting = batch.status === 'scheduling' || batch.status === 'validating';
  batch.status = isWaiting ? 'cancelled' : 'cancelling';
  batch.times['cancelling_at'] ??= now();
  if (isWaiting) batch.times['cancelled_at'] = now();
  return json(batchView(batch));
}

function create({ batches }: World, { body }: Call, made: (batch: StoredBatch) => void): Answer {
  const asked = JSON.parse(body.toString('utf8')) as Record<string, unknown>; // a client's own JSON
  const refusal = refuseCreate(asked);
  if (refusal !== null) return json(refusal.body, refusal.status);
  const batch: StoredBatch = {
    id: randomUUID(),
    status: 'scheduling',
    body: asked,
    createdAt: now(),
    times: {},
    total: 0,
    completed: 0,
    failed: 0,
    output: null,
    error: null,
    errors: [],
  };
  batches.set(batch.id, batch);
  made(batch);
  return json(batchView(batch));
}

function upload(files: Map<string, StoredFile>, { body, type = '' }: Call): Answer {
  const boundary = /boundary=(.+)$/.exec(type)?.[1] ?? '';
  const text = body.toString('latin1');
  const parts = text.split(`--${boundary}`).slice(1, -1);
  const file = parts.find((part) => part.includes('name="file"')) ?? '';
  const purpose = parts.find((part) => part.includes('name="purpose"')) ?? '';
  if (!purpose.endsWith('\r\n\r\nbatch\r\n')) {
    return json({ detail: [{ type: 'enum', loc: ['body', 'purpose'], msg: 'not batch' }] }, 422);
  }
  const [head = '', ...rest] = file.split('\r\n\r\n');
  const filename = /filename="([^"]*)"/.exec(head)?.[1] ?? '';
  if (!/\.jsonl?$/i.test(filename)) {
    return json(apiError("Invalid file format. Supported formats: {'jsonl', 'json'}"), 400);
  }
  const content = Buffer.from(rest.join('\r\n\r\n').replace(/\r\n$/, ''), 'latin1');
  const stored = { id: randomUUID(), filename, purpose: 'batch', createdAt: now(), content };
  files.set(stored.id, stored);
  return json(fileView(stored));
}

function fileView({ id, filename, purpose, createdAt, content }: StoredFile) {
  const known = { id, object: 'file', bytes: content.length, created_at: createdAt };
  return { ...known, filename: filename === '' ? id : filename, purpose, status: 'uploaded' };
}

function page<Item extends { id: string }>(items: Item[], url: URL) {
  const limit = Math.min(Number(url.searchParams.get('limit') ?? 20), PAGE_MOST);
  const after = url.searchParams.get('after');
  const start = after === null ? 0 : items.findIndex(({ id }) => id === after) + 1;
  // A cursor that it does not know is the end.
  const rest = after !== null && start === 0 ? [] : items.slice(start);
  return { data: rest.slice(0, limit), has_more: rest.length > limit };
}

async function readBody(req: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of req) chunks.push(chunk as Buffer); // no encoding is set
  return Buffer.concat(chunks);
}

function send(res: ServerResponse, { status, body, type }: Answer, more = {}): void {
  res.writeHead(status, { 'content-type': type ?? 'application/json', ...more });
  res.end(body);
}

function breakOff(res: ServerResponse, answer: Answer, fault: Fault): void {
  if (fault.kind === 'status') send(res, json(apiError('Internal server error'), fault.status));
  if (fault.kind === 'reset') res.destroy();
  if (fault.kind !== 'cut') return;
  // Half of it, and a proper end.
  res.writeHead(answer.status, { 'content-type': answer.type ?? 'application/json' });
  res.write(answer.body.subarray(0, Math.floor(answer.body.length / 2)));
  res.end();
}
