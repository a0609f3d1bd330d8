import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { readLines } from '../../src/dispatcher/lines.ts';
import type { InputLine, LineOptions } from '../../src/dispatcher/lines.ts';

/** The same by splitting the whole text, which only a small one allows. */
function referenceLines(whole: Buffer, options: LineOptions): InputLine[] {
  const { maxLineBytes, startOffset = 0, startIndex = 0, startNumber = 1 } = options;
  const lines: InputLine[] = [];
  let [from, number, index] = [0, startNumber, startIndex];
  while (from < whole.length) {
    const newline = whole.indexOf('\n', from);
    const to = newline === -1 ? whole.length : newline;
    let text = whole.subarray(from, to).toString('latin1');
    const offset = startOffset + from;
    if (offset === 0) text = text.replace(/^\u00ef\u00bb\u00bf/, '');
    text = text.replace(/\r$/, '');
    const isLong = text.length > maxLineBytes;
    from = newline === -1 ? to : to + 1;
    if (isLong || !/^[ \t\r]*$/.test(text)) {
      const bytes = isLong ? null : Buffer.from(text, 'latin1');
      lines.push({ index, number, offset, end: startOffset + from, bytes });
      index += 1;
    }
    number += 1;
  }
  return lines;
}

async function* inChunks(whole: Buffer, cuts: readonly number[]): AsyncGenerator<Uint8Array> {
  let from = 0;
  for (const cut of [...cuts].toSorted((a, b) => a - b)) {
    const to = Math.min(cut, whole.length);
    yield new Uint8Array(whole.subarray(from, to));
    from = to;
  }
  yield whole.subarray(from);
}

async function collect(source: AsyncIterable<Uint8Array>, options: LineOptions) {
  const all: InputLine[] = [];
  for await (const batch of readLines(source, options)) {
    expect(batch.length).toBeGreaterThan(0);
    all.push(...batch);
  }
  return all;
}

function read(text: string, options: Partial<LineOptions> = {}) {
  return collect(inChunks(Buffer.from(text), []), { maxLineBytes: 1_000, ...options });
}

function texts(lines: readonly InputLine[]) {
  return lines.map((line) => line.bytes?.toString() ?? null);
}

describe('readLines', () => {
  test('takes LF, CRLF and a last line without newline', async () => {
    expect(texts(await read('a\nb\r\nc'))).toEqual(['a', 'b', 'c']);
  });

  test('skips blank lines but counts them in the physical line', async () => {
    const lines = await read('\n \t\r\na\n\n\nb\n \t');
    expect(lines.map(({ index, number, offset, end }) => [index, number, offset, end])).toEqual([
      [0, 3, 5, 7],
      [1, 6, 9, 11],
    ]);
  });

  test('strips a byte order mark at the start of the file only', async () => {
    expect(texts(await read('\u{feff}a\n\u{feff}b\n'))).toEqual(['a', '\u{feff}b']);
    expect(texts(await read('\u{feff}a\n', { startOffset: 7 }))).toEqual(['\u{feff}a']);
    expect(await read('\u{feff}\n')).toEqual([]);
  });

  test('has nothing to say of an empty source', async () => {
    expect(await read('')).toEqual([]);
  });

  test('goes on from where another reader stopped', async () => {
    expect(await read('a\nb', { startOffset: 100, startIndex: 5, startNumber: 9 })).toEqual([
      { index: 5, number: 9, offset: 100, end: 102, bytes: Buffer.from('a') },
      { index: 6, number: 10, offset: 102, end: 103, bytes: Buffer.from('b') },
    ]);
  });

  test('reports a line that is too long and reads on', async () => {
    const lines = await read('1234\n12345\r\n123456\n1234', { maxLineBytes: 5 });
    expect(texts(lines)).toEqual(['1234', '12345', null, '1234']);
  });

  test('joins a line of 10 MiB once, and holds none that is longer', async () => {
    const chunk = Buffer.alloc(64 * 1024, 'x');
    const maxLineBytes = 160 * chunk.length;
    async function* source() {
      for (let n = 0; n < 160; n += 1) yield chunk;
      yield Buffer.from('\n');
      for (let n = 0; n < 4_000; n += 1) yield chunk;
      yield Buffer.from('\nend');
    }
    const before = process.memoryUsage().arrayBuffers;
    let most = 0;
    async function* watched() {
      for await (const piece of source()) {
        most = Math.max(most, process.memoryUsage().arrayBuffers - before);
        yield piece;
      }
    }
    const lines = await collect(watched(), { maxLineBytes });
    most = Math.max(most, process.memoryUsage().arrayBuffers - before);
    expect(lines.map((line) => line.bytes?.length ?? null)).toEqual([maxLineBytes, null, 3]);
    expect(lines[1]?.end).toBe(160 * chunk.length + 1 + 4_000 * chunk.length + 1);
    expect(most).toBeLessThan(3 * maxLineBytes);
  });

  test('gives views of the chunk where a line lies in one', async () => {
    const chunk = Buffer.from('abc\ndef\n');
    async function* source() {
      yield chunk;
    }
    const [line] = await collect(source(), { maxLineBytes: 10 });
    expect(line?.bytes?.buffer).toBe(chunk.buffer);
  });

  test("passes the source's error on", async () => {
    async function* source() {
      yield Buffer.from('a\n');
      throw new Error('lost');
    }
    await expect(collect(source(), { maxLineBytes: 10 })).rejects.toThrow('lost');
  });

  test('reads the same however the source is cut', async () => {
    const piece = fc.oneof(
      { weight: 4, arbitrary: fc.constantFrom('\n', '\r\n', '\r', ' ', '\t', '\n\n') },
      { weight: 1, arbitrary: fc.constant('\u{feff}') },
      { weight: 4, arbitrary: fc.string({ unit: 'grapheme', maxLength: 12 }) },
    );
    await fc.assert(
      fc.asyncProperty(
        fc.array(piece, { maxLength: 40 }).map((pieces) => Buffer.from(pieces.join(''))),
        fc.array(fc.nat(120), { maxLength: 12 }),
        fc.record({ maxLineBytes: fc.integer({ min: 1, max: 20 }), startOffset: fc.nat(1) }),
        async (whole, cuts, options) => {
          const lines = await collect(inChunks(whole, cuts), options);
          expect(lines).toEqual(referenceLines(whole, options));
        },
      ),
      { numRuns: 1_000 },
    );
  });
});
