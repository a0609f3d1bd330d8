import { GetObjectCommand } from '@aws-sdk/client-s3';
import { invalidInput } from '../domain/errors.ts';
import { MOST_LINK_SECONDS } from '../domain/file.ts';
import type { Link, LinkOptions } from './contract.ts';
import type { ObjectVersion } from './object-version.ts';
import type { S3Bucket } from './s3-client.ts';

/** As the SDK builds it, before it is signed. */
interface PlainRequest {
  protocol: string;
  hostname: string;
  port?: number;
  path: string;
  query: Record<string, string | string[] | null>;
}

/** What the SDK's signer of S3 can do besides signing; its type does not say so. */
interface Presigner {
  presign(
    request: PlainRequest & { method: string; headers: Record<string, string> },
    options: { expiresIn: number; signingDate: Date },
  ): Promise<PlainRequest>;
}

export interface PresignOptions {
  /** Only this version, where the bucket keeps versions. */
  of?: ObjectVersion | undefined;
  /** Links are signed by the store's clock, as requests are. */
  clockAheadMs: number;
}

/** An address that holds its own signature (SigV4 in the query). Rejects as a storage's `presign`. */
export async function presign(
  bucket: S3Bucket,
  key: string,
  link: LinkOptions,
  { of, clockAheadMs }: PresignOptions,
): Promise<Link> {
  const { expiresInSeconds: expiresIn } = link;
  checkExpiry(expiresIn);
  try {
    const { config } = bucket.client;
    const { expiration } = await config.credentials();
    const signer: unknown = await config.signer();
    if (!isPresigner(signer)) throw new TypeError("the SDK's signer signs no addresses");
    const request = await built(bucket, key, link, of);
    const now = Date.now();
    const signingDate = new Date(now + clockAheadMs);
    const signed = await signer.presign(
      {
        ...request,
        method: 'GET',
        // The bytes of the answer are signed by nobody, and nobody knows what else a browser sends.
        headers: { host: hostOf(request), 'x-amz-content-sha256': 'UNSIGNED-PAYLOAD' },
      },
      { expiresIn, signingDate },
    );
    const ends = [now + 1_000 * expiresIn, expiration?.getTime() ?? Infinity];
    return { url: urlOf(signed), expiresAt: Math.min(...ends) };
  } catch (error) {
    throw bucket.fail('GetObject', error);
  }
}

function checkExpiry(seconds: number): void {
  if (Number.isInteger(seconds) && seconds >= 1 && seconds <= MOST_LINK_SECONDS) return;
  const message = `a link is good for 1 to ${MOST_LINK_SECONDS} seconds, not ${seconds}`;
  throw invalidInput('storage.invalid_expiry', message);
}

/** The request that the SDK would send, as it names the bucket; nothing is sent. */
async function built(
  bucket: S3Bucket,
  key: string,
  { disposition, type }: LinkOptions,
  of: ObjectVersion | undefined,
): Promise<PlainRequest> {
  const command = new GetObjectCommand({
    Bucket: bucket.options.bucket,
    Key: bucket.full(key),
    ...(of === undefined || of.version === null ? {} : { VersionId: of.version }),
    ...(disposition === undefined ? {} : { ResponseContentDisposition: disposition }),
    ...(type === undefined ? {} : { ResponseContentType: type }),
  });
  let found: unknown;
  command.middlewareStack.add(
    () => async (args) => {
      found = args.request;
      return { response: {}, output: { $metadata: {} } };
    },
    { step: 'build', name: 'sluiceKeepsRequest' },
  );
  await bucket.client.send(command);
  if (!isPlainRequest(found)) throw new TypeError('the SDK built no request');
  const { protocol, hostname, port, path } = found;
  // What the SDK adds for its own statistics.
  const { 'x-id': _, ...query } = found.query;
  return { protocol, hostname, path, query, ...(port === undefined ? {} : { port }) };
}

function isPresigner(signer: unknown): signer is Presigner {
  return typeof signer === 'object' && signer !== null && 'presign' in signer;
}

function isPlainRequest(value: unknown): value is PlainRequest {
  if (typeof value !== 'object' || value === null) return false;
  return ['protocol', 'hostname', 'path', 'query'].every((name) => name in value);
}

function hostOf({ hostname, port }: PlainRequest): string {
  return port === undefined ? hostname : `${hostname}:${port}`;
}

function urlOf(request: PlainRequest): string {
  const { protocol, path, query } = request;
  const pairs = Object.entries(query)
    .flatMap(([name, value]) => [value ?? ''].flat().map((each) => [name, each] as const))
    .map(([name, value]) => `${escaped(name)}=${escaped(value)}`);
  return `${protocol}//${hostOf(request)}${path}?${pairs.join('&')}`;
}

/** As SigV4 wants it (RFC 3986): what is signed has to come as it was signed. */
function escaped(text: string): string {
  return encodeURIComponent(text).replaceAll(
    /[!'()*]/g,
    (each) => `%${each.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}
