import { array, assert, boolean, nat, property, record } from 'fast-check';
import { expect, test } from 'vitest';
import { firstOf, onAbort } from '../../src/dispatcher/on-abort.ts';
import { Roster } from '../../src/dispatcher/roster.ts';
import type { Seat } from '../../src/dispatcher/roster.ts';

function inside(roster: Roster<number>): number[] {
  const found: number[] = [];
  roster.each((who) => void found.push(who));
  return found.toSorted((a, b) => a - b);
}

test('whoever entered and has not left is in, whatever the order', () => {
  const step = record({ enters: boolean(), pick: nat() });
  assert(
    property(array(step, { maxLength: 200 }), (steps) => {
      const roster = new Roster<number>();
      const model = new Map<number, Seat<number>>();
      const gone: Seat<number>[] = [];
      for (const [n, { enters, pick }] of steps.entries()) {
        const [who, seat] = [...model][pick % Math.max(1, model.size)] ?? [];
        if (enters || who === undefined || seat === undefined) {
          model.set(n, roster.enter(n));
          continue;
        }
        roster.leave(seat);
        model.delete(who);
        gone.push(seat);
        // Leaving twice takes nobody else out.
        for (const each of gone) roster.leave(each);
      }
      expect(inside(roster)).toEqual([...model.keys()].toSorted((a, b) => a - b));
      expect(roster.size).toBe(model.size);
      expect(roster.clear().toSorted((a, b) => a - b)).toEqual(
        [...model.keys()].toSorted((a, b) => a - b),
      );
      for (const seat of model.values()) roster.leave(seat);
      expect(roster.size).toBe(0);
    }),
  );
});

test('each one is told even where all leave while they are told', () => {
  const roster = new Roster<() => void>();
  const told: number[] = [];
  for (let n = 0; n < 50; n += 1) {
    const seat = roster.enter(() => {
      told.push(n);
      roster.leave(seat);
    });
  }
  roster.each((tell) => tell());
  expect([roster.size, told.length, new Set(told).size]).toEqual([0, 50, 50]);
});

test('the first of several signals aborts with its reason, and a released one with none', () => {
  const [a, b] = [new AbortController(), new AbortController()];
  const first = firstOf(a.signal, b.signal);
  const released = firstOf(a.signal, b.signal);
  released.release();
  let runs = 0;
  onAbort(first.signal, () => (runs += 1));
  b.abort(new Error('b'));
  a.abort(new Error('a'));
  expect(first.signal.reason).toEqual(new Error('b'));
  expect([runs, released.signal.aborted]).toEqual([1, false]);
  expect(firstOf(b.signal, a.signal).signal.reason).toEqual(new Error('b'));
});
