import { describe, expect, test } from 'vitest';
import { draw, freshBucket } from '../../src/domain/rate-limit.ts';
import type { Bucket } from '../../src/domain/rate-limit.ts';
import type { CallPurpose, Pace } from '../../src/resources/lease-contract.ts';
import { bucketName, createPace } from '../../src/resources/pace.ts';
import type { DrawUnits, PaceLimits } from '../../src/resources/pace.ts';
import { createVirtualClock } from '../support/virtual-clock.ts';

const LAMBDA: PaceLimits = { callsPerSecond: 1, createsPerSecond: 1 / 12 };

/** Buckets that several processes share, on a clock that the test moves. */
function createWorld(limits: PaceLimits = LAMBDA) {
  const clock = createVirtualClock();
  const buckets = new Map<string, Bucket>();
  const start = clock.now();
  const went: string[] = [];
  let draws = 0;

  const drawUnits: DrawUnits = async (name, _, perSecond, units) => {
    draws += 1;
    const fresh = freshBucket(perSecond, clock.now(), units.most);
    const before = buckets.get(name) ?? fresh;
    const drawn = draw(before, perSecond, units, clock.now());
    buckets.set(name, drawn.bucket);
    return drawn;
  };

  function process(): Pace {
    const { now, after } = clock;
    return createPace({ name: 'p', limits: () => limits, draw: drawUnits, now, after });
  }

  function call(pace: Pace, purpose: CallPurpose, label: string = purpose): void {
    void pace(purpose).then(() => went.push(`${label} ${(clock.now() - start) / 1_000}`));
  }

  return { clock, process, call, went, draws: () => draws };
}

function times(went: readonly string[], label: string): number[] {
  return went.filter((one) => one.startsWith(label)).map((one) => Number(one.split(' ')[1]));
}

function smallestGap(at: readonly number[]): number {
  return Math.min(...at.slice(1).map((time, index) => time - (at[index] ?? 0)));
}

describe('in one process', () => {
  test('the first call goes at once, and each further one a second after that', async () => {
    const { clock, process, call, went } = createWorld();
    const pace = process();
    for (const at of [0, 1, 2, 3]) call(pace, 'release', `r${at}`);
    await clock.advance(2_500);
    expect(went).toEqual(['r0 0', 'r1 1', 'r2 2']);
  });

  test('rest is not followed by a burst', async () => {
    const { clock, process, call, went } = createWorld();
    const pace = process();
    await clock.advance(60_000);
    for (const at of [0, 1]) call(pace, 'look', `l${at}`);
    await clock.advance(500);
    expect(went).toEqual(['l0 60']);
  });

  test('releases go before looks, those before creates, and those before the catalog', async () => {
    const { clock, process, call, went } = createWorld();
    const pace = process();
    call(pace, 'look', 'first');
    await clock.advance(100);
    for (const purpose of ['catalog', 'create', 'look', 'release'] as const) call(pace, purpose);
    await clock.advance(10_000);
    expect(went.map((one) => one.split(' ')[0])).toEqual([
      'first',
      'release',
      'look',
      'create',
      'catalog',
    ]);
  });

  test('looks without end keep a create and a catalog waiting for some seconds only', async () => {
    const { clock, process, call, went } = createWorld();
    const pace = process();
    for (let at = 0; at < 60; at += 1) clock.after(at * 500, () => call(pace, 'look'));
    await clock.advance(1_100);
    for (const purpose of ['catalog', 'create'] as const) call(pace, purpose);
    await clock.advance(18_900);
    const [created = 0, listed = 0] = ['create', 'catalog'].flatMap((label) => times(went, label));
    expect(created).toBeLessThanOrEqual(3);
    expect(created).toBeLessThan(listed);
    expect(listed).toBeLessThanOrEqual(18);
    call(pace, 'release');
    await clock.advance(1_100);
    expect(times(went, 'release')[0]).toBeLessThanOrEqual(21);
  });

  test('creates and looks take turns, so that many of the ones leave room for the others', async () => {
    const limits = { callsPerSecond: 1, createsPerSecond: null };
    const { clock, process, call, went } = createWorld(limits);
    const pace = process();
    for (const purpose of ['look', 'create'] as const) {
      for (const n of [1, 2, 3]) call(pace, purpose, `${purpose}${n}`);
    }
    await clock.advance(10_000);
    expect(went.map((one) => one.split(' ')[0])).toEqual([
      'look1',
      'create1',
      'look2',
      'create2',
      'look3',
      'create3',
    ]);
  });

  test('of one purpose the first goes first', async () => {
    const { clock, process, call, went } = createWorld();
    const pace = process();
    for (const label of ['a', 'b', 'c']) call(pace, 'look', label);
    await clock.advance(5_000);
    expect(went.map((one) => one.split(' ')[0])).toEqual(['a', 'b', 'c']);
  });

  test('creates are twelve seconds apart, and other calls go between them', async () => {
    const { clock, process, call, went } = createWorld();
    const pace = process();
    for (const at of [0, 1]) call(pace, 'create', `create${at}`);
    call(pace, 'catalog');
    await clock.advance(30_000);
    const [first = 0, second = 0] = times(went, 'create');
    expect(first).toBe(0);
    expect(second).toBeGreaterThanOrEqual(12);
    expect(second).toBeLessThan(12.2);
    expect(times(went, 'catalog')[0]).toBeLessThan(1.2);
  });

  test('after a rest so many calls go at once, and no more until it has rested again', async () => {
    const { clock, process, call, went } = createWorld({
      callsPerSecond: 0.5,
      callsAtOnce: 3,
      createsPerSecond: null,
    });
    const pace = process();
    for (let at = 0; at < 6; at += 1) call(pace, 'look');
    await clock.advance(5_000);
    expect(times(went, 'look').map(Math.floor)).toEqual([0, 0, 0, 2, 4]);
    await clock.advance(60_000);
    for (let at = 0; at < 4; at += 1) call(pace, 'look');
    await clock.advance(100);
    expect(times(went, 'look').filter((at) => at >= 65)).toHaveLength(3);
  });

  test('releases with a rate of their own wait for releases only, and keep nobody waiting', async () => {
    const { clock, process, call, went } = createWorld({
      callsPerSecond: 0.5,
      createsPerSecond: null,
      releasesPerSecond: 10,
    });
    const pace = process();
    for (const at of [0, 1]) call(pace, 'look', `look${at}`);
    for (const at of [0, 1, 2]) call(pace, 'release', `release${at}`);
    await clock.advance(3_000);
    expect(times(went, 'look')).toEqual([0, expect.closeTo(2, 1)]);
    expect(times(went, 'release')).toEqual([0, 0.1, 0.2]);
  });

  test('who comes while only creates wait goes at once', async () => {
    const { clock, process, call, went } = createWorld();
    const pace = process();
    for (const at of [0, 1]) call(pace, 'create', `create${at}`);
    await clock.advance(5_000);
    call(pace, 'look');
    await clock.advance(100);
    expect(went).toEqual(['create0 0', 'look 5']);
  });

  test('a credential without a limit of creates has one of calls', async () => {
    const { clock, process, call, went } = createWorld({
      callsPerSecond: 1,
      createsPerSecond: null,
    });
    const pace = process();
    for (const at of [0, 1, 2]) call(pace, 'create', `c${at}`);
    await clock.advance(2_500);
    expect(went).toHaveLength(3);
  });

  test('who leaves rejects with the reason, and keeps nobody behind it waiting', async () => {
    const { clock, process, call, went } = createWorld();
    const pace = process();
    call(pace, 'look', 'first');
    await clock.settle();
    const abort = new AbortController();
    const left = pace('release', abort.signal);
    const told = left.catch((error: unknown) => error);
    call(pace, 'look', 'second');
    await clock.advance(200);
    abort.abort(new Error('not any more'));
    expect(await told).toMatchObject({ message: 'not any more' });
    await clock.advance(1_000);
    expect(went).toEqual(['first 0', 'second 1']);
    await expect(pace('look', abort.signal)).rejects.toThrow('not any more');
  });

  test('a unit that nobody wants any more is given back', async () => {
    const { clock, process, call, went } = createWorld();
    const abort = new AbortController();
    const [one, other] = [process(), process()];
    void one('look', abort.signal).catch(() => undefined);
    abort.abort(new Error('gone')); // its draw is on its way
    await clock.settle();
    call(other, 'look');
    await clock.advance(100);
    expect(went).toEqual(['look 0']);
  });

  test('a store that fails is told to all who wait, and asked again by the next', async () => {
    let isAway = true;
    const limits = LAMBDA;
    const pace = createPace({
      name: 'p',
      limits: () => limits,
      draw: async () => {
        if (isAway) throw new Error('away');
        return { granted: 1, waitMs: 0, bucket: { level: 0 } };
      },
    });
    const both = await Promise.allSettled([pace('look'), pace('release')]);
    expect(both.map(({ status }) => status)).toEqual(['rejected', 'rejected']);
    isAway = false;
    await pace('look');
  });

  test('who waits does not keep asking', async () => {
    const { clock, process, call, went, draws } = createWorld();
    const pace = process();
    for (let at = 0; at < 10; at += 1) call(pace, 'look');
    await clock.advance(60_000);
    expect(went).toHaveLength(10);
    expect(draws()).toBeLessThanOrEqual(25);
  });
});

describe('of several processes', () => {
  test('a release waits for other releases only, however many looks wait elsewhere', async () => {
    const { clock, process, call, went } = createWorld();
    const others = [process(), process(), process()];
    for (const pace of others) for (let at = 0; at < 20; at += 1) call(pace, 'look');
    await clock.advance(3_400);
    const pace = process();
    for (const at of [0, 1, 2]) call(pace, 'release', `release${at}`);
    await clock.advance(10_000);
    const [first = 0, second = 0, third = 0] = times(went, 'release');
    expect(first).toBeLessThanOrEqual(4.5);
    expect(second).toBeCloseTo(first + 1, 1);
    expect(third).toBeCloseTo(first + 2, 1);
    const looks = times(went, 'look');
    expect(looks.filter((at) => at > first && at < third)).toEqual([]);
  });

  test('together they keep the limit, whatever they ask for', async () => {
    const { clock, process, call, went } = createWorld();
    const all = [process(), process(), process()];
    const purposes = ['release', 'look', 'create', 'catalog'] as const;
    for (const [at, pace] of all.entries()) {
      for (let round = 0; round < 12; round += 1) {
        clock.after(round * 777 + at * 131, () => call(pace, purposes[(round + at) % 4] ?? 'look'));
      }
    }
    await clock.advance(120_000);
    expect(went).toHaveLength(36);
    expect(smallestGap(times(went, ''))).toBeGreaterThanOrEqual(0.999);
    expect(smallestGap(times(went, 'create'))).toBeGreaterThanOrEqual(11.999);
  });

  test('those who look take turns', async () => {
    const { clock, process, call, went } = createWorld();
    const all = [process(), process(), process()];
    for (const [at, pace] of all.entries()) {
      for (let round = 0; round < 40; round += 1) call(pace, 'look', `p${at}`);
    }
    await clock.advance(30_000);
    for (const [at] of all.entries()) {
      expect(times(went, `p${at}`).length).toBeGreaterThanOrEqual(7);
    }
  });

  test('a process that ends while a release waits costs the others one turn', async () => {
    const { clock, process, call, went } = createWorld();
    const [dying, living] = [process(), process()];
    call(living, 'look', 'first');
    await clock.settle();
    const abort = new AbortController();
    void dying('release', abort.signal).catch(() => undefined);
    await clock.settle();
    abort.abort(new Error('ends'));
    call(living, 'release');
    await clock.advance(5_000);
    expect(went).toEqual(['first 0', 'release 2']);
  });
});

test('the name of a bucket tells credentials apart and gives none away', () => {
  const name = bucketName('lambdaCloud', 'secret_abc');
  expect(name).toMatch(/^provider:lambdaCloud:[0-9a-f]{16}$/);
  expect(name).not.toContain('secret');
  expect(bucketName('lambdaCloud', 'secret_abd')).not.toBe(name);
});
