import { Readable } from 'node:stream';
import { expect, test } from 'vitest';
import { CHUNK_BYTES, createChunkPool } from '../../src/dispatcher/chunk-pool.ts';
import type { Answer } from '../../src/dispatcher/contract.ts';
import { LineTable } from '../../src/dispatcher/line-table.ts';
import { OpenSegment } from '../../src/dispatcher/open-segment.ts';
import { readEntries } from '../../src/dispatcher/segments.ts';
import { NO_USAGE } from '../../src/dispatcher/usage.ts';

type Encoded = ReturnType<OpenSegment<string>['encode']>;

/** What a segment has of each holder, read back. */
async function readBack({ chunks, parts }: Encoded): Promise<Map<string, Answer[]>> {
  const whole = Buffer.concat(chunks);
  const found = new Map<string, Answer[]>();
  for (const { holder, range } of parts) {
    const bytes = whole.subarray(range.offset, range.offset + range.length);
    const answers: Answer[] = [];
    const part = { segment: 'seg_1', ...range };
    for await (const answer of readEntries(Readable.from([bytes]), part)) {
      answers.push({ ...answer, bytes: Buffer.from(answer.bytes) });
    }
    found.set(holder, answers);
  }
  return found;
}

test('joins the pieces of a line, text as UTF-8', async () => {
  const open = new OpenSegment<string>(createChunkPool());
  const pieces = ['{"ü":', Buffer.from('"😀"'), '}\n'];
  const bytes = open.add('a', { line: 4, kind: 'error', pieces }, NO_USAGE);
  expect(bytes).toBe(Buffer.byteLength('{"ü":"😀"}\n'));
  expect(await readBack(open.encode())).toEqual(
    new Map([['a', [{ line: 4, kind: 'error', bytes: Buffer.from('{"ü":"😀"}\n') }]]]),
  );
});

test('answers of several holders, small ones, some that fill a chunk and some that are larger', async () => {
  const open = new OpenSegment<string>(createChunkPool());
  const sizes = [10, CHUNK_BYTES - 9, 3, CHUNK_BYTES + 1, 0, 3 * CHUNK_BYTES, CHUNK_BYTES / 2, 7];
  const expected = new Map<string, Answer[]>();
  for (let n = 0; n < 40; n += 1) {
    const holder = `holder ${n % 3}`;
    const bytes = Buffer.alloc(sizes[n % sizes.length] ?? 0, n + 1);
    const answer = { line: 100 - n, kind: n % 2 === 0 ? 'output' : 'error', bytes } as const;
    expected.set(holder, [answer, ...(expected.get(holder) ?? [])]);
    open.add(holder, { line: answer.line, kind: answer.kind, pieces: [bytes] }, NO_USAGE);
  }
  const encoded = open.encode();
  expect(await readBack(encoded)).toEqual(expected);
  expect(Buffer.concat(encoded.chunks)).toHaveLength(open.bytes + open.rows * 9);
});

test('what storage was given stays as it is when the chunks are used again', () => {
  const pool = createChunkPool();
  const first = new OpenSegment<string>(pool);
  first.add('a', { line: 0, kind: 'output', pieces: ['first'] }, NO_USAGE);
  const { chunks } = first.encode();
  const before = Buffer.concat(chunks);
  first.release();
  const second = new OpenSegment<string>(pool);
  second.add('a', { line: 1, kind: 'output', pieces: ['other'] }, NO_USAGE);
  expect(Buffer.concat(chunks)).toEqual(before);
});

test('a line table counts lines and tokens, also beyond 32 bits, without those that are done', () => {
  const table = new LineTable();
  const usage = { inputTokens: 2 ** 40, cachedTokens: 1, outputTokens: 2, reasoningTokens: 3 };
  const place = { chunk: 0, start: 0, length: 0 };
  for (let line = 0; line < 200; line += 1) {
    // One in ten was answered by nobody, and the last only by the second engine.
    const engine = line === 199 ? 'http://b' : line % 10 === 5 ? null : 'http://a';
    table.add({ line, ok: line % 4 !== 0, usage, engine }, place);
  }
  const done = Buffer.alloc(25);
  done[0] = 0b11;
  const { mask, ...counts } = table.tally(200, done);
  expect(counts).toEqual({
    ok: 149,
    failed: 49,
    usage: {
      inputTokens: 198 * 2 ** 40,
      cachedTokens: 198,
      outputTokens: 2 * 198,
      reasoningTokens: 3 * 198,
    },
    engines: [
      { engine: 'http://a', ok: 128, failed: 49 },
      { engine: 'http://b', ok: 1, failed: 0 },
    ],
  });
  done.fill(0xff, 24);
  expect(table.tally(200, done).engines, 'of lines that others answered').toHaveLength(1);
  expect([mask[0], mask[1], mask.length]).toEqual([0b1111_1100, 0xff, 25]);
});
