import { createHash } from 'node:crypto';
import { toFile } from 'openai';
import * as v from 'valibot';
import {
  afterAll,
  afterEach,
  beforeAll,
  beforeEach,
  describe,
  expect,
  inject,
  onTestFinished,
  test,
  vi,
} from 'vitest';
import { fileLinkSchema } from '../../src/api/schemas/openai.ts';
import { parseFolderUrl } from '../../src/domain/location.ts';
import type { Storage } from '../../src/storage/contract.ts';
import { createStorage } from '../../src/storage/index.ts';
import { openPlaces } from '../../src/storage/places.ts';
import { postForm, postJson, startApi, uploadInput } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';
import '../support/localhost-dns.ts';
import { startS3Proxy } from '../support/s3-proxy.ts';
import type { S3Proxy } from '../support/s3-proxy.ts';
import { ANY_KEYS, startS3Server } from '../support/s3-server.ts';
import type { S3Server } from '../support/s3-server.ts';
import { refusalOf } from '../support/signed-url.ts';
import { until } from '../support/until.ts';

let server: S3Server;
let proxy: S3Proxy;
let bucket = '';
/** What the store's clock is ahead. */
let aheadMs = 0;

beforeAll(async () => {
  server = await startS3Server();
});
afterAll(() => server[Symbol.asyncDispose]());
beforeEach(async () => {
  aheadMs = 0;
  bucket = await server.createBucket();
  // As a store does that believes no address.
  proxy = await startS3Proxy(server.url, ({ method, url, headers }) => {
    if (headers.authorization !== undefined) return 'pass';
    const request = { method, url, host: headers.host ?? '' };
    const code = refusalOf(request, ANY_KEYS.secretAccessKey, Date.now() + aheadMs);
    return code === null ? 'pass' : { status: 403, code };
  });
});
afterEach(() => proxy[Symbol.asyncDispose]());

function target() {
  return {
    bucket,
    prefix: 'p/',
    endpoint: proxy.url,
    pathStyle: 'auto',
    credentials: ANY_KEYS,
  } as const;
}

function start(storage: Storage): Promise<TestApi> {
  return startApi(inject('redisUrl'), () => ({ storage }));
}

async function onS3(): Promise<TestApi> {
  return start(await createStorage({ type: 'S3', ...target() }));
}

/** Makes a link, which is just as it is described. */
async function linkTo(api: TestApi, id: string, body: object = {}) {
  const answer = await postJson(api, `/api/v1/files/${id}/link`, body);
  expect(answer.status).toBe(200);
  return v.parse(v.strictObject(fileLinkSchema.entries), answer.body);
}

describe('a link to a file', () => {
  test('downloads its bytes from the store, without a key of this server, for an hour', async () => {
    await using api = await onS3();
    const id = await uploadInput(api, '{"custom_id":"a"}\n');
    const before = Math.floor(Date.now() / 1_000);
    const link = await linkTo(api, id);
    expect(link).toMatchObject({ id, object: 'file.link' });
    expect(link.expires_at - before).toBeGreaterThanOrEqual(3_600);
    expect(link.expires_at - before).toBeLessThan(3_630);
    const url = new URL(link.url);
    expect(url.origin).toBe(proxy.url);
    expect(url.pathname).toBe(`/${bucket}/p/files/${id}`);
    const seen = proxy.seen.length;
    const answer = await fetch(url);
    expect([answer.status, await answer.text()]).toEqual([200, '{"custom_id":"a"}\n']);
    expect(proxy.seen).toHaveLength(seen + 1);
    // Without a body, too.
    const bare = await fetch(`${api.url}/api/v1/files/${id}/link`, { method: 'POST' });
    expect(bare.status).toBe(200);
  });

  test('gives it its name and type, whatever the name holds', async () => {
    await using api = await onS3();
    const filename = `a (1)'ü&x=y%2F*!.jsonl`;
    const { text } = await postForm(api, [
      { name: 'purpose', value: 'batch' },
      { name: 'file', filename, value: '{}\n' },
    ]);
    const { url } = await linkTo(api, JSON.parse(text).id);
    const { searchParams } = new URL(url);
    const content = await fetch(`${api.url}/v1/files/${JSON.parse(text).id}/content`);
    expect(searchParams.get('response-content-disposition')).toBe(
      content.headers.get('content-disposition'),
    );
    expect(searchParams.get('response-content-type')).toBe('application/jsonl');
    expect((await fetch(url)).status).toBe(200);
  });

  test('is for nothing else than that file', async () => {
    await using api = await onS3();
    const [one, two] = [await uploadInput(api), await uploadInput(api)];
    const { url } = await linkTo(api, one);
    expect((await fetch(url.replace(one, two))).status).toBe(403);
    expect((await fetch(url, { method: 'DELETE' })).status).toBe(403);
    expect((await fetch(url.replace('Expires=3600', 'Expires=3601'))).status).toBe(403);
    expect((await fetch(url)).status).toBe(200);
  });

  test('expires_in: is refused once that is over', async () => {
    await using api = await onS3();
    const id = await uploadInput(api);
    const week = 7 * 24 * 3_600;
    const { url, expires_at: end } = await linkTo(api, id, { expires_in: week });
    expect(end).toBeGreaterThanOrEqual(Math.floor(Date.now() / 1_000) + week - 30);
    aheadMs = (week - 60) * 1_000;
    expect((await fetch(url)).status).toBe(200);
    aheadMs = (week + 1) * 1_000;
    expect(await (await fetch(url)).text()).toContain('expired');
    aheadMs = 0;
    const short = await linkTo(api, id, { expiresIn: 1 });
    await until(async () => (await fetch(short.url)).status === 403, { what: 'its end' });
  });

  test('ends with its file', async () => {
    await using api = await onS3();
    const { text } = await postForm(api, [
      { name: 'purpose', value: 'batch' },
      { name: 'expires_after[anchor]', value: 'created_at' },
      { name: 'expires_after[seconds]', value: '3600' },
      { name: 'file', filename: 'in.jsonl', value: '{}\n' },
    ]);
    const { id, expires_at: gone } = JSON.parse(text);
    const link = await linkTo(api, id, { expires_in: 86_400 });
    expect(Math.abs(link.expires_at - gone)).toBeLessThanOrEqual(2);
    expect((await fetch(`${api.url}/v1/files/${id}`, { method: 'DELETE' })).status).toBe(200);
    expect((await fetch(link.url)).status).toBe(404);
    const none = await postJson(api, `/api/v1/files/${id}/link`, {});
    expect(none).toMatchObject({ status: 404, body: { error: { code: 'file_not_found' } } });
  });

  test('is refused with the mend where its time is none', async () => {
    await using api = await onS3();
    const id = await uploadInput(api);
    for (const wrong of [0, -1, 1.5, 7 * 24 * 3_600 + 1, '60']) {
      const body = { expires_in: wrong };
      expect(await postJson(api, `/api/v1/files/${id}/link`, body)).toMatchObject({
        status: 400,
        body: { error: { param: 'expires_in', message: expect.stringContaining('1 to 604800') } },
      });
    }
    expect(await postJson(api, `/api/v1/files/${id}/link`, { expires: 60 })).toMatchObject({
      status: 400,
    });
  });

  test('in a folder is none, and the other way is told', async () => {
    await using api = await startApi(inject('redisUrl'));
    const id = await uploadInput(api);
    expect(await postJson(api, `/api/v1/files/${id}/link`, {})).toMatchObject({
      status: 400,
      body: {
        error: {
          code: 'links_not_available',
          message: expect.stringContaining(`GET /v1/files/${id}/content`),
        },
      },
    });
  });

  test('at TOS has the bucket in its host', async () => {
    const { pathStyle: _, ...rest } = target();
    const endpoint = `http://tos-s3-cn-test.localhost:${proxy.port}`;
    await using api = await start(
      await createStorage({ type: 'TOS', ...rest, endpoint, region: 'cn-test' }),
    );
    const id = await uploadInput(api, 'tos\n');
    const { url } = await linkTo(api, id);
    expect(new URL(url).host).toBe(`${bucket}.tos-s3-cn-test.localhost:${proxy.port}`);
    expect(new URL(url).pathname).toBe(`/p/files/${id}`);
    expect(url).toContain('%2Fcn-test%2Fs3%2F');
    expect(await (await fetch(url)).text()).toBe('tos\n');
  });

  test('is signed by the clock of the store, with the token of temporary keys', async () => {
    const skewed = await startS3Proxy(proxy.url, () => 'pass', { clockAheadMs: 3_600_000 });
    await using _skewed = skewed;
    const keys = { ...ANY_KEYS, sessionToken: 'a+token/=' };
    const storage = await createStorage({
      type: 'S3',
      ...target(),
      endpoint: skewed.url,
      credentials: keys,
    });
    await using api = await start(storage);
    const id = await uploadInput(api);
    aheadMs = 3_600_000;
    const { url, expires_at: end } = await linkTo(api, id, { expires_in: 60 });
    expect(new URL(url).searchParams.get('X-Amz-Security-Token')).toBe('a+token/=');
    expect((await fetch(url)).status).toBe(200);
    expect(end - Date.now() / 1_000).toBeLessThan(61);
  });
});

test('a link ends with the credentials that signed it', async () => {
  const end = Date.now() + 20 * 60_000;
  const found = {
    AWS_ACCESS_KEY_ID: ANY_KEYS.accessKeyId,
    AWS_SECRET_ACCESS_KEY: ANY_KEYS.secretAccessKey,
    AWS_CREDENTIAL_EXPIRATION: new Date(end).toISOString(),
  };
  for (const [name, value] of Object.entries(found)) vi.stubEnv(name, value);
  onTestFinished(() => void vi.unstubAllEnvs());
  const { credentials: _, ...rest } = target();
  const storage = await createStorage({ type: 'S3', ...rest });
  const { expiresAt } = await storage.presign('files/file-1', { expiresInSeconds: 3_600 });
  expect(expiresAt).toBe(end);
  const short = await storage.presign('files/file-1', { expiresInSeconds: 60 });
  expect(short.expiresAt).toBeLessThan(end);
});

test('a link to a file in a bucket of the user’s leads there, unless it was changed', async () => {
  const own = await createStorage({ type: 'S3', ...target() });
  const others = await server.createBucket();
  const parsed = parseFolderUrl(`s3://${others}/in/`);
  if ('problem' in parsed) throw new Error(parsed.problem);
  const { storage } = openPlaces(own, {
    allowed: [parsed.location],
    s3: (name) => ({ ...target(), bucket: name, prefix: '' }),
    tos: () => {
      throw new Error('no TOS');
    },
  });
  await using api = await start(storage);
  const { address = '', ...stored } = await storage.put(`s3://${others}/in/a b.jsonl`, [
    Buffer.from('theirs\n'),
  ]);
  const id = 'file-theirs';
  await api.store.files.create({
    id,
    ...stored,
    filename: 'a b.jsonl',
    purpose: 'batch',
    location: address,
    expiresAfterMs: null,
  });
  const { url } = await linkTo(api, id);
  expect(await (await fetch(url)).text()).toBe('theirs\n');
  await storage.put(`s3://${others}/in/a b.jsonl`, [Buffer.from('another\n')]);
  expect(await postJson(api, `/api/v1/files/${id}/link`, {})).toMatchObject({
    status: 410,
    body: { error: { code: 'storage.changed' } },
  });
});

test('an upload of long parts is joined by the store: its bytes are read once, and not sent again', async () => {
  await using api = await onS3();
  const pieces = [5, 6, 1].map((size, n) => Buffer.alloc(size * 2 ** 20, `${n}`));
  const whole = Buffer.concat(pieces);
  const wish = { filename: 'in.jsonl', purpose: 'batch', mime_type: 'application/jsonl' } as const;
  const upload = await api.openai.uploads.create({ ...wish, bytes: whole.length });
  const part_ids: string[] = [];
  for (const piece of pieces) {
    const data = await toFile(piece, 'part');
    part_ids.push((await api.openai.uploads.parts.create(upload.id, { data })).id);
  }
  const seen = proxy.seen.length;
  const wrong = createHash('md5').update('x').digest('hex');
  const refused = api.openai.uploads.complete(upload.id, { part_ids, md5: wrong });
  await expect(refused).rejects.toMatchObject({ status: 400, code: 'md5_mismatch' });
  expect(proxy.counts()).toMatchObject({ AbortMultipartUpload: 1 });
  const md5 = createHash('md5').update(whole).digest('hex');
  const { file } = await api.openai.uploads.complete(upload.id, { part_ids, md5 });
  const sentAgain = proxy.seen.slice(seen).reduce((sum, { bytes }) => sum + bytes, 0);
  expect(sentAgain).toBeLessThan(10_000);
  expect(proxy.counts()).toMatchObject({ UploadPartCopy: 6, CompleteMultipartUpload: 1 });
  const read = await (await api.openai.files.content(file?.id ?? '')).arrayBuffer();
  expect(Buffer.from(read).equals(whole)).toBe(true);
  expect((await api.store.files.get(file?.id ?? ''))?.sha256).toBe(
    createHash('sha256').update(whole).digest('hex'),
  );
  expect(api.logs).toContainEqual(
    expect.objectContaining({ msg: 'parts were joined', byStore: true, parts: 3 }),
  );

  const single = await api.openai.uploads.create({ ...wish, bytes: 2 });
  const data = await toFile(Buffer.from('{}'), 'part');
  const only = await api.openai.uploads.parts.create(single.id, { data });
  await api.openai.uploads.complete(single.id, { part_ids: [only.id] });
  expect(proxy.counts()).toMatchObject({ CopyObject: 1 });
});
