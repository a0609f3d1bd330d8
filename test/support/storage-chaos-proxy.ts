import { once } from 'node:events';
import { createServer } from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { buffer } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { forward, operationOf } from './s3-proxy.ts';

/**
 * What goes wrong with a request: a 500, 502 or 503 in its place; SlowDown; its connection breaks in the middle of what
 * it sends, or of what it is answered; it is done and the answer is lost, is late and says 500, or is that of a second
 * delivery; the answer comes in drops; nothing is done and nothing answered.
 */
export const TROUBLES = [
  'error',
  'slow_down',
  'cut_request',
  'cut_answer',
  'lost_answer',
  'late_error',
  'twice',
  'drops',
  'hang',
] as const;
export type Trouble = (typeof TROUBLES)[number];

/** Of a hundred troubles; what a client has to wait for comes seldom. */
const WEIGHTS: Record<Trouble, number> = {
  error: 28,
  slow_down: 12,
  cut_request: 16,
  cut_answer: 14,
  lost_answer: 10,
  late_error: 5,
  twice: 6,
  drops: 6,
  hang: 3,
};
const ERRORS = [
  [500, 'InternalError'],
  [502, 'BadGateway'],
  [503, 'ServiceUnavailable'],
] as const;
const LATE_MS = 300;
const DROPS = 16;
const DROP_MS = 20;

export interface ChaosOptions {
  /** In [0, 1). */
  random: () => number;
  /** After so long a connection that hangs is broken; null: it hangs until its client gives it up. */
  hangMs: number | null;
}

export interface ChaosRequest {
  /** As Amazon calls it, such as UploadPart. */
  operation: string;
  key: string;
}

export interface OpenUpload {
  key: string;
  uploadId: string;
  /** Ms since 1970. */
  begunAt: number;
}

/** Stands before an S3 server, and spoils requests. */
export interface StorageChaosProxy extends AsyncDisposable {
  url: string;
  /** How often each operation was asked for. */
  operations: Readonly<Record<string, number>>;
  /** How often each trouble came. */
  troubles: Readonly<Record<Trouble, number>>;
  /** The share of requests that are spoilt from now on, at first none. */
  setShare(share: number): void;
  /** From now on uploads are listed as so much older than they are: the store's own clock tells their age. */
  setUploadAge(ms: number): void;
  /** Uploads that the server was heard to begin, and neither to complete nor to give up. */
  openUploads(): readonly OpenUpload[];
  /** Resolves when such a request is there, whose first half was read and which will never be answered. */
  holdNext(isIt: (request: ChaosRequest) => boolean): Promise<void>;
}

interface Holding {
  isIt(request: ChaosRequest): boolean;
  held(): void;
}

interface World {
  readonly target: URL;
  readonly options: ChaosOptions;
  readonly operations: Record<string, number>;
  readonly troubles: Record<Trouble, number>;
  readonly uploads: Map<string, OpenUpload>;
  share: number;
  olderMs: number;
  holding: Holding | null;
}

interface Exchange extends ChaosRequest {
  request: IncomingMessage;
  response: ServerResponse;
}

interface Answer {
  status: number;
  headers: IncomingMessage['headers'];
  bytes: Buffer;
}

export async function startStorageChaosProxy(
  target: string,
  options: ChaosOptions,
): Promise<StorageChaosProxy> {
  const none = TROUBLES.map((trouble) => [trouble, 0]);
  const world: World = {
    target: new URL(target),
    options,
    operations: {},
    troubles: Object.fromEntries(none) as Record<Trouble, number>, // of all of them, just above
    uploads: new Map(),
    share: 0,
    olderMs: 0,
    holding: null,
  };
  const server = createServer((request, response) => {
    handle(request, response, world).catch(() => request.socket.destroy());
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  return {
    url: `http://127.0.0.1:${address.port}`,
    operations: world.operations,
    troubles: world.troubles,
    setShare(share) {
      world.share = share;
    },
    setUploadAge(ms) {
      world.olderMs = ms;
    },
    openUploads: () => [...world.uploads.values()],
    holdNext: (isIt) => new Promise((resolve) => (world.holding = { isIt, held: resolve })),
    async [Symbol.asyncDispose]() {
      const closed = once(server, 'close');
      server.close();
      server.closeAllConnections();
      await closed;
    },
  };
}

async function handle(
  request: IncomingMessage,
  response: ServerResponse,
  world: World,
): Promise<void> {
  const { method = '', url = '', headers } = request;
  const operation = operationOf(method, url, headers);
  const { pathname } = new URL(url, 'http://host');
  const key = decodeURIComponent(pathname.split('/').slice(2).join('/'));
  world.operations[operation] = (world.operations[operation] ?? 0) + 1;
  const exchange = { operation, key, request, response };
  if (world.holding?.isIt(exchange) === true) {
    const { held } = world.holding;
    world.holding = null;
    await readHalf(request);
    held();
    return;
  }
  const trouble = draw(world);
  if (trouble === null) send(response, await ask(exchange, await buffer(request), world));
  else await spoil(exchange, trouble, world);
}

function draw({ share, options: { random }, troubles }: World): Trouble | null {
  if (random() >= share) return null;
  let left = random() * TROUBLES.reduce((sum, trouble) => sum + WEIGHTS[trouble], 0);
  const trouble = TROUBLES.find((each) => (left -= WEIGHTS[each]) < 0) ?? 'error';
  troubles[trouble] += 1;
  return trouble;
}

async function spoil(exchange: Exchange, trouble: Trouble, world: World): Promise<void> {
  const { request, response } = exchange;
  if (trouble === 'cut_request') {
    await readHalf(request);
    request.socket.resetAndDestroy();
    return;
  }
  const body = await buffer(request);
  if (trouble === 'error' || trouble === 'slow_down') return refuse(response, trouble, world);
  if (trouble === 'hang') return hang(request, world.options);
  let answer = await ask(exchange, body, world);
  if (trouble === 'twice') answer = await ask(exchange, body, world);
  if (trouble === 'late_error') {
    await sleep(LATE_MS);
    return refuse(response, 'error', world);
  }
  if (trouble === 'lost_answer') request.socket.resetAndDestroy();
  else if (trouble === 'cut_answer') cut(response, answer);
  else if (trouble === 'drops') await drip(response, answer);
  else send(response, answer);
}

/** Reads until half of what was announced is there. */
async function readHalf(request: IncomingMessage): Promise<void> {
  const half = Number(request.headers['content-length'] ?? 0) / 2;
  let bytes = 0;
  if (half === 0) return;
  for await (const chunk of request.iterator({ destroyOnReturn: false })) {
    bytes += (chunk as Buffer).length; // no encoding was set
    if (bytes >= half) return;
  }
}

async function hang(request: IncomingMessage, { hangMs }: ChaosOptions): Promise<void> {
  if (hangMs === null) return;
  await sleep(hangMs);
  request.socket.resetAndDestroy();
}

function refuse(response: ServerResponse, trouble: 'error' | 'slow_down', world: World): void {
  const drawn = ERRORS[Math.floor(world.options.random() * ERRORS.length)] ?? ERRORS[0];
  const [status, code] = trouble === 'slow_down' ? ([503, 'SlowDown'] as const) : drawn;
  response.writeHead(status, { 'content-type': 'application/xml' });
  response.end(
    `<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>${code}</Code><Message>Bad weather.</Message></Error>`,
  );
}

async function ask(exchange: Exchange, body: Buffer, world: World): Promise<Answer> {
  const { request, operation } = exchange;
  if (operation === 'ListMultipartUploads') return listUploads(request, world);
  const answered = await forward(request, request.url ?? '', body, world.target);
  const bytes = await buffer(answered);
  const answer = { status: answered.statusCode ?? 500, headers: answered.headers, bytes };
  keepAccount(exchange, answer, world);
  return answer;
}

function keepAccount({ operation, key, request }: Exchange, answer: Answer, { uploads }: World) {
  if (answer.status >= 300) return;
  const query = new URL(request.url ?? '', 'http://host').searchParams;
  if (operation === 'CreateMultipartUpload') {
    const [, uploadId = ''] = /<UploadId>(.*?)<\/UploadId>/.exec(answer.bytes.toString()) ?? [];
    uploads.set(uploadId, { key, uploadId, begunAt: Date.now() });
  } else if (/^(Complete|Abort)MultipartUpload$/.test(operation)) {
    uploads.delete(query.get('uploadId') ?? '');
  }
}

/** By our own account: not every test server can say it. */
function listUploads(request: IncomingMessage, { uploads, olderMs }: World): Answer {
  const prefix = new URL(request.url ?? '', 'http://host').searchParams.get('prefix') ?? '';
  const found = [...uploads.values()].filter(({ key }) => key.startsWith(prefix));
  const items = found.map(
    ({ key, uploadId, begunAt }) =>
      `<Upload><Key>${key}</Key><UploadId>${uploadId}</UploadId><Initiated>${new Date(begunAt - olderMs).toISOString()}</Initiated></Upload>`,
  );
  const text = `<?xml version="1.0" encoding="UTF-8"?>\n<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>${items.join('')}</ListMultipartUploadsResult>`;
  return { status: 200, headers: { 'content-type': 'application/xml' }, bytes: Buffer.from(text) };
}

function send(response: ServerResponse, { status, headers, bytes }: Answer): void {
  response.writeHead(status, headers);
  response.end(bytes);
}

/** Ends after half of the body; without a body, before the answer. */
function cut(response: ServerResponse, { status, headers, bytes }: Answer): void {
  if (bytes.length < 2) {
    response.destroy();
    return;
  }
  response.writeHead(status, { ...headers, 'content-length': bytes.length });
  response.write(bytes.subarray(0, bytes.length / 2), () => response.destroy());
}

async function drip(response: ServerResponse, { status, headers, bytes }: Answer): Promise<void> {
  response.writeHead(status, headers);
  const size = Math.ceil(bytes.length / DROPS);
  for (let at = 0; at < bytes.length && !response.destroyed; at += size) {
    response.write(bytes.subarray(at, at + size));
    await sleep(DROP_MS);
  }
  response.end();
}
