import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { createUniqueIds } from '../../src/dispatcher/unique-ids.ts';
import type { Duplicate } from '../../src/dispatcher/unique-ids.ts';

let directory = '';
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'unique-ids-'));
});
afterEach(async () => {
  await rm(directory, { recursive: true });
});

function referenceDuplicates(ids: readonly string[]): Duplicate[] {
  const firsts = new Map<string, number>();
  const found: Duplicate[] = [];
  for (const [n, id] of ids.entries()) {
    const first = firsts.get(id);
    if (first === undefined) firsts.set(id, n + 1);
    else found.push({ number: n + 1, first });
  }
  return found;
}

async function check(ids: Iterable<string>, memoryEntries?: number, limit = 100) {
  const unique = createUniqueIds({
    directory,
    ...(memoryEntries === undefined ? {} : { memoryEntries }),
  });
  try {
    let number = 0;
    for (const id of ids) await unique.add(id, (number += 1));
    return await unique.duplicates(limit);
  } finally {
    await unique.close();
    await unique.close();
  }
}

describe('createUniqueIds', () => {
  test('needs no file for a small input', async () => {
    await rm(directory, { recursive: true });
    const found = await check(['a', 'b', 'a', 'c', 'a']);
    expect(found).toEqual({
      total: 2,
      lines: [
        { number: 3, first: 1 },
        { number: 5, first: 1 },
      ],
    });
    await expect(readdir(directory)).rejects.toThrow('ENOENT');
    await writeFile(directory, '');
  });

  test('its file has no name, so that a killed process leaves nothing', async () => {
    const unique = createUniqueIds({ directory: join(directory, 'made'), memoryEntries: 2 });
    await unique.add('a', 1);
    await unique.add('b', 2);
    await unique.add('a', 3);
    expect(await readdir(join(directory, 'made'))).toEqual([]);
    expect(await unique.duplicates(10)).toEqual({ total: 1, lines: [{ number: 3, first: 1 }] });
    await unique.close();
  });

  test('tells lone surrogates apart', async () => {
    expect((await check(['\ud800', '\ud801', '\ufffd', '\ud800'])).lines).toEqual([
      { number: 4, first: 1 },
    ]);
  });

  test('keeps line numbers above 32 bits', async () => {
    const unique = createUniqueIds({ directory });
    await unique.add('a', 2 ** 33 + 5);
    await unique.add('a', 2 ** 40);
    expect((await unique.duplicates(1)).lines).toEqual([{ number: 2 ** 40, first: 2 ** 33 + 5 }]);
    await unique.close();
  });

  test('reports the first lines of very many duplicates, and how many there are', async () => {
    const ids = Array.from({ length: 20_000 }, (_, n) => `${n % 5_000}`);
    const found = await check(ids, 700, 3);
    expect(found).toEqual({ total: 15_000, lines: referenceDuplicates(ids).slice(0, 3) });
  });

  test('an id that is on every line needs no more memory than another', async () => {
    const found = await check(
      Array.from({ length: 50_000 }, () => 'same'),
      1_000,
      2,
    );
    expect(found).toEqual({
      total: 49_999,
      lines: [
        { number: 2, first: 1 },
        { number: 3, first: 1 },
      ],
    });
  });

  test('says where it has no room', async () => {
    await writeFile(join(directory, 'file'), '');
    const unique = createUniqueIds({ directory: join(directory, 'file'), memoryEntries: 1 });
    await expect(async () => unique.add('a', 1)).rejects.toMatchObject({
      kind: 'Transient',
      code: 'storage.scratch',
    });
    await unique.close();
  });

  test('finds the same duplicates with little memory as with much', async () => {
    const id = fc.oneof(fc.nat(30).map(String), fc.string({ unit: 'binary', maxLength: 3 }));
    await fc.assert(
      fc.asyncProperty(
        fc.array(id, { maxLength: 120 }),
        fc.integer({ min: 1, max: 130 }),
        fc.nat(20),
        async (ids, memoryEntries, limit) => {
          const expected = referenceDuplicates(ids);
          const found = await check(ids, memoryEntries, limit);
          expect(found).toEqual({ total: expected.length, lines: expected.slice(0, limit) });
        },
      ),
      { numRuns: 200 },
    );
    // Each spill is a file: slow where the disk or the cores are busy with others.
  }, 20_000);
});
