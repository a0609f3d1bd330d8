import { Readable } from 'node:stream';
import { expect, test } from 'vitest';
import { errorOnlyLine, requestId } from '../../src/dispatcher/answer-lines.ts';
import { selectLines } from '../../src/dispatcher/select-lines.ts';
import { setBit } from '../../src/domain/segment.ts';

const JOB = 'job_abc';

/** A line of the error file for the input's line of this index. */
function errorLine(index: number, padding = 0): Buffer {
  const message = `failed${'\u00e9'.repeat(padding)}`;
  const customId = Buffer.from(JSON.stringify(`c-${index}`));
  return errorOnlyLine({ id: requestId(JOB, index), customId, code: 'batch_expired', message });
}

/** The same bytes in pieces of this size: how a source is cut must make no difference. */
function inPieces(bytes: Buffer, size: number): Readable {
  const pieces: Buffer[] = [];
  for (let at = 0; at < bytes.length; at += size) pieces.push(bytes.subarray(at, at + size));
  return Readable.from(pieces);
}

/** Shards of so many lines each, of which these are marked as bad. */
async function* shardsOf(lines: number, each: number, marked: readonly number[]) {
  for (let first = 0, n = 0; first < lines; first += each, n += 1) {
    const inShard = marked.filter((index) => index >= first && index < first + each);
    const bad = inShard.length === 0 ? null : Buffer.alloc(Math.ceil(each / 8));
    for (const index of inShard) if (bad !== null) setBit(bad, index - first);
    yield { plan: { n, first, lines: each, offset: 0, bytes: 0 }, bad };
  }
}

async function select(
  input: string,
  errors: readonly Buffer[],
  size = 64,
  shards = shardsOf(0, 1, []),
): Promise<string> {
  const chunks: Buffer[] = [];
  const file = inPieces(Buffer.concat(errors), size);
  const options = { maxLineBytes: 10_000, shards };
  const lines = selectLines(inPieces(Buffer.from(input), size), file, options);
  for await (const chunk of lines) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

const LINES = Array.from(
  { length: 50 },
  (_, n) => `{ "custom_id":  "c-${n}", "body": {"é": ${n}} }`,
);

test('the lines that failed come byte by byte, in input order, however the files are cut', async () => {
  const failed = [0, 3, 4, 17, 49];
  const expected = failed.map((n) => `${LINES[n]}\n`).join('');
  for (const size of [1, 7, 64, 1_000_000]) {
    const errors = failed.map((n) => errorLine(n, n * 20));
    expect(await select(`${LINES.join('\n')}\n`, errors, size)).toBe(expected);
  }
});

test('blank lines are not counted, and the last line needs no newline', async () => {
  const input = `\n${LINES[0]}\r\n \n${LINES[1]}\n\n${LINES[2]}`;
  expect(await select(input, [errorLine(1), errorLine(2)])).toBe(`${LINES[1]}\n${LINES[2]}\n`);
});

test('lines that planning marked as bad are left out, wherever shards end', async () => {
  const failed = [0, 3, 4, 9, 10, 17, 48, 49];
  const marked = [3, 5, 10, 49];
  const expected = [0, 4, 9, 17, 48].map((n) => `${LINES[n]}\n`).join('');
  const input = `${LINES.join('\n')}\n`;
  for (const each of [1, 5, 10, 50]) {
    const errors = failed.map((n) => errorLine(n));
    expect(await select(input, errors, 64, shardsOf(50, each, marked))).toBe(expected);
  }
});

test('an error file of another input is refused', async () => {
  const input = `${LINES.join('\n')}\n`;
  for (const errors of [
    [errorLine(50)],
    [errorLine(4), errorLine(3)],
    [errorLine(4), errorLine(4)],
    [Buffer.from('{"id":"x"}\n')],
  ]) {
    await expect(select(input, errors)).rejects.toMatchObject({ code: 'retry.bad_error_file' });
  }
});

test('no error file is held: a line of it may be longer than memory', async () => {
  const one = Buffer.alloc(1024 * 1024, 'x');
  async function* longLine(): AsyncGenerator<Buffer> {
    yield errorLine(2).subarray(0, -1);
    for (let n = 0; n < 200; n += 1) yield one;
    yield Buffer.from('\n');
  }
  const before = process.memoryUsage().rss;
  const input = Readable.from([Buffer.from(`${LINES.join('\n')}\n`)]);
  const options = { maxLineBytes: 10_000, shards: shardsOf(0, 1, []) };
  const lines = selectLines(input, longLine(), options);
  const chunks: Buffer[] = [];
  for await (const chunk of lines) chunks.push(chunk);
  expect(Buffer.concat(chunks).toString()).toBe(`${LINES[2]}\n`);
  expect(process.memoryUsage().rss - before).toBeLessThan(100 * 1024 * 1024);
});
