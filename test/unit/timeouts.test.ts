import { expect, test } from 'vitest';
import type { Clock } from '../../src/dispatcher/clock.ts';
import { attemptLimits, createTicker, timedOut } from '../../src/dispatcher/timeouts.ts';

const SERVER = { connect: 10_000, firstByte: 900_000, betweenBytes: 300_000, answer: 3_600_000 };

/** A clock whose timers run when a test says how much time has passed. */
function handClock() {
  const due: (() => void)[] = [];
  let now = 1_000;
  const clock: Clock = {
    now: () => now,
    random: () => 0.5,
    sleep: async () => Promise.resolve(),
    after(_ms, task) {
      due.push(task);
      return () => undefined;
    },
  };
  return {
    clock,
    due,
    pass(ms: number) {
      now += ms;
      for (const task of due.splice(0)) task();
    },
  };
}

test('one timer counts for all, and none when nobody follows', () => {
  const hand = handClock();
  const ticker = createTicker(hand.clock);
  expect(hand.due).toHaveLength(0);
  const [a, b]: number[][] = [[], []];
  const first = ticker.follow({ tick: (ms) => void a?.push(ms) });
  ticker.follow({ tick: (ms) => void b?.push(ms) });
  expect(hand.due).toHaveLength(1);
  hand.pass(50);
  ticker.leave(first);
  hand.pass(60);
  expect([a, b]).toEqual([[50], [50, 60]]);
  expect(hand.due).toHaveLength(1);
});

test('whoever leaves in a tick is not told of it again, and the timer ends', () => {
  const hand = handClock();
  const ticker = createTicker(hand.clock);
  let ticks = 0;
  const once = ticker.follow({
    tick() {
      ticks += 1;
      ticker.leave(once);
    },
  });
  hand.pass(50);
  expect([ticks, hand.due.length]).toEqual([1, 0]);
  ticker.follow({ tick: () => undefined });
  expect(hand.due).toHaveLength(1);
});

test('time in which this process stood still, or its clock was set back, hardly counts', () => {
  const hand = handClock();
  const steps: number[] = [];
  createTicker(hand.clock).follow({ tick: (ms) => void steps.push(ms) });
  hand.pass(60_000);
  hand.pass(-3_600_000);
  hand.pass(50);
  expect(steps).toEqual([100, 0, 50]);
});

test('a job that says how long an attempt may take is bound by that', () => {
  expect(attemptLimits(SERVER, null)).toEqual({
    firstByte: 900_000,
    betweenBytes: 300_000,
    answer: 3_600_000,
    answerBy: 'ANSWER_TIMEOUT',
  });
  expect(attemptLimits(SERVER, 7_200_000)).toEqual({
    firstByte: 7_200_000,
    betweenBytes: 300_000,
    answer: 7_200_000,
    answerBy: 'request_timeout_seconds',
  });
});

test('what is said names the limit and how long it is', () => {
  const limits = attemptLimits({ ...SERVER, firstByte: 1_500 }, null);
  expect(timedOut('firstByte', limits)).toMatchObject({
    message: 'The engine began no answer within 1.5 s (REQUEST_TIMEOUT).',
    isSilence: true,
  });
  expect(timedOut('betweenBytes', limits)).toMatchObject({
    message: 'The engine fell silent for 300 s in the middle of its answer (BYTE_TIMEOUT).',
    isSilence: true,
  });
  expect(timedOut('answer', attemptLimits(SERVER, 90_000))).toMatchObject({
    message: 'The engine did not finish its answer within 90 s (request_timeout_seconds).',
    isSilence: false,
  });
});
