import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { ShardPlan } from '../../src/domain/plan.ts';
import { found, line, lines, read } from '../support/plan-reader.ts';

describe('the cut', () => {
  const input = fc.record({
    sizes: fc.array(fc.nat(60), { minLength: 1, maxLength: 60 }),
    blanks: fc.array(fc.nat(60), { maxLength: 8 }),
    mark: fc.boolean(),
    ends: fc.constantFrom('\n', '\r\n'),
    last: fc.boolean(),
    cut: fc.record({
      lines: fc.integer({ min: 1, max: 9 }),
      bytes: fc.integer({ min: 1, max: 900 }),
    }),
    chunks: fc.array(fc.nat(9_000), { maxLength: 12 }),
  });

  test('covers all lines once, within its bounds, and alike however the input comes', async () => {
    await fc.assert(
      fc.asyncProperty(input, async ({ sizes, blanks, mark, ends, last, cut, chunks }) => {
        const rows = sizes.map((size, n) => line(n, {}, { user: 'ü'.repeat(size) }));
        for (const at of blanks) rows.splice(at % (rows.length + 1), 0, ' \t');
        const text = (mark ? '\uFEFF' : '') + rows.join(ends) + (last ? ends : '');
        const bytes = Buffer.from(text);
        const plan = await read(bytes, { cut });
        expect(plan.errors).toEqual([]);
        expect(plan.lines).toBe(sizes.length);
        expect(plan.shards).toBe(plan.plans.length);
        let next = 0;
        let offset = 0;
        for (const [n, shard] of plan.plans.entries()) {
          expect(shard).toMatchObject({ n, first: next });
          expect(shard.offset).toBeGreaterThanOrEqual(offset);
          expect(shard.lines).toBeGreaterThanOrEqual(1);
          expect(shard.lines).toBeLessThanOrEqual(cut.lines);
          expect(shard.lines === 1 || shard.bytes <= cut.bytes).toBe(true);
          const part = bytes.subarray(shard.offset, shard.offset + shard.bytes).toString();
          const ids = [...part.matchAll(/"custom_id":"id-(\d+)"/g)].map((match) =>
            Number(match[1]),
          );
          expect(ids).toEqual(Array.from({ length: shard.lines }, (_, i) => next + i));
          next += shard.lines;
          offset = shard.offset + shard.bytes;
        }
        expect(next).toBe(sizes.length);
        expect(await read(bytes, { cut }, chunks)).toEqual(plan);
      }),
      { numRuns: 150 },
    );
  });

  test('hands shards over in pages, in order', async () => {
    const pages: number[] = [];
    const all: number[] = [];
    const bytes = Buffer.from(lines(2_000).join('\n'));
    const cuts = Array.from({ length: 200 }, (_, n) => n * 1_000);
    const onShards = async (shards: readonly ShardPlan[]): Promise<void> => {
      pages.push(shards.length);
      all.push(...shards.map(({ n }) => n));
    };
    const plan = await read(bytes, { cut: { lines: 1, bytes: 1 }, onShards }, cuts);
    expect(plan.shards).toBe(2_000);
    expect(pages.length).toBeGreaterThan(3);
    expect(all).toEqual(Array.from({ length: 2_000 }, (_, n) => n));
  });

  test('after a bad line no shard is handed over, unless bad lines are taken', async () => {
    const bytes = Buffer.from(['nope', ...lines(2_000)].join('\n'));
    const cuts = Array.from({ length: 200 }, (_, n) => n * 1_000);
    const cut = { lines: 1, bytes: 1 };
    expect((await read(bytes, { cut }, cuts)).plans).toEqual([]);
    const onBadLines = () => Promise.resolve();
    expect((await read(bytes, { cut, onBadLines }, cuts)).plans).toHaveLength(2_001);
  });

  test('knows the models that the lines name', async () => {
    const rows = [line(0), line(1, {}, { model: 'other' }), line(2)];
    expect((await read(rows.join('\n'))).models).toEqual(['m', 'other']);
  });

  test('an aborted pass ends', async () => {
    const signal = AbortSignal.abort(new Error('the process stops'));
    await expect(read(lines(3).join('\n'), { signal })).rejects.toThrow('the process stops');
  });
});

describe('what is wrong with a line', () => {
  const BAD: [string, string, string | null][] = [
    ['{"custom_id": ', 'invalid_json_line', null],
    ['[1]', 'invalid_json_line', null],
    ['"text"', 'invalid_json_line', null],
    [line(1, { custom_id: undefined }), 'missing_required_parameter', 'custom_id'],
    [line(1, { custom_id: 7 }), 'invalid_type', 'custom_id'],
    [line(1, { custom_id: '' }), 'invalid_custom_id', 'custom_id'],
    [line(1, { method: undefined }), 'missing_required_parameter', 'method'],
    [line(1, { method: 'GET' }), 'invalid_method', 'method'],
    [line(1, { url: undefined }), 'missing_required_parameter', 'url'],
    [line(1, { url: '/v1/embeddings' }), 'url_mismatch', 'url'],
    [line(1, { body: undefined }), 'missing_required_parameter', 'body'],
    [line(1, { body: [] }), 'invalid_type', 'body'],
    [line(1, {}, { model: undefined }), 'missing_required_parameter', 'body.model'],
    [line(1, {}, { model: 4 }), 'invalid_type', 'body.model'],
    [line(1, {}, { messages: 'hello' }), 'invalid_type', 'body.messages'],
    [line(1, {}, { stream: true }), 'unsupported_parameter', 'body.stream'],
    [line(1, {}, { user: 'x'.repeat(10_000) }), 'line_too_long', null],
    [line(0), 'duplicate_custom_id', 'custom_id'],
  ];

  test.for(BAD)('%s', async ([bad, code, param]) => {
    const plan = await read([line(0), '', bad, line(2)].join('\n'));
    expect(found(plan)).toEqual([[code, 3, param]]);
  });

  test('bytes that are no UTF-8', async () => {
    const bytes = Buffer.concat([
      Buffer.from(`${line(0)}\n{"\u00e4\ufffd":"`),
      Buffer.of(0xff),
      Buffer.from('"}'),
    ]);
    const plan = await read(bytes);
    expect(found(plan)).toEqual([['invalid_json_line', 2, null]]);
    expect(plan.errors[0]?.message).toMatch(/Column 8: bytes that are no UTF-8/);
  });

  test.for([
    ['{"ä": "é" "b": 1}', /parseable as valid JSON\. Column 11: expected ',' or .* got '"'\.$/],
    [`{"custom_id": "${'x'.repeat(500)}`, /Column 15: this text has no closing quote\.$/],
    ["{'custom_id': 'a'}", /Column 2: .*a single quote/],
  ] as const)('where and why a line is no JSON: %s', async ([bad, message]) => {
    const plan = await read([line(0), bad].join('\n'));
    expect(plan.errors[0]).toMatchObject({ code: 'invalid_json_line', line: 2 });
    expect(plan.errors[0]?.message).toMatch(message);
    expect(plan.errors[0]?.message.length).toBeLessThan(160);
  });

  test('lines are counted as an editor counts them: with blank ones, CRLF and a byte order mark', async () => {
    const text = `\uFEFF${line(0)}\r\n\r\n  \n${line(1)}\r\nnope\r\n\n${line(0)}`;
    const plan = await read(text);
    expect(found(plan)).toEqual([
      ['invalid_json_line', 5, null],
      ['duplicate_custom_id', 7, 'custom_id'],
    ]);
    expect(plan.errors[1]?.message).toContain('line 1.');
  });

  test('three bad lines of 10,000 are all named', async () => {
    const rows = lines(10_000);
    rows[17] = 'nope';
    rows[5_000] = line(5_000, { method: 'PUT' });
    rows[9_999] = line(42);
    const plan = await read(rows.join('\n'));
    expect(plan.lines).toBe(10_000);
    expect(found(plan)).toEqual([
      ['invalid_json_line', 18, null],
      ['invalid_method', 5_001, 'method'],
      ['duplicate_custom_id', 10_000, 'custom_id'],
    ]);
    expect(plan.errors[2]?.message).toContain('line 43.');
  });
});

describe('what is wrong with the whole', () => {
  test.for(['', '\n\n', '\uFEFF', ' \r\n\t'])('an input without a request: %j', async (text) => {
    const plan = await read(text);
    expect(found(plan)).toEqual([['empty_file', null, null]]);
  });

  test.for([[], [500, 900, 1_700]])(
    'too many lines are one error, at the first of them',
    async (cuts) => {
      const rows = lines(50);
      const plan = await read(rows.join('\n'), { maxLines: 10 }, cuts);
      expect(found(plan)).toEqual([['too_many_tasks', 11, null]]);
      expect(plan.errors[0]?.message).toContain('10');
      expect(found(await read(rows.slice(0, 10).join('\n'), { maxLines: 10 }))).toEqual([]);
    },
  );

  test('more than 32 models', async () => {
    const rows = Array.from({ length: 33 }, (_, n) => line(n, {}, { model: `m${n}` }));
    expect(found(await read(rows.slice(0, 32).join('\n')))).toEqual([]);
    expect(found(await read(rows.join('\n')))).toEqual([['model_mismatch', 33, 'body.model']]);
  });

  test.for([[], [1_000, 2_000, 3_000]])(
    'of very many problems the first 100, and how many there are',
    async (cuts) => {
      const rows = [...lines(20), ...Array.from({ length: 300 }, () => 'nope'), line(400), line(7)];
      const plan = await read(rows.join('\n'), {}, cuts);
      expect(plan).toMatchObject({ lines: 322, bad: 301, total: 301, plans: [] });
      expect(plan.errors).toHaveLength(101);
      expect(found(plan).slice(0, 100)).toEqual(
        Array.from({ length: 100 }, (_, n) => ['invalid_json_line', 21 + n, null]),
      );
      const rest = { code: 'too_many_errors', line: null, param: null };
      expect(plan.errors[100]).toMatchObject(rest);
      expect(plan.errors[100]?.message).toMatch(/\b301 problems\b.*\bfirst 100\b/);
    },
  );

  test('that there are too many lines is said beside any number of bad ones', async () => {
    const rows = Array.from({ length: 300 }, () => 'nope');
    const plan = await read(rows.join('\n'), { maxLines: 250 });
    expect(found(plan).slice(98)).toEqual([
      ['invalid_json_line', 99, null],
      ['too_many_tasks', 251, null],
      ['too_many_errors', null, null],
    ]);
    expect(plan).toMatchObject({ bad: 250, total: 251, unfit: { code: 'too_many_tasks' } });
  });

  test('100 problems are all listed, and nothing is said of more', async () => {
    const plan = await read(Array.from({ length: 100 }, () => 'nope').join('\n'));
    expect(plan.errors).toHaveLength(100);
    expect(plan.errors.at(-1)?.code).toBe('invalid_json_line');
  });

  test('errors are in line order, whenever they were found', async () => {
    const plan = await read([line(0), line(0), 'nope', line(0), 'nope'].join('\n'));
    expect(plan.errors.map((each) => each.line)).toEqual([2, 3, 4, 5]);
  });

  test('many duplicates are named in line order, each with the first line', async () => {
    const plan = await read([...lines(3), line(2), line(0), line(0)].join('\n'));
    expect(plan.errors.map((each) => [each.line, /line (\d+)\./.exec(each.message)?.[1]])).toEqual([
      [4, '3'],
      [5, '1'],
      [6, '1'],
    ]);
  });
});
