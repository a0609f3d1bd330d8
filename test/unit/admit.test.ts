import { expect, test } from 'vitest';
import { admit, admitAtOnce, admitFreely, estimateTokens } from '../../src/dispatcher/admit.ts';
import type { Admission } from '../../src/dispatcher/admit.ts';
import type { Engine } from '../../src/dispatcher/engine.ts';
import { createLimiter } from '../../src/dispatcher/limiter.ts';
import { createRoom } from '../../src/dispatcher/room.ts';
import type { Tenant } from '../../src/dispatcher/room.ts';
import { draw, freshBucket, NO_LIMITS } from '../../src/domain/rate-limit.ts';
import type { Bucket, RateLimits } from '../../src/domain/rate-limit.ts';
import { fakeEngine, fakeTenant, wishOf } from '../support/fake-engine.ts';
import { createVirtualClock } from '../support/virtual-clock.ts';

const NEVER = new AbortController().signal;
const RARELY = { requestsPerSecond: 0.01, tokensPerMinute: null };

/** A room with `places` for each job at each engine, and limits over buckets in memory. */
function createWorld(engines: Engine[], engineLimits: RateLimits = NO_LIMITS, places = 1) {
  const clock = createVirtualClock();
  const room = createRoom();
  const buckets = new Map<string, Bucket>();
  let ops = 0;
  const limiter = createLimiter({
    clock,
    engineLimits,
    keyLimits: NO_LIMITS,
    newOp: () => `op-${(ops += 1)}`,
    onChange: () => room.kick(),
    onError() {},
    async draw(name, _op, perSecond, units) {
      const bucket = buckets.get(name) ?? freshBucket(perSecond, clock.now());
      const reply = draw(bucket, perSecond, units, clock.now());
      buckets.set(name, reply.bucket);
      return reply;
    },
  });
  function openJob(id: string, limits: RateLimits = NO_LIMITS) {
    const tenant: Tenant = {
      ...fakeTenant(() => engines, places),
      mayAsk: ({ address }, hasPermit) => limiter.isOpen(id, address, hasPermit),
    };
    const wish = wishOf(tenant);
    const job = { id, limits };
    let rests = 0;
    const suspect = {
      get rests() {
        return rests;
      },
      rest: () => void (rests += 1),
      take: async (stop: AbortSignal) => room.take(wish, stop),
    };
    const asking = (stop: AbortSignal) => ({ body: Buffer.from('{}'), job, wish, suspect, stop });
    return { wish, job, suspect, asking };
  }
  return { clock, room, limiter, openJob, deps: { room, limiter } };
}

function watch(admitting: Promise<Admission | null>): { got: Admission | null | undefined } {
  const seen: { got: Admission | null | undefined } = { got: undefined };
  void admitting.then((found) => {
    seen.got = found;
  });
  return seen;
}

test('where no limit applies a line goes at once', () => {
  const engine = fakeEngine('http://a');
  const { limiter, openJob } = createWorld([engine]);
  const { job } = openJob('job_a');
  expect(admitFreely(engine, job, limiter)).toEqual({ engine, permit: null });
  expect(admitFreely(engine, openJob('job_b', RARELY).job, limiter)).toBeNull();
});

test('a line that waits for its permit holds no place, and only one of its job stands in line', async () => {
  const engine = fakeEngine('http://a');
  const { clock, room, openJob, deps } = createWorld([engine]);
  const { wish, suspect, asking } = openJob('job_a', RARELY);
  const first = room.tryTakeFresh(wish);
  const sent = watch(admit(first ?? engine, asking(NEVER), deps));
  await clock.advance(10);
  expect(sent.got?.engine).toBe(engine);
  room.give(engine, wish.tenant);
  const { rests } = suspect;

  const second = room.tryTakeFresh(wish);
  expect(second).toBe(engine);
  const stop = new AbortController();
  const waiting = watch(admit(engine, asking(stop.signal), deps));
  await clock.advance(1_000);
  expect(waiting.got).toBeUndefined();
  expect(suspect.rests, 'nor is anything kept clear for it').toBe(rests + 1);
  expect(engine.inFlight).toBe(0);
  expect(room.tryTakeFresh(wish), 'the next would only wait as well').toBeNull();
  expect(room.tryTakeFresh(openJob('job_b').wish)).toBe(engine);

  stop.abort();
  await clock.advance(10);
  expect(waiting.got).toBeNull();
  expect(engine.inFlight).toBe(1);
  expect(room.tryTakeFresh(wish)).toBe(engine);
});

test('a permit for an engine whose place went to others is given back', async () => {
  const [a, b] = [fakeEngine('http://a'), fakeEngine('http://b')];
  const { clock, room, openJob, deps, limiter } = createWorld([a, b], {
    requestsPerSecond: 0.5,
    tokensPerMinute: null,
  });
  const { wish, asking } = openJob('job_a');
  // One goes, so that the next one waits for leave.
  for (const engine of [a, b]) {
    expect(room.tryTakeFresh(wish)).toBe(engine);
    const sent = watch(admit(engine, asking(NEVER), deps));
    await clock.advance(10);
    expect(sent.got?.engine).toBe(engine);
  }
  room.give(a, wish.tenant);
  expect(room.tryTakeFresh(wish)).toBe(a);
  const waiting = watch(admit(a, asking(NEVER), deps));
  await clock.advance(1_000);
  expect(waiting.got).toBeUndefined();
  // While it waits the engine becomes the busier one.
  wish.tenant.inFlight.set(a, 1);
  room.give(b, wish.tenant);
  await clock.advance(1_500);
  expect(waiting.got?.engine).toBe(b);
  wish.tenant.inFlight.set(a, 0);
  const again = { jobId: 'job_a', engine: a.address, key: null, limits: NO_LIMITS };
  const unused = watch(
    limiter.permit(again, 0, NEVER).then((permit) => permit && { engine: a, permit }),
  );
  await clock.advance(50);
  expect(unused.got?.permit).toBeTruthy();
});

const REFUSAL = { status: 429, retryAfterMs: 300 };

test('lines that wait for the end of a Retry-After go at the rate of the limit from then on', async () => {
  const engine = fakeEngine('http://a');
  const { clock, room, limiter, openJob, deps } = createWorld([engine], NO_LIMITS, 256);
  const { wish: first, asking } = openJob('job_a', {
    requestsPerSecond: 20,
    tokensPerMinute: null,
  });
  limiter.heed(engine.address, REFUSAL, null);
  const sentAt: number[] = [];
  async function send(): Promise<void> {
    const wish = { ...first };
    const place = await room.take(wish, NEVER);
    const suspect = { rest() {}, take: async (stop: AbortSignal) => room.take(wish, stop) };
    const leave = place && (await admit(place, { ...asking(NEVER), wish, suspect }, deps));
    sentAt.push(clock.now());
    await clock.sleep(50, NEVER);
    leave?.permit?.settle(0);
    room.give(engine, wish.tenant);
  }
  const sending = Array.from({ length: 100 }, send);
  await clock.advance(299);
  expect(sentAt).toHaveLength(0);
  const begun = clock.now();
  await clock.advance(6_000);
  await Promise.all(sending);
  for (const second of [0, 1, 2, 3]) {
    const from = begun + second * 1_000;
    const count = sentAt.filter((at) => at >= from && at < from + 1_000).length;
    expect(Math.abs(count - 20), `${count} in second ${second}`).toBeLessThanOrEqual(3);
  }
});

test('a line that has its permit still waits for a hold that begins before it has its place', async () => {
  const engine = fakeEngine('http://a');
  const { clock, room, limiter, openJob, deps } = createWorld([engine], {
    requestsPerSecond: 1,
    tokensPerMinute: null,
  });
  const { wish, asking } = openJob('job_a');
  expect(room.tryTakeFresh(wish)).toBe(engine);
  expect(await Promise.race([admit(engine, asking(NEVER), deps), clock.advance(50)])).toBeTruthy();
  room.give(engine, wish.tenant);
  expect(room.tryTakeFresh(wish)).toBe(engine);
  const waiting = watch(admit(engine, asking(NEVER), deps));
  const other = openJob('job_b').wish;
  // All its places go to others until after its permit has come.
  wish.tenant.inFlight.set(engine, 1);
  await clock.advance(1_500);
  expect(waiting.got).toBeUndefined();
  limiter.heed(engine.address, REFUSAL, null);
  wish.tenant.inFlight.set(engine, 0);
  room.kick();
  await clock.advance(200);
  expect(waiting.got).toBeUndefined();
  expect(room.tryTakeFresh(other)).toBeNull();
  await clock.advance(200);
  expect(waiting.got?.permit).toBeTruthy();
});

test('what is not worth waiting for gets leave at once or not at all', async () => {
  const engine = fakeEngine('http://a');
  const { clock, room, openJob, deps, limiter } = createWorld([engine]);
  const { wish, job, asking } = openJob('job_a', RARELY);
  expect(room.tryTakeFresh(wish)).toBe(engine);
  const sent = watch(admit(engine, asking(NEVER), deps));
  await clock.advance(10);
  expect(sent.got?.permit).toBeTruthy();
  expect(admitAtOnce(engine, Buffer.from('{}'), job, limiter)).toBeNull();
  expect(admitAtOnce(engine, Buffer.from('{}'), openJob('b').job, limiter)).toEqual({
    engine,
    permit: null,
  });
});

test('an estimate is text by four and the output that the body allows', () => {
  const estimate = (body: object) => estimateTokens(Buffer.from(JSON.stringify(body)));
  const messages = [{ role: 'user', content: 'x'.repeat(396) }];
  expect(estimate({ messages, max_tokens: 50 })).toBe(150);
  expect(estimate({ messages, max_tokens: 50, n: 3 })).toBe(250);
  expect(estimate({ messages })).toBe(1_100);
  expect(estimateTokens(Buffer.from('no json!'))).toBe(1_002);
});
