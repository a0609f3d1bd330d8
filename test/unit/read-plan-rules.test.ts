import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { ReadPlanOptions } from '../../src/dispatcher/read-plan.ts';
import type { BadLines } from '../../src/domain/plan.ts';
import { isSet } from '../../src/domain/segment.ts';
import { found, line, lines, read } from '../support/plan-reader.ts';

describe('a pinned model', () => {
  test('every line must name it', async () => {
    const rows = [line(0), line(1, {}, { model: 'other' }), line(2)];
    const plan = await read(rows.join('\n'), { pinnedModel: 'm' });
    expect(found(plan)).toEqual([['model_mismatch', 2, 'body.model']]);
    expect(plan.errors[0]?.message).toContain("'m'");
    expect(plan.errors[0]?.message).toContain("'other'");
  });

  test.for(['größe', 'Ã©'])('is compared as text, not as bytes: %s', async (model) => {
    const escaped = line(1, {}, { model }).replace(/[^ -~]/g, (char) => {
      return `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`;
    });
    const rows = [line(0, {}, { model }), escaped];
    expect(found(await read(rows.join('\n'), { pinnedModel: model }))).toEqual([]);
    expect((await read(rows.join('\n'))).models).toEqual([model]);
    const foreign = { pinnedModel: Buffer.from(model).toString('latin1') };
    expect((await read(rows.join('\n'), foreign)).bad).toBe(2);
  });

  test('a moderation may name none', async () => {
    const url = '/v1/moderations';
    const options = { endpoint: url, pinnedModel: 'm' } as const;
    expect(found(await read(line(0, { url, body: { input: 'i' } }), options))).toEqual([]);
    const other = line(0, { url, body: { input: 'i', model: 'o' } });
    expect(found(await read(other, options))).toEqual([['model_mismatch', 1, 'body.model']]);
  });
});

test('custom_ids beyond ASCII are told apart, and found again escaped', async () => {
  const rows = [line(0, { custom_id: 'é' }), line(1, { custom_id: 'Ã©' })];
  expect(found(await read(rows.join('\n')))).toEqual([]);
  const escaped = line(2, { custom_id: 'X' }).replace('X', '\\u00e9');
  expect(found(await read([...rows, escaped].join('\n')))).toEqual([
    ['duplicate_custom_id', 3, 'custom_id'],
  ]);
});

describe('where bad lines are taken', () => {
  async function readLenient(input: string, options: Partial<ReadPlanOptions> = {}) {
    const marks: BadLines[] = [];
    const onBadLines = async (page: readonly BadLines[]) => void marks.push(...page);
    const plan = await read(input, { onBadLines, ...options });
    const bad = plan.plans.flatMap(({ n, first, lines: count }) => {
      const bits = marks.find((each) => each.n === n)?.bad;
      if (bits === undefined) return [];
      expect(bits).toHaveLength(Math.ceil(count / 8));
      return Array.from({ length: count }, (_, i) => i)
        .filter((i) => isSet(bits, i))
        .map((i) => first + i);
    });
    return { ...plan, marks, marked: bad };
  }

  test('they are marked, the second and later of equal custom_ids among them, and all lines are cut', async () => {
    const rows = [line(0), '', 'nope', line(2), line(0), line(4, { method: 'GET' }), line(4)];
    const plan = await readLenient(rows.join('\n'), { cut: { lines: 2, bytes: 1_000 } });
    expect(plan).toMatchObject({ lines: 6, shards: 3, bad: 3, total: 3, unfit: null });
    // The second line of id 4 is the first that can be asked.
    expect(plan.marked).toEqual([1, 3, 4]);
  });

  test('a model that only bad lines name is none of the job, whatever is bad about them', async () => {
    const rows = [
      line(0, {}, { model: 'a' }),
      line(0, {}, { model: 'twice' }),
      line(1, {}, { model: 'b' }),
      line(0, {}, { model: 'b' }),
      line(2, { method: 'GET' }, { model: 'get' }),
      line(1, {}, { model: 'a' }),
      line(3, {}, { model: 'c' }),
      line(4, {}, { model: 'again' }),
      line(4, {}, { model: 'again' }),
    ];
    const plan = await readLenient(rows.join('\n'));
    expect(plan.marked).toEqual([1, 3, 4, 5, 8]);
    expect(plan.models).toEqual(['a', 'b', 'c', 'again']);
  });

  test('shards without a bad line are not marked', async () => {
    const plan = await readLenient([line(0), line(1), 'nope'].join('\n'), {
      cut: { lines: 1, bytes: 1 },
    });
    expect(plan.marks).toEqual([{ n: 2, bad: Buffer.from([1]) }]);
  });

  test('lines that are too long, and models beyond the most, are bad lines', async () => {
    const rows = Array.from({ length: 33 }, (_, n) => line(n, {}, { model: `m${n}` }));
    rows.push(line(33, {}, { model: 'm0', user: 'x'.repeat(10_000) }));
    const plan = await readLenient(rows.join('\n'));
    expect(plan.marked).toEqual([32, 33]);
    expect(plan.models).toHaveLength(32);
  });

  test.for([
    ['', 'empty_file'],
    [lines(9).join('\n'), 'too_many_tasks'],
  ])('what is wrong with the whole still is: %#', async ([text = '', code]) => {
    const plan = await readLenient(text, { maxLines: 8 });
    expect(plan).toMatchObject({ unfit: { code }, marks: [] });
  });

  test('the same lines are bad as without, however they are cut and whatever their neighbours are', async () => {
    const row = fc.oneof(
      fc.constantFrom('nope', '[]', line(1, { method: 'GET' }), line(2, {}, { stream: true })),
      fc.nat(12).map((n) => line(n)),
      fc.constant(' '),
    );
    const cut = fc.record({ lines: fc.integer({ min: 1, max: 20 }), bytes: fc.nat(2_000) });
    await fc.assert(
      fc.asyncProperty(fc.array(row, { minLength: 1, maxLength: 60 }), cut, async (rows, how) => {
        const text = rows.join('\n');
        const strict = await read(text);
        const lenient = await readLenient(text, { cut: how });
        const physical = rows.flatMap((each, n) => (each === ' ' ? [] : [n + 1]));
        const inLines = lenient.marked.map((index) => physical[index]);
        const expected = strict.problems.flatMap((each) => each.line ?? []);
        expect(inLines).toEqual(expected);
        expect(lenient.bad).toBe(strict.bad);
        expect(lenient.plans.reduce((sum, plan) => sum + plan.lines, 0)).toBe(physical.length);
      }),
      { numRuns: 150 },
    );
  });
});
