import { createHash, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, statfs } from 'node:fs/promises';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { pipeline } from 'node:stream/promises';
import * as v from 'valibot';
import { startSluice } from '../support/server.ts';
import type { Environment } from '../support/server.ts';

const PART_BYTES = 64 * 1024 ** 2;
const PIECE_BYTES = 1024 ** 2;
/** As many as a browser sends to one host. */
const PARTS_AT_ONCE = 4;
/** Its parts and the file that they become lie side by side for a moment. */
const DISK_FACTOR = 2.1;
/** MiB that the API may have resident, whatever the size of the input. */
const MEMORY_BAR = 250;

interface Options {
  json: boolean;
  /** GB (10^9 bytes) to send. */
  gigabytes: number;
}

/**
 * One input of gigabytes through /v1/uploads into a server of its own: parts of 64 MiB, four at once, made as they are
 * sent, then completed under an MD5. Prints the time, and the most memory that the API process had.
 */
export async function benchUploads({ json, gigabytes }: Options): Promise<void> {
  const bytes = Math.round(gigabytes * 1e9);
  if (!(bytes > 0)) throw new Error('--gigabytes takes a number above 0');
  const folder = await mkdtemp(join(tmpdir(), 'sluice-bench-'));
  try {
    const { bavail, bsize } = await statfs(folder);
    const [free, need] = [bavail * bsize, bytes * DISK_FACTOR];
    if (free < need) {
      const said = `${gigabytes} GB do not fit: ${folder} has ${gb(free)} GB free, ${gb(need)} are needed. Try --gigabytes ${gb(free / DISK_FACTOR / 2)}.`;
      console.log(json ? JSON.stringify({ skipped: said }) : said);
      return;
    }
    const md5 = digestOf(bytes);
    await using server = await startSluice({
      dataDir: join(folder, 'data'),
      roles: ['api', 'sweeper'],
      env: {
        MAX_UPLOAD_BYTES: String(bytes),
        MAX_BATCH_FILE_BYTES: String(bytes),
        ...bucketEnvironment(),
      },
    });
    const idleMiB = await peakMemory(server.pid);
    const begun = performance.now();
    const kind = { filename: 'bench.jsonl', purpose: 'batch', mime_type: 'application/jsonl' };
    const upload = await post(server.url, '/v1/uploads', { ...kind, bytes });
    const part_ids = await sendParts(server.url, upload.id, bytes);
    const sentMs = performance.now() - begun;
    const sentPeakMiB = await peakMemory(server.pid);
    await post(server.url, `/v1/uploads/${upload.id}/complete`, { part_ids, md5 });
    const ms = performance.now() - begun;
    const peakMiB = await peakMemory(server.pid);
    report({ bytes, sentMs, ms, idleMiB, sentPeakMiB, peakMiB }, json);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Where S3_BUCKET names a bucket, files go there: below a prefix of their own, which stays. */
function bucketEnvironment(): Environment {
  const names = ['S3_BUCKET', 'S3_ENDPOINT', 'AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'];
  if (process.env['S3_BUCKET'] === undefined) return {};
  const given = names.map((name) => [name, process.env[name]] as const);
  return { ...Object.fromEntries(given), S3_PREFIX: `bench-${randomUUID()}/` };
}

interface Measured {
  bytes: number;
  sentMs: number;
  ms: number;
  /** The most that the API had resident before it began, when all parts were sent, and at the end. */
  idleMiB: number;
  sentPeakMiB: number;
  peakMiB: number;
}

function report(measured: Measured, json: boolean): void {
  const { bytes, sentMs, ms, idleMiB, sentPeakMiB, peakMiB } = measured;
  const result = {
    gigabytes: bytes / 1e9,
    seconds: round(ms / 1_000),
    seconds_sending: round(sentMs / 1_000),
    seconds_completing: round((ms - sentMs) / 1_000),
    megabytes_per_second: round(bytes / 1e3 / ms),
    api_idle_memory_mib: idleMiB,
    api_peak_memory_sending_mib: sentPeakMiB,
    api_peak_memory_mib: peakMiB,
    within_bar: peakMiB > 0 && peakMiB < MEMORY_BAR,
  };
  if (json) {
    console.log(JSON.stringify(result));
    return;
  }
  console.log(`uploaded        ${result.gigabytes} GB in ${result.seconds} s`);
  console.log(
    `                ${result.seconds_sending} s parts, ${result.seconds_completing} s complete`,
  );
  console.log(`rate            ${result.megabytes_per_second} MB/s`);
  console.log(
    `API memory      ${peakMiB} MiB at most (bar: under ${MEMORY_BAR}); ${idleMiB} before, ${sentPeakMiB} while it took the parts`,
  );
}

async function sendParts(url: string, uploadId: string, bytes: number): Promise<string[]> {
  const count = Math.ceil(bytes / PART_BYTES);
  const ids: string[] = [];
  let next = 0;
  async function sendSome(): Promise<void> {
    while (next < count) {
      const n = next;
      next += 1;
      const size = Math.min(PART_BYTES, bytes - n * PART_BYTES);
      ids[n] = await sendPart(url, uploadId, pieces(n * PART_BYTES, size));
    }
  }
  await Promise.all(Array.from({ length: PARTS_AT_ONCE }, sendSome));
  return ids;
}

const BOUNDARY = 'a-boundary-that-no-piece-holds';

async function sendPart(url: string, uploadId: string, data: Iterable<Buffer>): Promise<string> {
  return sendForm(`${url}/v1/uploads/${uploadId}/parts`, 'data', data);
}

/** Posts a form whose one file is made as it is sent, and returns the id of what it became. */
export async function sendForm(
  url: string,
  field: 'data' | 'file',
  data: Iterable<Buffer>,
): Promise<string> {
  const outgoing = request(url, {
    method: 'POST',
    headers: { 'content-type': `multipart/form-data; boundary=${BOUNDARY}` },
  });
  const answered = once(outgoing, 'response');
  answered.catch(() => undefined); // awaited below
  // A server that refuses the file answers before it has all of it.
  pipeline(Readable.from(form(field, data)), outgoing).catch(() => undefined);
  const [incoming] = await answered;
  return answerOf(incoming.statusCode, await text(incoming)).id;
}

function* form(field: string, data: Iterable<Buffer>): Generator<Buffer> {
  const disposition = 'Content-Disposition: form-data; name=';
  yield Buffer.from(
    `--${BOUNDARY}\r\n${disposition}"purpose"\r\n\r\nbatch\r\n` +
      `--${BOUNDARY}\r\n${disposition}"${field}"; filename="bench.jsonl"\r\n\r\n`,
  );
  yield* data;
  yield Buffer.from(`\r\n--${BOUNDARY}--\r\n`);
}

async function post(url: string, path: string, body: object): Promise<{ id: string }> {
  const outgoing = request(url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
  });
  outgoing.end(JSON.stringify(body));
  const [incoming] = await once(outgoing, 'response');
  return answerOf(incoming.statusCode, await text(incoming));
}

function answerOf(status: number | undefined, body: string): { id: string } {
  if (status !== 200) throw new Error(`answered ${status}: ${body}`);
  return v.parse(v.object({ id: v.string() }), JSON.parse(body));
}

const FILLER = Buffer.alloc(
  PIECE_BYTES,
  '{"custom_id":"line","body":{"model":"m","messages":[]}}\n',
);

/** The bytes `size` from `offset` on of an input in which no two mebibytes are equal. */
export function* pieces(offset: number, size: number): Generator<Buffer> {
  for (let at = offset; at < offset + size; at += PIECE_BYTES) {
    const piece = Buffer.from(FILLER.subarray(0, Math.min(PIECE_BYTES, offset + size - at)));
    piece.write(String(at));
    yield piece;
  }
}

function digestOf(bytes: number): string {
  const md5 = createHash('md5');
  for (const piece of pieces(0, bytes)) md5.update(piece);
  return md5.digest('hex');
}

/** VmHWM of Linux: the most that a process had resident. 0 where there is no /proc. */
export async function peakMemory(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
  return Math.round(Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1] ?? 0) / 1_024);
}

function gb(bytes: number): string {
  return (bytes / 1e9).toFixed(1);
}

function round(value: number): number {
  return Number(value.toFixed(1));
}
