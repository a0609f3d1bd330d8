import { setImmediate as turn } from 'node:timers/promises';
import type { Dispatcher } from 'undici';
import { expect, test } from 'vitest';
import { createBudget } from '../../src/dispatcher/budget.ts';
import { exchange } from '../../src/dispatcher/exchange.ts';
import { Roster } from '../../src/dispatcher/roster.ts';
import type { Seat } from '../../src/dispatcher/roster.ts';
import { attemptLimits } from '../../src/dispatcher/timeouts.ts';
import type { Ticked } from '../../src/dispatcher/timeouts.ts';

const LONG = Buffer.alloc(300_000, 0x20);
const REQUEST = { origin: 'http://engine', path: '/', method: 'POST' } as const;

/** An engine whose answers a test gives by hand, and a clock that it moves. */
function openHands() {
  const budget = createBudget(100_000, () => undefined);
  const followers = new Roster<Ticked>();
  const silences: number[] = [];
  const limits = attemptLimits(
    { connect: 1_000, firstByte: 1_000, betweenBytes: 500, answer: 60_000 },
    null,
  );

  function ask() {
    const controller = {
      aborted: false,
      paused: false,
      reason: null,
      pause: () => void (controller.paused = true),
      resume: () => void (controller.paused = false),
      abort: () => undefined,
    };
    let handler: Dispatcher.DispatchHandler = {};
    const dispatcher = {
      dispatch(_request: unknown, given: Dispatcher.DispatchHandler) {
        handler = given;
        return true;
      },
    };
    const ticker = {
      follow: (one: Ticked) => followers.enter(one),
      leave: (seat: Seat<Ticked>) => followers.leave(seat),
    };
    const outcome = Promise.withResolvers<string>();
    const asker = {
      times: limits,
      signal: new AbortController().signal,
      openStream: null,
      replied(_reply: unknown, silentMs: number) {
        silences.push(silentMs);
        outcome.resolve('answered');
      },
      failed(error: unknown, silentMs: number) {
        silences.push(silentMs);
        outcome.resolve(String(error));
      },
    };
    exchange(dispatcher, REQUEST, asker, { budget, maxBytes: 1_000_000, ticker });
    return {
      controller,
      outcome: outcome.promise,
      begin: () => handler.onRequestStart?.(controller, null),
      headers: () => handler.onResponseStart?.(controller, 200, {}),
      data: (bytes: Buffer) => handler.onResponseData?.(controller, bytes),
      end: () => handler.onResponseEnd?.(controller, {}),
    };
  }

  return {
    budget,
    silences,
    ask,
    pass(ms: number) {
      for (let at = 0; at < ms; at += 50) followers.each((one) => one.tick(50));
    },
    following: () => followers.size,
  };
}

test('time in which we hold an answer back ourselves is not silence', async () => {
  const hands = openHands();
  const [first, second] = [hands.ask(), hands.ask()];
  for (const each of [first, second]) {
    each.begin();
    each.headers();
    each.data(LONG);
  }
  await turn();
  expect([first.controller.paused, second.controller.paused]).toEqual([false, true]);
  first.end();
  expect(await first.outcome).toBe('answered');
  // The first one's bytes are in hand still, but its turn is over.
  await turn();
  expect(second.controller.paused).toBe(false);

  const third = hands.ask();
  third.begin();
  third.headers();
  third.data(LONG);
  await turn();
  expect(third.controller.paused).toBe(true);
  for (let round = 0; round < 20; round += 1) {
    hands.pass(300);
    second.data(Buffer.of(0x20));
  }
  second.end();
  expect(await second.outcome).toBe('answered');
  await turn();
  expect(third.controller.paused).toBe(false);
  hands.pass(600);
  expect(await third.outcome).toContain('BYTE_TIMEOUT');
  expect(hands.following()).toBe(0);
});

test('the way to the engine is not its silence', async () => {
  const hands = openHands();
  const asked = hands.ask();
  hands.pass(5_000);
  asked.begin();
  hands.pass(900);
  asked.headers();
  hands.pass(50);
  asked.data(Buffer.of(0x20));
  asked.end();
  expect(await asked.outcome).toBe('answered');
  expect(hands.silences[0]).toBeGreaterThanOrEqual(850);
  expect(hands.silences[0]).toBeLessThanOrEqual(900);
  hands.budget.remove(1);
  expect(hands.budget.used).toBe(0);
});
