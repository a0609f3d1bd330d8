import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { createLimiter } from '../../src/dispatcher/limiter.ts';
import type { Limiter, LimiterDeps, LimitScope, Permit } from '../../src/dispatcher/limiter.ts';
import { blockOf, CATCH_UP_MS, draw, freshBucket, NO_LIMITS } from '../../src/domain/rate-limit.ts';
import type { Bucket } from '../../src/domain/rate-limit.ts';
import { createVirtualClock } from '../support/virtual-clock.ts';
import type { VirtualClock } from '../support/virtual-clock.ts';

const NEVER = new AbortController().signal;
const SECOND = 1_000;

/** Buckets in memory that some limiters share, as processes share those of the store. */
interface World {
  clock: VirtualClock;
  buckets: Map<string, Bucket>;
  /** How long a draw takes, there and back. */
  latencyMs: number;
  /** Draws fail while it is set. */
  isAway: boolean;
  draws: number;
  changes: number;
  errors: unknown[];
  limiter(deps?: Partial<LimiterDeps>): Limiter;
}

function createWorld(latencyMs = 1): World {
  const clock = createVirtualClock();
  const replies = new Map<string, ReturnType<typeof draw>>();
  let ops = 0;
  const world: World = {
    clock,
    buckets: new Map(),
    latencyMs,
    isAway: false,
    draws: 0,
    changes: 0,
    errors: [],
    limiter: (deps = {}) =>
      createLimiter({
        clock,
        engineLimits: NO_LIMITS,
        keyLimits: NO_LIMITS,
        newOp: () => `op-${(ops += 1)}`,
        onChange: () => (world.changes += 1),
        onError: (error) => world.errors.push(error),
        async draw(name, op, perSecond, units) {
          world.draws += 1;
          await clock.sleep(world.latencyMs / 2, NEVER);
          const known = replies.get(op);
          const bucket = world.buckets.get(name) ?? freshBucket(perSecond, clock.now());
          const reply = known ?? draw(bucket, perSecond, units, clock.now());
          if (known === undefined) world.buckets.set(name, reply.bucket);
          replies.set(op, reply);
          await clock.sleep(world.latencyMs / 2, NEVER);
          // The reply is lost, not the draw.
          if (world.isAway) throw new Error('the store is away');
          return reply;
        },
        ...deps,
      }),
  };
  return world;
}

function scopeOf(requestsPerSecond: number | null, more: Partial<LimitScope> = {}): LimitScope {
  const limits = { requestsPerSecond, tokensPerMinute: null };
  return { jobId: 'job_a', engine: 'http://a', key: null, limits, ...more };
}

/** Asks for permits one after the other, as many at once as given, and notes when each came. */
function sendAll(
  { clock }: World,
  limiter: Limiter,
  scope: LimitScope,
  { places = 4, estimate = 0, used = 0, signal = NEVER } = {},
): number[] {
  const sent: number[] = [];
  async function send(): Promise<void> {
    for (;;) {
      const permit = await limiter.permit(scope, estimate, signal);
      if (permit === null) return;
      sent.push(clock.now());
      await clock.sleep(20, NEVER);
      permit.settle(used);
    }
  }
  for (let n = 0; n < places; n += 1) void send();
  return sent;
}

const countIn = (times: readonly number[], from: number, until: number) =>
  times.filter((at) => at >= from && at < until).length;

describe('needs', () => {
  test('nothing where no limit applies, and tokens are counted only where they are limited', () => {
    const { limiter } = createWorld();
    expect(limiter().needs(scopeOf(null))).toBe('nothing');
    expect(limiter().needs(scopeOf(1))).toBe('permit');
    const limits = { requestsPerSecond: 1, tokensPerMinute: 1 };
    expect(limiter().needs({ ...scopeOf(1), limits })).toBe('tokens');
    const engines = limiter({ engineLimits: { ...NO_LIMITS, requestsPerSecond: 1 } });
    expect(engines.needs(scopeOf(null))).toBe('permit');
    const keys = limiter({ keyLimits: { ...NO_LIMITS, tokensPerMinute: 1 } });
    expect(keys.needs(scopeOf(null))).toBe('nothing');
    expect(keys.needs(scopeOf(null, { key: 'k' }))).toBe('tokens');
  });
});

describe('requests per second', () => {
  test.each([
    { perSecond: 3, latencyMs: 1 },
    { perSecond: 50, latencyMs: 1 },
    { perSecond: 1_000, latencyMs: 1 },
    { perSecond: 1_000, latencyMs: 40 },
    { perSecond: 1_000, latencyMs: 250 },
  ])('two processes reach $perSecond and keep it, $latencyMs ms from the store', async (each) => {
    const { perSecond, latencyMs } = each;
    const world = createWorld(latencyMs);
    const scope = scopeOf(perSecond);
    const runs = [world.limiter(), world.limiter()].map((limiter) =>
      sendAll(world, limiter, scope, { places: 100 }),
    );
    await world.clock.advance(2 * SECOND);
    const from = world.clock.now();
    await world.clock.advance(20 * SECOND);
    const sent = countIn(runs.flat(), from, world.clock.now());
    expect(sent).toBeGreaterThan(perSecond * 20 * 0.98);
    expect(sent).toBeLessThan(perSecond * 20 * 1.02);
    expect(Math.min(...runs.map((run) => run.length))).toBeGreaterThan(perSecond * 2);
    expect(world.draws / 22, 'draws a second').toBeLessThan(150);
  });

  test('after a rest there is no burst beyond one block', async () => {
    const world = createWorld();
    const limiter = world.limiter();
    const stop = new AbortController();
    sendAll(world, limiter, scopeOf(100), { places: 50, signal: stop.signal });
    await world.clock.advance(3 * SECOND);
    stop.abort();
    await world.clock.advance(400);
    expect(world.buckets.size).toBe(1);
    const [bucket] = world.buckets.values();
    expect(bucket?.hungryAt).toBe(0);
    const begun = world.clock.now();
    const sent = sendAll(world, limiter, scopeOf(100), { places: 500 });
    await world.clock.advance(100);
    expect(countIn(sent, begun, begun + 2)).toBeLessThanOrEqual(blockOf(100));
    expect(sent.length).toBeLessThanOrEqual(2 * blockOf(100) + 1);
  });

  test('what a process does not use goes to the others', async () => {
    const world = createWorld();
    const [one, other] = [world.limiter(), world.limiter()];
    const permit = await Promise.race([
      one.permit(scopeOf(0.01), 0, NEVER),
      world.clock.advance(1).then(() => null),
    ]);
    permit?.settle(null);
    await world.clock.advance(SECOND);
    const sent = sendAll(world, other, scopeOf(0.01));
    await world.clock.advance(SECOND);
    expect(sent).toHaveLength(1);
  });

  test('permits come in the order in which they were asked for', async () => {
    const world = createWorld();
    const limiter = world.limiter();
    const order: number[] = [];
    for (let n = 0; n < 30; n += 1) {
      void limiter.permit(scopeOf(20), 0, NEVER).then(() => order.push(n));
    }
    await world.clock.advance(2 * SECOND);
    expect(order).toEqual(Array.from({ length: 30 }, (_, n) => n));
  });

  test('nobody waits behind a job that is limited otherwise', async () => {
    const world = createWorld();
    const limiter = world.limiter({ engineLimits: { ...NO_LIMITS, requestsPerSecond: 100 } });
    const slow = sendAll(world, limiter, scopeOf(1), { places: 50 });
    const fast = sendAll(world, limiter, scopeOf(null, { jobId: 'job_b' }), { places: 50 });
    await world.clock.advance(10 * SECOND);
    expect(slow.length).toBeLessThanOrEqual(12);
    expect(slow.length + fast.length).toBeGreaterThan(980);
    expect(slow.length + fast.length).toBeLessThan(1_030);
  });

  test('engines that are sent one key share its limit, others have their own', async () => {
    const world = createWorld();
    const limiter = world.limiter({ keyLimits: { ...NO_LIMITS, requestsPerSecond: 10 } });
    const one = sendAll(world, limiter, scopeOf(null, { key: 'k' }));
    const two = sendAll(world, limiter, scopeOf(null, { key: 'k', engine: 'http://b' }));
    const three = sendAll(world, limiter, scopeOf(null, { key: 'l', engine: 'http://c' }));
    await world.clock.advance(10 * SECOND);
    expect(one.length + two.length).toBeGreaterThan(97);
    expect(one.length + two.length).toBeLessThan(104);
    expect(Math.abs(one.length - two.length)).toBeLessThan(5);
    expect(three.length).toBeGreaterThan(97);
  });

  test('a store that is away lets nothing go; then it goes on, and no draw was made twice', async () => {
    const world = createWorld();
    const limiter = world.limiter();
    world.isAway = true;
    const sent = sendAll(world, limiter, scopeOf(10), { places: 20 });
    await world.clock.advance(5 * SECOND);
    expect(sent).toHaveLength(0);
    expect(world.errors.length).toBeGreaterThan(3);
    world.isAway = false;
    const begun = world.clock.now();
    await world.clock.advance(11 * SECOND);
    expect(countIn(sent, begun + SECOND, begun + 11 * SECOND)).toBeGreaterThanOrEqual(98);
    // What was drawn while replies were lost counts as drawn.
    expect(sent.length).toBeLessThanOrEqual(16 * 10 + 1);
  });

  test('whoever gives up waiting leaves nothing behind', async () => {
    const world = createWorld();
    const limiter = world.limiter();
    const stop = new AbortController();
    const sent = sendAll(world, limiter, scopeOf(1), { places: 30, signal: stop.signal });
    await world.clock.advance(100);
    expect(limiter.isOpen('job_a', 'http://a', false)).toBe(false);
    stop.abort();
    await world.clock.advance(SECOND);
    expect(limiter.isOpen('job_a', 'http://a', false)).toBe(true);
    expect(sent).toHaveLength(1);
    const { draws } = world;
    await world.clock.advance(60 * SECOND);
    expect(world.draws).toBe(draws);
    await world.clock.advance(120 * SECOND);
    expect(world.clock.pending).toBe(0);
  });
});

describe('tokens per minute', () => {
  const tokens = (tokensPerMinute: number): LimitScope => ({
    ...scopeOf(null),
    limits: { requestsPerSecond: null, tokensPerMinute },
  });

  test.each([
    { title: 'too high', estimate: 2_000, used: 100 },
    { title: 'right', estimate: 100, used: 100 },
    { title: 'too low', estimate: 10, used: 100 },
  ])('the limit is met where the estimate is $title', async ({ estimate, used }) => {
    const world = createWorld();
    const runs = [world.limiter(), world.limiter()].map((limiter) =>
      sendAll(world, limiter, tokens(60_000), { places: 50, estimate, used }),
    );
    await world.clock.advance(60 * SECOND);
    const from = world.clock.now();
    await world.clock.advance(60 * SECOND);
    const spent = countIn(runs.flat(), from, world.clock.now()) * used;
    expect(spent).toBeGreaterThan(60_000 * 0.98);
    expect(spent).toBeLessThan(60_000 * 1.02);
  });

  test('what was reserved and not used is there at once', async () => {
    const world = createWorld();
    const limiter = world.limiter();
    const permits: Permit[] = [];
    function ask(): void {
      void limiter.permit(tokens(6_000), 1_000, NEVER).then((permit) => {
        if (permit !== null) permits.push(permit);
      });
    }
    ask();
    await world.clock.advance(10.5 * SECOND);
    expect(permits).toHaveLength(1);
    ask();
    await world.clock.advance(SECOND);
    expect(permits, 'the next one waits for its whole estimate').toHaveLength(1);
    permits[0]?.settle(10);
    await world.clock.advance(50);
    expect(permits).toHaveLength(2);
  });

  test('a request that was never made gives all back, once', async () => {
    const world = createWorld();
    const limiter = world.limiter();
    const scope = {
      ...scopeOf(null),
      limits: { requestsPerSecond: 0.001, tokensPerMinute: 0.06 },
    };
    const permits: (Permit | null)[] = [];
    void limiter.permit(scope, 1, NEVER).then((permit) => permits.push(permit));
    await world.clock.advance(10);
    void limiter.permit(scope, 1, NEVER).then((permit) => permits.push(permit));
    await world.clock.advance(10);
    expect(permits).toHaveLength(1);
    permits[0]?.settle(null);
    permits[0]?.settle(null);
    await world.clock.advance(SECOND);
    expect(permits).toHaveLength(2);
    void limiter.permit(scope, 1, NEVER).then((permit) => permits.push(permit));
    await world.clock.advance(SECOND);
    expect(permits).toHaveLength(2);
  });

  test('a large request is not starved by small ones', async () => {
    const world = createWorld();
    const limiter = world.limiter();
    sendAll(world, limiter, tokens(6_000), { places: 50, estimate: 10, used: 10 });
    await world.clock.advance(SECOND);
    let isThrough = false;
    const other = { ...tokens(6_000), engine: 'http://b' };
    void limiter.permit(other, 500, NEVER).then(() => (isThrough = true));
    await world.clock.advance(12 * SECOND);
    expect(isThrough).toBe(true);
  });

  test('what gathers for a large request is not given to a small one that asks later', async () => {
    const world = createWorld();
    const limiter = world.limiter();
    let isThrough = false;
    const other = { ...tokens(6_000), engine: 'http://b' };
    void limiter.permit(other, 500, NEVER).then(() => (isThrough = true));
    await world.clock.advance(2 * SECOND);
    expect(limiter.tryPermit(tokens(6_000), 10)).toBeNull();
    expect(isThrough).toBe(false);
    await world.clock.advance(4 * SECOND);
    expect(isThrough).toBe(true);
  });
});

describe('an engine that wants to be left alone', () => {
  const refusal = { status: 429, retryAfterMs: 2_000 };

  test('gets nothing until then, and others do', async () => {
    const world = createWorld();
    const limiter = world.limiter();
    const waiting = limiter.permit(scopeOf(0.001), 0, NEVER);
    await world.clock.advance(10);
    (await waiting)?.settle(0);
    const moved = limiter.permit(scopeOf(0.001), 0, NEVER);
    limiter.heed('http://a', refusal, null);
    expect(await moved, 'who waits for it may look for another').toBeNull();
    expect(limiter.isOpen('job_a', 'http://a', false)).toBe(false);
    expect(limiter.isOpen('job_a', 'http://b', false)).toBe(true);
    expect(limiter.needs(scopeOf(null))).toBe('permit');
    expect(limiter.tryPermit(scopeOf(null), 0)).toBeNull();
    const sent = sendAll(world, limiter, scopeOf(null, { jobId: 'job_b' }));
    await world.clock.advance(1_980);
    expect(sent).toHaveLength(0);
    const { changes } = world;
    await world.clock.advance(100);
    expect(sent.length).toBeGreaterThan(3);
    expect(world.changes).toBeGreaterThan(changes);
    expect(limiter.isOpen('job_a', 'http://a', false)).toBe(true);
    expect(limiter.needs(scopeOf(null))).toBe('nothing');
  });

  test('costs one timer however often it says so', async () => {
    const world = createWorld();
    const limiter = world.limiter();
    const begun = world.clock.now();
    for (let n = 0; n < 500; n += 1) {
      limiter.heed('http://a', { status: 429, retryAfterMs: 2_000 }, null);
      await world.clock.advance(10);
      expect(world.clock.pending).toBe(1);
    }
    await world.clock.advance(begun + 6_985 - world.clock.now());
    expect(limiter.isOpen('job_a', 'http://a', false)).toBe(false);
    await world.clock.advance(10);
    expect(limiter.isOpen('job_a', 'http://a', false)).toBe(true);
    expect(world.clock.pending).toBe(0);
  });

  test('is left alone until the latest time that it named', async () => {
    const world = createWorld();
    const limiter = world.limiter();
    limiter.heed('http://a', refusal, null);
    const headers = {
      remainingRequests: '0',
      resetRequests: '5s',
      remainingTokens: undefined,
      resetTokens: undefined,
    };
    limiter.heed('http://a', { status: 200, retryAfterMs: null }, headers);
    limiter.heed('http://a', { status: 429, retryAfterMs: 1 }, null);
    await world.clock.advance(4_990);
    expect(limiter.isOpen('j', 'http://a', false)).toBe(false);
    await world.clock.advance(20);
    expect(limiter.isOpen('j', 'http://a', false)).toBe(true);
  });
});

describe('where thousands of jobs wait at once', () => {
  const LANES = 600;
  /** Each waits behind its own limit, and behind the engine's. */
  async function createCrowd(perSecond: number) {
    const world = createWorld();
    const limiter = world.limiter({ engineLimits: { ...NO_LIMITS, requestsPerSecond: 1_000 } });
    const got: number[] = [];
    const scopes = Array.from({ length: LANES }, (_, n) =>
      scopeOf(perSecond, { jobId: `job_${n}` }),
    );
    const permits = await Promise.race([
      Promise.all(scopes.map((scope) => limiter.permit(scope, 0, NEVER))),
      world.clock.advance(3 * SECOND).then(() => []),
    ]);
    expect(permits).toHaveLength(LANES);
    for (const [n, scope] of scopes.entries()) {
      void limiter.permit(scope, 0, NEVER).then(() => got.push(n));
    }
    return { world, limiter, permits, got };
  }

  test('an answer that gives nothing back costs no look at all of them', async () => {
    const { limiter, permits } = await createCrowd(0.001);
    const begun = performance.now();
    for (const permit of permits) permit?.settle(0);
    for (let n = 0; n < LANES; n += 1) {
      expect(limiter.tryPermit(scopeOf(0.001, { jobId: 'job_late' }), 0)).toBeNull();
    }
    // A look at all of them takes milliseconds, so that one for each answer would take seconds.
    expect(performance.now() - begun).toBeLessThan(2_000);
  });

  test('permits for all of them at once come in order and in no time', async () => {
    const { world, permits, got } = await createCrowd(0.001);
    const begun = performance.now();
    for (const permit of permits) permit?.settle(null);
    await world.clock.advance(5 * SECOND);
    expect(performance.now() - begun).toBeLessThan(3_000);
    expect(got).toEqual(Array.from({ length: LANES }, (_, n) => n));
  });
});

test('whatever comes and goes, no span of time sees more than the limit and a block a process', async () => {
  const step = fc.record({
    process: fc.nat(2),
    ask: fc.nat(80),
    stop: fc.boolean(),
    waitMs: fc.integer({ min: 0, max: 1_500 }),
    latencyMs: fc.constantFrom(0, 1, 30, 200),
  });
  const rate = fc.integer({ min: 1, max: 300 });
  await fc.assert(
    fc.asyncProperty(rate, fc.array(step, { maxLength: 12 }), async (perSecond, steps) => {
      const world = createWorld();
      const limiters = [world.limiter(), world.limiter(), world.limiter()];
      const sent: number[] = [];
      let stop = new AbortController();
      for (const { process, ask, waitMs, latencyMs, stop: isStop } of steps) {
        world.latencyMs = latencyMs;
        for (let n = 0; n < ask; n += 1) {
          const asked = limiters[process]?.permit(scopeOf(perSecond), 0, stop.signal);
          void asked?.then((permit) => {
            if (permit !== null) sent.push(world.clock.now());
          });
        }
        await world.clock.advance(waitMs);
        if (!isStop) continue;
        stop.abort();
        stop = new AbortController();
      }
      await world.clock.advance(SECOND);
      // Units in hand, ahead by the way to the store, may go at once with what the bucket keeps.
      const ahead = 3 * (blockOf(perSecond) + (CATCH_UP_MS * perSecond) / SECOND);
      const reserve = ahead + blockOf(perSecond) + (CATCH_UP_MS * perSecond) / SECOND;
      for (const [index, from] of sent.entries()) {
        const last = sent.at(-1) ?? from;
        const most = ((last - from) * perSecond) / SECOND + reserve;
        expect(sent.length - index).toBeLessThanOrEqual(most + 1);
      }
    }),
    { numRuns: 60 },
  );
});
