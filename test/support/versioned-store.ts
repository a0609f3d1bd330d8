import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { buffer } from 'node:stream/consumers';

/** A version of an object, or the marker of a delete. */
export interface StoredVersion {
  id: string;
  key: string;
  /** Null: a marker. */
  bytes: Buffer | null;
}

export interface VersionedStore extends AsyncDisposable {
  url: string;
  /** All versions, oldest first; a test may change them. */
  versions: StoredVersion[];
  /** `DELETE key id` and the like, in order. */
  asked: string[];
  /** Refuses requests before they have an effect: answers with this status. */
  refuse: (what: string) => number | null;
}

/** A page of a listing. */
const PAGE = 3;

/** A bucket that keeps versions, which those of the test server do not, as far as storing and deleting need it. */
export async function startVersionedStore(): Promise<VersionedStore> {
  let made = 0;
  const server = createServer((request, response) => {
    handle(request, response).catch(() => request.socket.destroy());
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo; // a TCP server that listens has one
  const store: VersionedStore = {
    url: `http://127.0.0.1:${port}`,
    versions: [],
    asked: [],
    refuse: () => null,
    async [Symbol.asyncDispose]() {
      const closed = once(server, 'close');
      server.close();
      server.closeAllConnections();
      await closed;
    },
  };

  function add(key: string, bytes: Buffer | null): StoredVersion {
    made += 1;
    const version = { id: `v${made}`, key, bytes };
    store.versions.push(version);
    return version;
  }

  async function handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { method = '', url = '' } = request;
    const { pathname, searchParams: query } = new URL(url, 'http://host');
    const key = decodeURIComponent(pathname.split('/').slice(2).join('/'));
    const id = query.get('versionId');
    const bytes = await buffer(request);
    const what =
      key === ''
        ? `LIST ${query.has('versions') ? 'versions' : ''}`
        : `${method} ${key}${id === null ? '' : ` ${id}`}`;
    store.asked.push(what);
    const status = store.refuse(what);
    if (status !== null) return refuse(response, status, 'AccessDenied');
    if (key === '') return list(response, query);
    if (method === 'PUT') return say(response, add(key, bytes));
    if (method === 'DELETE') return remove(response, key, id);
    const found = store.versions.findLast((each) => each.key === key);
    if (found === undefined || found.bytes === null) return refuse(response, 404, 'NoSuchKey');
    const etag = etagOf(found.bytes);
    if ((request.headers['if-match'] ?? etag) !== etag)
      return refuse(response, 412, 'PreconditionFailed');
    say(response, found, method === 'HEAD' ? undefined : found.bytes);
  }

  function remove(response: ServerResponse, key: string, id: string | null): void {
    if (id === null) return say(response, add(key, null));
    const at = store.versions.findIndex((each) => each.id === id && each.key === key);
    const [gone = { id, key, bytes: null }] = at === -1 ? [] : store.versions.splice(at, 1);
    say(response, gone);
  }

  function list(response: ServerResponse, query: URLSearchParams): void {
    const prefix = query.get('prefix') ?? '';
    // By key, the newest first.
    const all = store.versions
      .filter(({ key }) => key.startsWith(prefix))
      .toReversed()
      .toSorted((a, b) => (a.key === b.key ? 0 : a.key < b.key ? -1 : 1));
    const after = all.findIndex(
      ({ id, key }) => id === query.get('version-id-marker') && key === query.get('key-marker'),
    );
    const page = all.slice(after + 1, after + 1 + PAGE);
    const last = page.at(-1);
    const isMore = last !== undefined && last !== all.at(-1);
    if (!query.has('versions')) return listObjects(response, prefix);
    const entries = page.map(entryOf);
    const next = isMore
      ? `<NextKeyMarker>${last.key}</NextKeyMarker><NextVersionIdMarker>${last.id}</NextVersionIdMarker>`
      : '';
    const body = `<ListVersionsResult><IsTruncated>${isMore}</IsTruncated>${next}${entries.join('')}</ListVersionsResult>`;
    response.writeHead(200, { 'content-type': 'application/xml' }).end(body);
  }

  function listObjects(response: ServerResponse, prefix: string): void {
    const newest = new Map(store.versions.map((each) => [each.key, each]));
    const there = [...newest.values()].filter(
      ({ key, bytes }) => bytes !== null && key.startsWith(prefix),
    );
    const contents = there.map(({ key }) => `<Contents><Key>${key}</Key></Contents>`).join('');
    const body = `<ListBucketResult><IsTruncated>false</IsTruncated>${contents}</ListBucketResult>`;
    response.writeHead(200, { 'content-type': 'application/xml' }).end(body);
  }

  function entryOf({ key, id, bytes }: StoredVersion): string {
    const isLatest = store.versions.findLast((each) => each.key === key)?.id === id;
    const name = bytes === null ? 'DeleteMarker' : 'Version';
    return `<${name}><Key>${key}</Key><VersionId>${id}</VersionId><IsLatest>${isLatest}</IsLatest></${name}>`;
  }

  return store;
}

function etagOf(bytes: Buffer): string {
  return `"${createHash('md5').update(bytes).digest('hex')}"`;
}

function say(response: ServerResponse, { id, bytes }: StoredVersion, body?: Buffer): void {
  response.writeHead(bytes === null ? 204 : 200, {
    'x-amz-version-id': id,
    ...(bytes === null ? { 'x-amz-delete-marker': 'true' } : { etag: etagOf(bytes) }),
    ...(/HEAD|GET/.test(response.req.method ?? '') && bytes !== null
      ? { 'content-length': bytes.length }
      : {}),
    'last-modified': new Date().toUTCString(),
  });
  response.end(body);
}

function refuse(response: ServerResponse, status: number, code: string): void {
  response.writeHead(status, { 'content-type': 'application/xml' });
  response.end(`<Error><Code>${code}</Code></Error>`);
}
