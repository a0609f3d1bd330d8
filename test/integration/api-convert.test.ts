import { once } from 'node:events';
import { request } from 'node:http';
import type { IncomingHttpHeaders } from 'node:http';
import { Readable } from 'node:stream';
import { gunzipSync } from 'node:zlib';
import { parquetMetadata, parquetReadObjects } from 'hyparquet';
import { describe, expect, inject, test } from 'vitest';
import { MOST_CONVERTED } from '../../src/api/convert/convert.ts';
import { fileKey } from '../../src/domain/file.ts';
import { batchIdOf } from '../../src/domain/job.ts';
import { rawRequest, startApi } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';
import { parseCsv } from '../support/csv.ts';
import { storeFile, storeJob } from '../support/wrote.ts';
import type { Went } from '../support/wrote.ts';
import { until } from '../support/until.ts';

const COLUMNS =
  'custom_id,status_code,request_id,model,content,finish_reason,prompt_tokens,completion_tokens,total_tokens,' +
  'error_code,error_message,body';

function start(): Promise<TestApi> {
  return startApi(inject('redisUrl'));
}

/** A chat answer. */
function said(content: string, more: object = {}): object {
  return {
    model: 'llama',
    choices: [{ message: { content }, finish_reason: 'stop' }],
    usage: { prompt_tokens: 3, completion_tokens: 4, total_tokens: 7 },
    ...more,
  };
}

const NASTY = 'a "quoted", text,\r\nof two lines with ü and 😀';
const LINES: Went[] = [
  { customId: 'a,"response":{"b', body: said(NASTY) },
  { customId: 'refused', status: 400, body: { error: { message: 'too long', code: 'length' } } },
  { customId: 'last', body: said('ok') },
  { customId: 'lost', error: { code: 'batch_expired', message: 'Too late.' } },
];

interface Download {
  status: number;
  headers: IncomingHttpHeaders;
  bytes: Buffer;
}

async function get(
  api: TestApi,
  path: string,
  headers: Record<string, string> = {},
): Promise<Download> {
  const outgoing = request(`${api.url}${path}`, { headers, agent: false }).end();
  const [incoming] = await once(outgoing, 'response');
  const chunks: Buffer[] = [];
  for await (const chunk of incoming) chunks.push(chunk);
  return { status: incoming.statusCode, headers: incoming.headers, bytes: Buffer.concat(chunks) };
}

function contentPath(id: string, query: string): string {
  return `/v1/files/${id}/content?${query}`;
}

async function rowsOf(bytes: Buffer): Promise<Record<string, unknown>[]> {
  const { buffer, byteOffset, byteLength } = bytes;
  return parquetReadObjects({
    file: buffer.slice(byteOffset, byteOffset + byteLength) as ArrayBuffer,
  });
}

/** The records of a CSV by their header. */
function recordsOf(text: string): Record<string, string>[] {
  const [header = [], ...records] = parseCsv(text);
  return records.map((fields) =>
    Object.fromEntries(header.map((name, place) => [name, fields[place] ?? ''])),
  );
}

describe('format=csv', () => {
  test('has a row a line, with what the answers say in columns', async () => {
    await using api = await start();
    const { job, ids } = await storeJob(api, LINES);
    const { status, headers, bytes } = await get(api, contentPath(ids.output, 'format=csv'));
    expect(status).toBe(200);
    expect(headers).toMatchObject({
      'content-type': 'text/csv; charset=utf-8; header=present',
      'x-content-type-options': 'nosniff',
      'accept-ranges': 'none',
      vary: 'Accept-Encoding',
    });
    expect(headers['content-disposition']).toContain(`"${batchIdOf(job.id)}_output.csv"`);
    expect(bytes.toString().split('\r\n')[0]).toBe(COLUMNS);
    expect(recordsOf(bytes.toString())).toEqual([
      {
        custom_id: 'a,"response":{"b',
        status_code: '200',
        request_id: 'req-0',
        model: 'llama',
        content: NASTY,
        finish_reason: 'stop',
        prompt_tokens: '3',
        completion_tokens: '4',
        total_tokens: '7',
        error_code: '',
        error_message: '',
        body: JSON.stringify(said(NASTY)),
      },
      expect.objectContaining({ custom_id: 'last', request_id: 'req-2', content: 'ok' }),
    ]);
    const errors = await get(api, contentPath(ids.error, 'format=csv'));
    expect(recordsOf(errors.bytes.toString())).toEqual([
      expect.objectContaining({
        custom_id: 'refused',
        status_code: '400',
        error_code: 'length',
        error_message: 'too long',
      }),
      expect.objectContaining({
        custom_id: 'lost',
        status_code: '',
        request_id: '',
        error_code: 'batch_expired',
        error_message: 'Too late.',
        body: '',
      }),
    ]);
  });

  const contents: [string, object, string][] = [
    ['text completions', { choices: [{ text: 'once' }] }, 'once'],
    ['one embedding', { data: [{ embedding: [1, 0.5] }] }, '[1,0.5]'],
    ['several embeddings', { data: [{ embedding: [1] }, { embedding: [2] }] }, '[[1],[2]]'],
    ['an embedding in base64', { data: [{ embedding: 'AACAPw==' }] }, 'AACAPw=='],
    [
      'responses',
      {
        object: 'response',
        output: [
          { type: 'reasoning', summary: [] },
          { type: 'message', content: [{ type: 'output_text', text: 'said' }] },
        ],
      },
      'said',
    ],
    [
      'ranks',
      { results: [{ index: 0, relevance_score: 0.5 }] },
      '[{"index":0,"relevance_score":0.5}]',
    ],
    ['scores', { object: 'list', data: [{ index: 0, score: 1 }] }, '[{"index":0,"score":1}]'],
    ['a call of a tool', { choices: [{ message: { content: null, tool_calls: [] } }] }, ''],
  ];
  test.for(contents)('the content of %s', async ([, body, content]) => {
    await using api = await start();
    const { ids } = await storeJob(api, [{ customId: 'a', body }]);
    const { bytes } = await get(api, contentPath(ids.output, 'format=csv'));
    expect(recordsOf(bytes.toString())).toEqual([
      expect.objectContaining({ content, body: JSON.stringify(body) }),
    ]);
  });

  test('escape_formulas: no text is a formula, numbers stay, and it can be turned off', async () => {
    await using api = await start();
    const texts = ['=1+1', '+1+1', '-1+1', '@SUM(A1)', '\t=1', '\r=1', '\n=1', '＝1', '- a list'];
    const harmless = ['-5', '+1.5e3', 'a=b', ' =1'];
    const { ids } = await storeJob(
      api,
      [...texts, ...harmless].map((text) => ({ customId: text, body: said(text) })),
    );
    const plain = [...texts, ...harmless];
    const safe = [...texts.map((text) => `'${text}`), ...harmless];
    for (const [query, expected] of [
      ['format=csv', safe],
      ['format=csv&escape_formulas=true', safe],
      ['format=csv&escape_formulas=false', plain],
    ] as const) {
      const { bytes } = await get(api, contentPath(ids.output, query));
      const records = recordsOf(bytes.toString());
      expect(records.map(({ content }) => content)).toEqual(expected);
      expect(records.map((record) => record['custom_id'])).toEqual(expected);
      expect(records.map(({ body }) => body)).toEqual(plain.map((t) => JSON.stringify(said(t))));
    }
  });
});

describe('format=parquet', () => {
  test('is read back by a reader of Parquet, with its types and nulls', async () => {
    await using api = await start();
    const { job, ids } = await storeJob(api, LINES);
    const { headers, bytes } = await get(api, contentPath(ids.output, 'format=parquet'), {
      'accept-encoding': 'gzip',
    });
    expect(headers['content-type']).toBe('application/vnd.apache.parquet');
    expect(headers['content-encoding'], 'it is compressed inside').toBeUndefined();
    expect(headers['content-disposition']).toContain(`"${batchIdOf(job.id)}_output.parquet"`);
    const rows = await rowsOf(bytes);
    expect(Object.keys(rows[0] ?? {})).toEqual(COLUMNS.split(','));
    expect(rows).toEqual([
      {
        custom_id: 'a,"response":{"b',
        status_code: 200,
        request_id: 'req-0',
        model: 'llama',
        content: NASTY,
        finish_reason: 'stop',
        prompt_tokens: 3n,
        completion_tokens: 4n,
        total_tokens: 7n,
        error_code: null,
        error_message: null,
        body: JSON.stringify(said(NASTY)),
      },
      expect.objectContaining({ custom_id: 'last', request_id: 'req-2', content: 'ok' }),
    ]);
  });

  test('has row groups of bounded size, and every row in its order', async () => {
    await using api = await start();
    const text = 'y'.repeat(3_000);
    const lines = Array.from({ length: 3_000 }, (_, n) => ({
      customId: `c${n}`,
      body: said(`${text}${n}`),
    }));
    const { ids } = await storeJob(api, lines);
    const { bytes } = await get(api, contentPath(ids.output, 'format=parquet'));
    const { buffer, byteOffset, byteLength } = bytes;
    const file = buffer.slice(byteOffset, byteOffset + byteLength) as ArrayBuffer;
    const { row_groups: groups } = parquetMetadata(file);
    // 18 MB of text and bodies, 4 MiB a group.
    expect(groups.length).toBeGreaterThan(3);
    expect(groups.length).toBeLessThan(7);
    const rows = await rowsOf(bytes);
    expect(rows.map((row) => row['custom_id'])).toEqual(lines.map(({ customId }) => customId));
    expect(rows.at(-1)?.['content']).toBe(`${text}2999`);
  });
});

describe('merge=input', () => {
  const exact = '{"custom_id":"last", "body":{"n":12345678901234567890,"n2":1.0}}';
  const lines = LINES.map((line) =>
    line.customId === 'last' ? { ...line, request: exact } : line,
  );

  test('puts each request, as it was written, beside its answer', async () => {
    await using api = await start();
    const { job, ids, files } = await storeJob(api, lines);
    const output = await get(api, contentPath(ids.output, 'merge=input'));
    expect(output.headers['content-type']).toBe('application/jsonl');
    expect(output.headers['content-disposition']).toContain(
      `"${batchIdOf(job.id)}_output_merged.jsonl"`,
    );
    const merged = output.bytes.toString().trimEnd().split('\n');
    expect(merged).toHaveLength(2);
    expect(merged[1]).toContain(`{"custom_id":"last","request":${exact},"response":{`);
    const plain = files.output
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line));
    for (const [n, line] of merged.entries()) {
      const { custom_id: id, response, error } = plain[n];
      const parsed = JSON.parse(line);
      expect(parsed).toEqual({ custom_id: id, request: parsed.request, response, error });
      expect(parsed.request.custom_id).toBe(id);
    }
    const failed = await get(api, contentPath(ids.error, 'merge=input'));
    const errors = failed.bytes
      .toString()
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(
      errors.map(({ request: { custom_id: id, body }, response, error }) => [
        id,
        body.n,
        response?.status_code,
        error?.code,
      ]),
    ).toEqual([
      ['refused', 1, 400, undefined],
      ['lost', 3, undefined, 'batch_expired'],
    ]);
  });

  test('in a table is a column more', async () => {
    await using api = await start();
    const { ids } = await storeJob(api, lines);
    const csv = await get(api, contentPath(ids.output, 'merge=input&format=csv'));
    expect(csv.headers['content-disposition']).toContain('_output_merged.csv"');
    expect(recordsOf(csv.bytes.toString()).map((record) => record['request'])).toEqual([
      JSON.stringify({ custom_id: 'a,"response":{"b', body: { n: 0 } }),
      exact,
    ]);
    const parquet = await get(api, contentPath(ids.output, 'merge=input&format=parquet'));
    expect((await rowsOf(parquet.bytes)).at(-1)).toMatchObject({
      custom_id: 'last',
      request: exact,
    });
  });

  test('of an input with bad lines has null for what is no JSON', async () => {
    await using api = await start();
    const { ids, input } = await storeJob(api, [
      { customId: 'a', body: said('A') },
      { customId: 'b', body: said('B') },
    ]);
    const bad = 'nonsense';
    const text = `\ufeff\n{"custom_id":"a"}\r\n \n{"custom_id":"b"}\r\n${bad}`;
    await api.storage.put(fileKey(input), [Buffer.from(text)]);
    const id = ids.error;
    const line = `{"id":"batch_req_x_2","custom_id":null,"response":null,"error":{"code":"invalid_json_line","message":"m"}}\n`;
    await api.storage.put(fileKey(id), [Buffer.from(line)]);
    const merged = await get(api, contentPath(id, 'merge=input'));
    expect(JSON.parse(merged.bytes.toString())).toMatchObject({ custom_id: null, request: null });
    const output = await get(api, contentPath(ids.output, 'merge=input'));
    expect(output.bytes.toString()).toContain('"request":{"custom_id":"b"},"response"');
  });

  test('with an input that was deleted is refused, and says so', async () => {
    await using api = await start();
    const { ids, input } = await storeJob(api, lines);
    const path = contentPath(ids.output, 'merge=input');
    await api.storage.delete(fileKey(input));
    for (const step of ['its bytes', 'its record']) {
      const { status, bytes } = await get(api, path);
      const { error } = JSON.parse(bytes.toString());
      expect([step, status, error.code, error.param]).toEqual([
        step,
        400,
        'input_deleted',
        'merge',
      ]);
      expect(error.message).toContain(`The input '${input}' of this batch was deleted`);
      await api.store.files.delete(input);
    }
    expect((await get(api, contentPath(ids.output, 'format=csv'))).status).toBe(200);
  });

  test('with another input than the one that was answered breaks off', async () => {
    await using api = await start();
    const { ids, input } = await storeJob(api, lines);
    const other = '{"custom_id":"other"}\n'.repeat(lines.length);
    for (const text of [other, '']) {
      await api.storage.put(fileKey(input), [Buffer.from(text)]);
      const reading = get(api, contentPath(ids.output, 'merge=input'));
      await expect(reading).rejects.toThrow(/aborted|hang up|reset/);
    }
  });
});

describe('gzip', () => {
  test('is how a conversion is sent where the client takes it', async () => {
    await using api = await start();
    const { ids } = await storeJob(api, LINES);
    for (const query of ['format=csv', 'merge=input']) {
      const plain = await get(api, contentPath(ids.output, query));
      expect(plain.headers['content-encoding']).toBeUndefined();
      const headers = { 'accept-encoding': 'gzip' };
      const packed = await get(api, contentPath(ids.output, query), headers);
      expect(packed.headers).toMatchObject({ 'content-encoding': 'gzip', vary: 'Accept-Encoding' });
      expect(packed.headers['content-length']).toBeUndefined();
      expect(gunzipSync(packed.bytes).toString()).toBe(plain.bytes.toString());
    }
  });

  test('gzip=true: the download itself is a .gz file, whatever the client takes', async () => {
    await using api = await start();
    const { job, ids, files, input } = await storeJob(api, LINES);
    const name = `${batchIdOf(job.id)}_output`;
    const csv = (await get(api, contentPath(ids.output, 'format=csv'))).bytes.toString();
    for (const [id, query, filename, text] of [
      [ids.output, 'gzip=true', `${name}.jsonl.gz`, files.output],
      [ids.output, 'gzip', `${name}.jsonl.gz`, files.output],
      [input, 'gzip=true', 'questions.jsonl.gz', files.input],
      [ids.output, 'format=csv&gzip=true', `${name}.csv.gz`, csv],
    ] as const) {
      for (const accept of ['gzip', 'identity']) {
        const headers = { 'accept-encoding': accept };
        const answer = await get(api, contentPath(id, query), headers);
        expect(answer.headers['content-type']).toBe('application/gzip');
        expect(answer.headers['content-encoding']).toBeUndefined();
        expect(answer.headers['content-disposition']).toContain(`"${filename}"`);
        expect(gunzipSync(answer.bytes).toString()).toBe(text);
      }
    }
    const whole = await get(api, contentPath(ids.output, 'gzip=false'));
    expect(whole.bytes.toString()).toBe(files.output);
  });
});

describe('refused is', () => {
  const wrong: [string, string, string][] = [
    ['format=xml', 'format', 'one of jsonl, csv, parquet'],
    ['merge=output', 'merge', 'input'],
    ['gzip=1', 'gzip', 'true or false'],
    ['format=parquet&gzip=true', 'gzip', 'compressed as it is'],
    ['escape_formulas=no&format=csv', 'escape_formulas', 'true or false'],
    ['escape_formulas=false', 'escape_formulas', 'for format=csv'],
    ['escape_formulas=false&format=parquet', 'escape_formulas', 'for format=csv'],
  ];
  test.for(wrong)('%s', async ([query, param, words]) => {
    await using api = await start();
    const { ids } = await storeJob(api, LINES);
    const { status, bytes } = await get(api, contentPath(ids.output, query));
    const { error } = JSON.parse(bytes.toString());
    expect([status, error.param]).toEqual([400, param]);
    expect(error.message).toContain(words);
  });

  test.for(['format=csv', 'format=parquet', 'merge=input'])(
    '%s of a file that no batch wrote',
    async (query) => {
      await using api = await start();
      const { input } = await storeJob(api, LINES);
      await storeFile(api, 'file-notes', 'notes.txt', 'user_data', 'hello');
      for (const id of [input, 'file-notes']) {
        const { status, bytes } = await get(api, contentPath(id, query));
        const { error } = JSON.parse(bytes.toString());
        expect([status, error.param]).toEqual([400, query.split('=')[0]]);
        expect(error.message).toContain('Only output and error files of batches');
        expect(error.message).toContain('format=jsonl');
        expect((await get(api, contentPath(id, 'format=jsonl'))).status).toBe(200);
      }
    },
  );
});

describe('a conversion', () => {
  test('has a tag of its own form, no ranges, and headers for HEAD', async () => {
    await using api = await start();
    const { ids } = await storeJob(api, LINES);
    const tags = new Set<unknown>();
    for (const query of ['format=csv', 'format=csv&merge=input', 'format=parquet', 'gzip=true']) {
      const path = contentPath(ids.output, query);
      const { headers, bytes } = await get(api, path, { range: 'bytes=0-3' });
      expect(bytes.length).toBeGreaterThan(4);
      const etag = String(headers.etag);
      expect(etag).toMatch(/^W\//);
      tags.add(etag);
      expect((await get(api, path, { 'if-none-match': etag })).status).toBe(304);
      const head = await rawRequest(`${api.url}${path}`, { method: 'HEAD' });
      expect([head.status, head.text, head.headers.etag]).toEqual([200, '', etag]);
      expect(head.headers['content-type']).toBe(headers['content-type']);
    }
    expect(tags.size).toBe(4);
  });

  test.each(['format=csv', 'format=parquet', 'merge=input', 'format=csv&gzip=true'])(
    '%s breaks off when storage fails in the middle, and gives its place back',
    async (query) => {
      await using api = await start();
      const { ids, files } = await storeJob(api, LINES);
      const { get: whole } = api.storage;
      for (let n = 0; n <= MOST_CONVERTED; n += 1) {
        api.storage.get = async (key, range) => {
          if (key !== fileKey(ids.output)) return whole(key, range);
          return Readable.from(
            (async function* broken() {
              yield Buffer.from(files.output.slice(0, 300));
              throw new Error('the disk is gone');
            })(),
          );
        };
        const reading = get(api, contentPath(ids.output, query));
        await expect(reading).rejects.toThrow(/aborted|hang up|reset/);
      }
      api.storage.get = whole;
      const again = await until(async () => {
        const answer = await get(api, contentPath(ids.output, query));
        return answer.status === 200 && answer;
      });
      expect(again.bytes.length).toBeGreaterThan(0);
      expect(api.logs.filter(({ msg }) => msg === 'converting a download failed').length).toBe(
        MOST_CONVERTED + 1,
      );
    },
  );

  test('ends what it reads when its client hangs up, and only so many go on at once', async () => {
    await using api = await start();
    const { ids, files } = await storeJob(api, LINES);
    const { get: whole } = api.storage;
    const opened: Readable[] = [];
    api.storage.get = async (key, range) => {
      if (key !== fileKey(ids.output)) return whole(key, range);
      // Some lines at once, and then none for ever.
      const stream = new Readable({ read: (): void => undefined });
      stream.push(files.output);
      opened.push(stream);
      return stream;
    };
    const path = contentPath(ids.output, 'format=csv');
    const clients = await Promise.all(
      Array.from({ length: MOST_CONVERTED }, async () => {
        const outgoing = request(`${api.url}${path}`, { agent: false }).end();
        outgoing.on('error', () => undefined);
        const [incoming] = await once(outgoing, 'response');
        incoming.on('error', () => undefined);
        await once(incoming, 'data');
        return outgoing;
      }),
    );
    const refused = await get(api, path);
    expect([refused.status, refused.headers['retry-after']]).toEqual([503, '2']);
    expect(JSON.parse(refused.bytes.toString()).error.code).toBe('too_many_readers');
    for (const client of clients) client.destroy();
    await until(() => opened.every((stream) => stream.destroyed));
    api.storage.get = whole;
    expect((await get(api, path)).status).toBe(200);
  });

  test('of a hundred that come at once, on all paths together, only so many open the storage', async () => {
    await using api = await start();
    const { job, ids, files } = await storeJob(api, LINES);
    const { get: whole } = api.storage;
    let opened = 0;
    const held = Promise.withResolvers<void>();
    api.storage.get = async (key, range) => {
      if (key !== fileKey(ids.output)) return whole(key, range);
      opened += 1;
      await held.promise;
      return Readable.from([Buffer.from(files.output)]);
    };
    const paths = [
      contentPath(ids.output, 'format=csv'),
      contentPath(ids.output, 'merge=input'),
      `/api${contentPath(ids.output, 'gzip=true')}`,
    ];
    const answers: number[] = [];
    const asking = Array.from({ length: 100 }, async (_, n) => {
      answers.push((await get(api, paths[n % paths.length] ?? '')).status);
    });
    await until(() => answers.length === 100 - MOST_CONVERTED && opened === MOST_CONVERTED);
    expect(new Set(answers)).toEqual(new Set([503]));
    const unfinished = `/v1/batches/${batchIdOf(job.id)}/output?format=csv`;
    expect((await get(api, unfinished)).status).toBe(503);
    held.resolve();
    await Promise.all(asking);
    expect(answers.filter((status) => status === 200)).toHaveLength(MOST_CONVERTED);
    // Who finds nothing to convert takes no place.
    api.storage.get = async () => {
      throw new Error('the disk is gone');
    };
    for (let n = 0; n <= MOST_CONVERTED; n += 1) await get(api, paths[n % 2] ?? '');
    api.storage.get = whole;
    expect((await get(api, paths[0] ?? '')).status).toBe(200);
  });
});
