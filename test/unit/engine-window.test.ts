import { afterEach, describe, expect, test } from 'vitest';
import { createEngineWindow } from '../../src/dispatcher/engine-window.ts';
import type { EngineTally, EngineWindow } from '../../src/dispatcher/engine-window.ts';
import { windowRules } from '../../src/dispatcher/window-rules.ts';
import { createVirtualClock } from '../support/virtual-clock.ts';

interface Beat {
  since: number;
  tally: EngineTally;
  heard: Set<string>;
}

/** What Redis keeps between processes, in this one; beats are as old as they get. */
function openEngine() {
  const clock = createVirtualClock();
  const beats = new Map<string, Beat>();
  let limit: number | null = null;
  const windows: EngineWindow[] = [];
  function join(name: string, { isUsed = (): boolean => true, guess = 1 } = {}): EngineWindow {
    const window = createEngineWindow({
      address: 'http://engine',
      clock,
      rules: () => windowRules([]),
      inFlight: () => 0,
      isUsed,
      processes: () => guess,
      readMetrics: async () => Promise.resolve(null),
      async share(_address, tally, decided) {
        beats.set(name, { since: beats.get(name)?.since ?? beats.size, tally, heard: new Set() });
        const rank = [...beats].filter(
          ([, { since }]) => since < (beats.get(name)?.since ?? 0),
        ).length;
        if (decided !== null && rank === 0) limit = decided;
        const others = [...beats].filter(
          ([other, beat]) => other !== name && !beat.heard.has(name),
        );
        for (const [, beat] of others) beat.heard.add(name);
        return Promise.resolve({
          processes: beats.size,
          rank,
          limit,
          others: others.map(([, beat]) => beat.tally),
        });
      },
      onChange() {},
      onError: (error) => {
        throw error;
      },
    });
    windows.push(window);
    return window;
  }
  return {
    clock,
    join,
    leave: (name: string) => beats.delete(name),
    close: () => windows.map((each) => each.close()),
  };
}

describe('the window of an engine', () => {
  let engine = openEngine();
  afterEach(() => {
    engine.close();
    engine = openEngine();
  });

  test('is divided among those who send there, to the last line', async () => {
    const { clock, join, leave } = engine;
    const windows = ['a', 'b', 'c'].map((name) => join(name));
    await clock.advance(1_000);
    expect(windows.map((each) => each.processes)).toEqual([3, 3, 3]);
    for (const count of [1, 2, 3, 10, 64]) {
      const parts = windows.map((each) => each.part(count));
      expect(parts.reduce((sum, part) => sum + part, 0)).toBe(count);
      expect(Math.max(...parts) - Math.min(...parts)).toBeLessThanOrEqual(1);
    }
    expect(windows.reduce((sum, each) => sum + each.limit, 0)).toBe(64);
    leave('a');
    await clock.advance(1_000);
    // It comes back as the last of three.
    expect(windows.map((each) => each.part(1))).toEqual([0, 1, 0]);
  });

  test('nobody sends more than a part of it before it knows of the others', async () => {
    const { clock, join } = engine;
    const late = join('late', { guess: 4 });
    expect([late.limit, late.part(10), late.part(3)]).toEqual([16, 2, 0]);
    await clock.advance(1);
    expect([late.limit, late.part(10), late.part(3)]).toEqual([64, 10, 3]);
  });

  test('one leads; the others follow what it decided, and the next leads when it is gone', async () => {
    const { clock, join, leave } = engine;
    let aWorks = true;
    const a = join('a', { isUsed: () => aWorks });
    const b = join('b');
    await clock.advance(600);
    // It answers fast and is full: the window grows, by what both saw.
    for (let n = 0; n < 6; n += 1) {
      for (const each of [a, b]) {
        each.wasFull();
        for (let line = 0; line < 100 * 2 ** n; line += 1) each.answered(100, 10);
      }
      await clock.advance(500);
    }
    const grown = a.limit + b.limit;
    expect(grown).toBeGreaterThan(64);
    expect(Math.abs(a.limit - b.limit)).toBeLessThanOrEqual(1);
    aWorks = false;
    leave('a');
    await clock.advance(1_000);
    expect(b.processes).toBe(1);
    expect(b.limit).toBeGreaterThanOrEqual(Math.floor(grown / 2));
  });

  test('what was learned stays while no job is there', async () => {
    const { clock, join } = engine;
    let isUsed = true;
    const only = join('only', { isUsed: () => isUsed });
    await clock.advance(600);
    for (let n = 0; n < 6; n += 1) {
      only.wasFull();
      for (let line = 0; line < 200 * 2 ** n; line += 1) only.answered(100, 10);
      await clock.advance(500);
    }
    const learned = only.limit;
    expect(learned).toBeGreaterThan(64);
    isUsed = false;
    only.answered(100, 10);
    await clock.advance(5_000);
    expect(only.limit).toBe(learned);
  });

  test('a refusal counts at once', async () => {
    const { clock, join } = engine;
    const only = join('only');
    await clock.advance(600);
    const before = only.limit;
    only.rejected();
    expect(only.limit).toBeLessThan(before);
  });
});
