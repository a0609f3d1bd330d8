import { describe, expect, test } from 'vitest';
import { createTurns } from '../../src/dispatcher/turns.ts';
import { createVirtualClock } from '../support/virtual-clock.ts';

const SEATS = 32;

function open() {
  const clock = createVirtualClock();
  return { clock, turns: createTurns(clock) };
}

describe('turns', () => {
  test('a job takes shards until as many lines wait as may be in flight, then steps aside while they last', async () => {
    const { clock, turns } = open();
    expect(turns.asideMs('a')).toBe(0);
    const turn = turns.begin('a', () => 100);
    turn.unsent = 99;
    expect(turns.asideMs('a')).toBe(0);
    turn.unsent = 1_000;
    await clock.advance(250);
    turn.sent = 1_000;
    // 4 a millisecond: 1,000 last 250 ms, and half of that is early enough.
    expect(turns.asideMs('a')).toBe(125);
    await clock.advance(250);
    turn.sent = 25;
    expect(turns.asideMs('a')).toBe(1_000);
  });

  test('where every seat is taken, the one that had its turn for longest ends it for the next', async () => {
    const { clock, turns } = open();
    const first = turns.begin('job-0', () => 1);
    await clock.advance(500);
    for (let n = 1; n < SEATS; n += 1) turns.begin(`job-${n}`, () => 1);
    expect(turns.asideMs('late')).toBe(50);
    expect(first.over.signal.aborted).toBe(false);
    await clock.advance(500);
    expect(turns.asideMs('late')).toBe(50);
    expect(first.over.signal.aborted).toBe(true);
    // Its seat is free at once, however long its last answers take.
    expect(turns.asideMs('late')).toBe(0);
    turns.begin('late', () => 1);
    expect(turns.asideMs('job-0')).toBe(1_000);
    turns.end('job-0');
    // It leaves its place to those that waited.
    expect(turns.asideMs('job-0')).toBe(1_000);
    await clock.advance(1_000);
    expect(turns.asideMs('job-0')).toBe(50);
  });

  test('the more jobs wait, the later each looks again', async () => {
    const { clock, turns } = open();
    for (let n = 0; n < SEATS; n += 1) turns.begin(`job-${n}`, () => 1);
    const waits = Array.from({ length: 300 }, (_, n) => turns.asideMs(`late-${n}`));
    expect(waits[0]).toBe(50);
    expect(waits[299]).toBe(1_000);
    await clock.advance(1_000);
    expect(turns.asideMs('late-0')).toBeLessThanOrEqual(1_000);
  });
});
