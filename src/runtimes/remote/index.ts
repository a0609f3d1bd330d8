import { randomBytes } from 'node:crypto';
import { Readable } from 'node:stream';
import { SluiceError, transient } from '../../domain/errors.ts';
import type { RemoteInput, RemoteService } from './contract.ts';
import { JOB_KEY } from './contract.ts';
import { brokenExchange, createExchange } from './exchange.ts';
import type { RemoteExchange, RemoteOptions } from './exchange.ts';
import { remoteOrder } from './order.ts';
import { batchSchema, fileSchema, lookOf, pageSchema } from './wire.ts';

const PAGE = 100;
/** What is looked for is new: further back than so many pages of newer ones it is not looked for. */
const MOST_PAGES = 50;
/** Two hosts' clocks differ. */
const CLOCK_SKEW_MS = 10 * 60_000;

/** Longer than a request may take, and than a service may need to show what it has made. */
const UNCLEAR_MS = 60_000;

interface ServiceOptions extends RemoteOptions {
  /** The engines of this server, which jobs use that name none. */
  engineUrls: readonly string[];
  unclearMs?: number;
}

/** The service at a URL, over HTTP. */
export function createRemoteService(options: ServiceOptions): RemoteService {
  const { url, engineUrls } = options;
  const exchange = createExchange(options);
  return {
    url,
    unclearMs: options.unclearMs ?? UNCLEAR_MS,
    order: (job, provision, file) => remoteOrder(job, provision, { file, engineUrls }),
    async findInput({ name, bytes }, signal) {
      const found = pages((query) =>
        exchange.ask(fileList, { method: 'GET', path: `/v1/files?purpose=batch&${query}` }, signal),
      );
      for await (const file of found) {
        if (file.filename === name && file.bytes === bytes) return file.id;
      }
      return null;
    },
    upload: (input, signal) => upload(exchange, input, signal),
    async create(order, key, signal) {
      const asked = {
        method: 'POST',
        path: '/v1/batches',
        headers: { 'content-type': 'application/json', 'idempotency-key': key },
        body: JSON.stringify(order),
      } as const;
      return lookOf(await exchange.ask(batchSchema, asked, signal));
    },
    async findBatch(jobId, since, signal) {
      const found = pages((query) =>
        exchange.ask(batchList, { method: 'GET', path: `/v1/batches?${query}` }, signal),
      );
      for await (const batch of found) {
        if (batch.metadata?.[JOB_KEY] === jobId) return lookOf(batch);
        // Newest first.
        if (batch.created_at * 1_000 < since - CLOCK_SKEW_MS) return null;
      }
      return null;
    },
    async look(batch, signal) {
      try {
        const asked = { method: 'GET', path: `/v1/batches/${encodeURIComponent(batch)}` } as const;
        return lookOf(await exchange.ask(batchSchema, asked, signal));
      } catch (error) {
        if (refusedWith(error, 404)) return null;
        throw error;
      }
    },
    async cancel(batch, signal) {
      const path = `/v1/batches/${encodeURIComponent(batch)}/cancel`;
      try {
        await exchange.ask(batchSchema, { method: 'POST', path }, signal);
      } catch (error) {
        // It is over, or on the way: 400 as OpenAI says it, 409 as others do.
        if (!refusedWith(error, 400) && !refusedWith(error, 409)) throw error;
      }
    },
    open: (file, signal) => open(exchange, url, file, signal),
    close: () => exchange.close(),
  };
}

/** Whether a service has refused with this status. */
function refusedWith(error: unknown, status: number): boolean {
  return error instanceof SluiceError && error.code === 'remote.refused' && error.status === status;
}

const fileList = pageSchema(fileSchema);
const batchList = pageSchema(batchSchema);

/** The items of a list, page by page; `read` is given what follows `?` for the next page. */
async function* pages<Item extends { id: string }>(
  read: (query: string) => Promise<{ data: Item[]; has_more: boolean }>,
): AsyncGenerator<Item> {
  let after = '';
  for (let page = 0; page < MOST_PAGES; page += 1) {
    const { data, has_more: hasMore } = await read(`limit=${PAGE}${after}`);
    yield* data;
    const last = data.at(-1);
    if (!hasMore || last === undefined) return;
    after = `&after=${encodeURIComponent(last.id)}`;
  }
}

/** A form by hand, since none that is made for us sends a stream. */
async function upload(
  exchange: RemoteExchange,
  { name, content, bytes }: RemoteInput,
  signal: AbortSignal,
): Promise<string> {
  const boundary = `sluice-${randomBytes(16).toString('hex')}`;
  const head = Buffer.from(
    `--${boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n` +
      `--${boundary}\r\ncontent-disposition: form-data; name="file"; filename="${name}"\r\n` +
      'content-type: application/jsonl\r\n\r\n',
  );
  const tail = Buffer.from(`\r\n--${boundary}--\r\n`);
  async function* form(): AsyncGenerator<Uint8Array> {
    yield head;
    yield* content;
    yield tail;
  }
  const length =
    bytes === null ? {} : { 'content-length': String(head.length + bytes + tail.length) };
  const headers = { 'content-type': `multipart/form-data; boundary=${boundary}`, ...length };
  const asked = {
    method: 'POST',
    path: '/v1/files',
    headers,
    isFile: true,
    body: Readable.from(form(), { objectMode: false }),
  } as const;
  const file = await exchange.ask(fileSchema, asked, signal);
  if (bytes !== null && file.bytes !== null && file.bytes !== bytes) {
    const message = `the service has ${file.bytes} of the input's ${bytes} bytes`;
    throw transient('remote.unclear', message);
  }
  return file.id;
}

async function open(
  exchange: RemoteExchange,
  url: string,
  file: string,
  signal: AbortSignal,
): Promise<Readable> {
  const path = `/v1/files/${encodeURIComponent(file)}`;
  const { bytes } = await exchange.ask(fileSchema, { method: 'GET', path }, signal);
  const body = await exchange.stream({ method: 'GET', path: `${path}/content` }, signal);
  const what = `GET ${url}${path}/content`;
  async function* whole(): AsyncGenerator<Uint8Array> {
    let read = 0;
    try {
      for await (const chunk of body as AsyncIterable<Uint8Array>) {
        read += chunk.length;
        yield chunk;
      }
    } catch (error) {
      signal.throwIfAborted();
      throw brokenExchange(what, error);
    }
    // Nothing else shows where what stands between has ended the answer early, and properly.
    if (bytes === null || read === bytes) return;
    throw transient('remote.unclear', `${what}: ${read} of ${bytes} bytes came`);
  }
  return Readable.from(whole(), { objectMode: false });
}
