import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  CANARY_LINES,
  createErrorGuard,
  faultOf,
  SILENT_MS,
} from '../../src/dispatcher/error-guard.ts';
import type { ErrorGuard, Trouble } from '../../src/dispatcher/error-guard.ts';

interface Watched {
  guard: ErrorGuard;
  troubles: Trouble[];
  now: number;
}

function watched({ isFresh = true, places = 64 } = {}): Watched {
  const troubles: Trouble[] = [];
  const time = { now: 0 };
  const guard = createErrorGuard({
    isFresh,
    places: () => places,
    now: () => time.now,
    onTrouble: (trouble) => troubles.push(trouble),
  });
  return Object.assign(time, { guard, troubles });
}

function answer({ guard }: Watched, count: number, fault: string | null): void {
  for (let n = 0; n < count; n += 1) guard.answered(fault);
}

describe('the first answers', () => {
  test('50 equal errors are trouble, 49 are not', () => {
    const world = watched();
    answer(world, CANARY_LINES - 1, '404 no such model');
    expect(world.troubles).toEqual([]);
    expect(world.guard.most).toBe(CANARY_LINES);
    answer(world, 1, '404 no such model');
    expect(world.troubles).toEqual([
      { code: 'same_error', message: 'The first 50 answers are the same error: 404 no such model' },
    ]);
    expect(world.guard.most).toBe(1);
  });

  test('one good answer ends the caution, and so do 50 errors of several kinds', () => {
    const good = watched();
    answer(good, 10, '400 a');
    answer(good, 1, null);
    expect(good.guard.most).toBe(Infinity);
    answer(good, 60, '400 a');
    expect(good.troubles).toEqual([]);
    const mixed = watched();
    for (let n = 0; n < CANARY_LINES; n += 1) mixed.guard.answered(`400 ${n % 2}`);
    expect(mixed.guard.most).toBe(Infinity);
    expect(mixed.troubles).toEqual([]);
  });

  test('an engine that says nothing for a moment is at work: caution ends, watching does not', () => {
    const silent = watched();
    silent.now = SILENT_MS - 1;
    expect(silent.guard.most).toBe(CANARY_LINES);
    silent.now = SILENT_MS;
    expect(silent.guard.most).toBe(Infinity);
    answer(silent, CANARY_LINES, '404 no such model');
    expect(silent.guard.most).toBe(1);
    const refused = watched();
    answer(refused, 1, '404 no such model');
    refused.now = SILENT_MS;
    expect(refused.guard.most).toBe(CANARY_LINES);
  });

  test('say nothing of a job of which lines were answered before', () => {
    const world = watched({ isFresh: false });
    expect(world.guard.most).toBe(Infinity);
    answer(world, 900, '404 no such model');
    expect(world.troubles).toEqual([]);
  });
});

describe('any 1,000 answers', () => {
  test('200 equal errors among them are trouble, told once', () => {
    const world = watched();
    for (let n = 0; n < 2_000; n += 1) {
      world.guard.answered(n >= 500 && n % 5 === 0 ? '400 too long' : null);
    }
    expect(world.troubles.map(({ message }) => message)).toEqual([
      '200 of the last 1000 answers are the same error: 400 too long',
    ]);
  });

  test('as many errors that differ, or a few less, are none', () => {
    const differ = watched();
    for (let n = 0; n < 5_000; n += 1) differ.guard.answered(n % 2 === 0 ? `400 ${n}` : null);
    const fewer = watched();
    for (let n = 0; n < 5_000; n += 1) fewer.guard.answered(n % 6 === 0 ? '400 too long' : null);
    expect([...differ.troubles, ...fewer.troubles]).toEqual([]);
  });

  test('are the last 1,000, however answers come', () => {
    const faults = fc.array(fc.constantFrom(null, null, 'a', 'b'), {
      minLength: 1_000,
      maxLength: 2_500,
      size: 'max',
    });
    fc.assert(
      fc.property(faults, (given) => {
        const world = watched({ isFresh: false });
        let expected = 0;
        for (const [at, fault] of given.entries()) {
          world.guard.answered(fault);
          const last = given.slice(Math.max(0, at - 999), at + 1);
          const equal = last.filter((each) => each === fault).length;
          if (fault !== null && last.length === 1_000 && equal >= 200) expected = 1;
          expect(world.troubles.length).toBe(expected);
          if (expected === 1) return;
        }
      }),
      { numRuns: 20 },
    );
  });
});

describe('failed attempts', () => {
  test('one for each answer and some rounds on top are allowed, for ever', () => {
    const world = watched({ places: 64 });
    for (let n = 0; n < 100_000; n += 1) {
      world.now += 100;
      world.guard.failed('http_500');
      world.guard.answered(null);
    }
    for (let n = 0; n < 300; n += 1) world.guard.failed('http_500');
    expect(world.troubles).toEqual([]);
  });

  test('more of them for a minute are trouble, for a moment they are not', () => {
    const world = watched({ places: 64 });
    for (let n = 0; n < 301; n += 1) world.guard.failed('http_500');
    world.now = 59_999;
    world.guard.failed('http_500');
    expect(world.troubles).toEqual([]);
    // It comes round: the minute begins anew.
    answer(world, 10, null);
    world.guard.failed('http_500');
    for (let n = 0; n < 20; n += 1) world.guard.failed('engine_timeout');
    world.now += 59_999;
    world.guard.failed('engine_timeout');
    expect(world.troubles).toEqual([]);
    world.now += 1;
    world.guard.failed('engine_timeout');
    expect(world.troubles).toHaveLength(1);
    expect(world.troubles[0]).toMatchObject({ code: 'retries_exhausted' });
    expect(world.troubles[0]?.message).toMatch(/10 requests were answered.*engine_timeout/);
  });

  test('a job with many lines in flight may fail as many more', () => {
    const world = watched({ places: 1_000 });
    for (let n = 0; n < 3_000; n += 1) world.guard.failed('http_500');
    world.now = 120_000;
    world.guard.failed('http_500');
    world.now += 59_999;
    world.guard.failed('http_500');
    expect(world.troubles).toEqual([]);
    world.now += 1;
    world.guard.failed('http_500');
    expect(world.troubles).toHaveLength(1);
  });
});

test('a fault is the status and the message, without what differs from line to line', () => {
  const openai = (message: string) => ({ error: { message, type: 'x', code: 400 } });
  expect(faultOf(400, openai('maximum is 4096 tokens, got 5000'))).toBe(
    faultOf(400, openai('maximum is 4096 tokens, got 9')),
  );
  expect(faultOf(400, openai('a'))).not.toBe(faultOf(404, openai('a')));
  expect(faultOf(404, { detail: 'Not Found' })).toBe('404 Not Found');
  expect(faultOf(404, { message: 'flat' })).toBe('404 flat');
  expect(faultOf(422, { detail: [{ msg: 'x' }] })).toBe('422 [{"msg":"x"}]');
  expect(faultOf(404, undefined)).toBe('404');
  expect(faultOf(400, openai('x'.repeat(9_999))).length).toBe(300);
});
