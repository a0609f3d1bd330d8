import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { createLedger, fitsShard } from '../../src/domain/kubernetes/ledger.ts';
import { isVoid, NO_USAGE } from '../../src/domain/kubernetes/run-record.ts';
import type { Commit, RunPlan, RunWriter, Seal } from '../../src/domain/kubernetes/run-record.ts';
import { isSet, setBit } from '../../src/domain/segment.ts';

const SHARDS = [5, 9, 1, 16];

function planOf(): RunPlan {
  let first = 0;
  const shards = SHARDS.map((lines, n) => {
    const shard = { n, first, lines, offset: first * 10, bytes: lines * 10 };
    first += lines;
    return shard;
  });
  const known = { inputKey: 'files/x', inputBytes: first * 10, models: ['m'], lines: first };
  return { sha256: 'p', ...known, shards, bad: new Map() };
}

/** A commit that answers these lines of one shard, so many of them with an error. */
function commitOf(sequence: number, n: number, lines: readonly number[], failed = 0): Commit {
  const mask = Buffer.alloc(Math.ceil((SHARDS[n] ?? 0) / 8));
  for (const line of lines) setBit(mask, line);
  const usage = { ...NO_USAGE, outputTokens: lines.length };
  const part = {
    n,
    offset: 0,
    length: 1,
    crc: 0,
    mask,
    ok: lines.length - failed,
    failed,
    usage,
    engines: [],
  };
  return { sequence, bytes: 1, sha256: '', parts: [part] };
}

interface Told {
  writer: RunWriter;
  commit: Commit;
}

const pods: RunWriter[] = [
  { name: 'pod-b.1', index: 0, attempt: 1 },
  { name: 'pod-a.1', index: 0, attempt: 2 },
];

/** What two pods have committed, each in order, and told in any interleaving, some of it twice. */
const histories = fc
  .tuple(
    ...pods.map(() =>
      fc.array(
        fc.record({
          n: fc.integer({ min: 0, max: SHARDS.length - 1 }),
          lines: fc.uniqueArray(fc.integer({ min: 0, max: 15 }), { minLength: 1 }),
        }),
        { maxLength: 12 },
      ),
    ),
  )
  .chain((written) => {
    const all: Told[] = written.flatMap((commits, pod) =>
      commits.map(({ n, lines }, place) => ({
        writer: pods[pod] ?? { name: '', index: 0, attempt: 0 },
        commit: commitOf(
          place + 1,
          n,
          lines
            .map((line) => line % (SHARDS[n] ?? 1))
            .filter((line, at, own) => own.indexOf(line) === at),
        ),
      })),
    );
    return fc
      .shuffledSubarray([...all, ...all], { minLength: all.length * 2 })
      .map((told) => ({ all, told }));
  });

test('in whatever order commits of two pods are told, each line counts once and its first answer is the same', () => {
  fc.assert(
    fc.property(histories, ({ all, told }) => {
      const [inOrder, asTold] = [createLedger(planOf()), createLedger(planOf())];
      for (const { writer, commit } of all) inOrder.add(writer, commit);
      for (const { writer, commit } of told) asTold.add(writer, commit);
      const lines = new Set(
        all.flatMap(({ commit }) =>
          commit.parts.flatMap(({ n, mask }) =>
            Array.from({ length: SHARDS[n] ?? 0 }, (_each, line) => line)
              .filter((line) => isSet(mask, line))
              .map((line) => `${n}:${line}`),
          ),
        ),
      );
      expect(asTold.completed + asTold.failed).toBe(lines.size);
      expect(asTold.usage).toEqual(inOrder.usage);
      for (const [n, count] of SHARDS.entries()) {
        expect(asTold.accepted(n), 'the parts, and their order').toEqual(inOrder.accepted(n));
        const done = Array.from({ length: count }, (_each, line) => isSet(asTold.doneOf(n), line));
        expect(asTold.leftOf(n)).toBe(done.filter((is) => !is).length);
      }
      const byName = (a: { name: string }, b: { name: string }) => (a.name < b.name ? -1 : 1);
      expect(asTold.writers().toSorted(byName)).toEqual(inOrder.writers().toSorted(byName));
    }),
  );
});

test('parts count by attempt, then by their number; a lost commit counts for nothing and leaves no gap', () => {
  const ledger = createLedger(planOf());
  const [early, late] = pods as [RunWriter, RunWriter];
  ledger.add(late, commitOf(1, 0, [0]));
  ledger.add(early, commitOf(2, 0, [1]));
  ledger.lose(early, 1);
  ledger.add(early, commitOf(3, 0, [0, 2], 2));
  const order = ledger.accepted(0).parts.map(({ segment }) => segment);
  expect(order).toEqual(['pod-b.1/00000000002', 'pod-b.1/00000000003', 'pod-a.1/00000000001']);
  expect(ledger.commitsOf('pod-b.1')).toBe(3);
  expect(ledger.writers()).toContainEqual({ ...early, commits: 3, lost: [1] });
  expect({ completed: ledger.completed, failed: ledger.failed }).toEqual({
    completed: 2,
    failed: 1,
  });
});

test('a seal that counts on a lost segment is void', () => {
  const seal: Seal = {
    outcome: 'completed',
    writers: [{ name: 'pod-b.1', index: 0, attempt: 1, commits: 5, lost: [2] }],
    usage: NO_USAGE,
    inProgressAt: null,
    at: 0,
    errors: [],
  };
  const isVoidWith = (...lost: string[]) => isVoid(seal, new Set(lost));
  expect(isVoidWith()).toBe(false);
  expect(isVoidWith('pod-b.1/00000000002')).toBe(false);
  expect(isVoidWith('pod-b.1/00000000006')).toBe(false);
  expect(isVoidWith('pod-a.1/00000000003')).toBe(false);
  expect(isVoidWith('pod-b.1/00000000003')).toBe(true);
});

test('a mask fits its shard by length, and has no line beyond its last', () => {
  const shard = { n: 0, first: 0, lines: 9, offset: 0, bytes: 1 };
  expect(fitsShard(Buffer.from([0xff, 0x01]), shard)).toBe(true);
  expect(fitsShard(Buffer.from([0xff, 0x02]), shard)).toBe(false);
  expect(fitsShard(Buffer.from([0xff]), shard)).toBe(false);
});
