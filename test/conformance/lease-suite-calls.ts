import { expect, test } from 'vitest';
import type { LeaseManager } from '../../src/resources/lease-contract.ts';
import {
  calls,
  failure,
  namesOf,
  QUICK_MS,
  silentFaults,
  STAMP,
  UNAUTHORIZED,
  UNAVAILABLE,
  wishOf,
} from './lease-world.ts';
import type { LeaseFlags, LeaseWorld, StartWorld } from './lease-world.ts';

/** `catalog`. */
export function catalogTests(start: StartWorld, { catalog }: LeaseFlags): void {
  test('offers machines, the one of the wish among them', async () => {
    await using world = await start();
    const before = Date.now();
    const offers = await world.manager.catalog();
    expect(new Set(offers.map(({ id }) => id)).size).toBe(offers.length);
    for (const offer of offers) {
      expect(offer).toMatchObject({ provider: world.manager.provider, kind: 'machine' });
      expect(offer.checkedAt).toBeGreaterThanOrEqual(before);
      expect(offer.error === '').toBe(offer.stock !== 'unavailable');
    }
    const wished = offers.find(({ id }) => id === world.offer.id);
    expect(wished).toMatchObject({ count: world.offer.gpuCount, address: '', models: [] });
    const machine = await world.manager.create(wishOf(world));
    expect(machine.gpuType).toBe(wished?.type);
  });

  test.runIf(catalog === 'fixed')('says neither price nor stock that nobody knows', async () => {
    await using world = await start();
    for (const offer of await world.manager.catalog()) {
      expect(offer).toMatchObject({ pricePerHour: null, stock: 'unknown' });
    }
    expect(await calls(world)).toBe(0);
  });

  test.runIf(catalog === 'live')(
    'knows the price that is billed, memory, and what is out of stock',
    async () => {
      await using world = await start();
      const offerOf = async (manager: LeaseManager) =>
        (await manager.catalog()).find(({ id }) => id === world.offer.id);
      await world.manager.create(wishOf(world));
      const [entry] = await world.control.inventory();
      const offer = await offerOf(world.manager);
      expect(offer?.stock).toBe('available');
      expect(offer?.pricePerHour).toBeCloseTo(entry?.usd_per_hour ?? 0, 3);
      expect(offer?.vramGb).toBeGreaterThan(0);
      await world.control.setKnobs({ capacity: { [entry?.type ?? '']: 0 } });
      expect((await offerOf(world.connect()))?.stock ?? 'unavailable').toBe('unavailable');
    },
  );

  test.runIf(catalog === 'live')('is kept for some seconds, but its failure is not', async () => {
    await using world = await start();
    for (const [what, fault] of silentFaults('catalog')) {
      const manager = world.connect({ timeoutMs: QUICK_MS });
      await world.control.setFaults([fault]);
      expect([what, await failure(manager.catalog())]).toMatchObject([what, UNAVAILABLE]);
      expect(await manager.catalog()).not.toEqual([]);
    }
    const manager = world.connect();
    await Promise.all([manager.catalog(), manager.catalog()]);
    const asked = await calls(world, 'catalog');
    await manager.catalog();
    expect(await calls(world, 'catalog')).toBe(asked);
  });
}

/** What holds for every call. */
export function callTests(start: StartWorld, { catalog, engine }: LeaseFlags): void {
  const { form, cachePath } = engine;
  const every = (world: LeaseWorld, manager: LeaseManager, id: string) => [
    async () => manager.create(wishOf(world, { name: `${STAMP}z` })),
    async () => manager.describe(id),
    async () => manager.list(STAMP),
    async () => manager.destroy(id),
    ...(catalog === 'live' ? [async () => manager.catalog()] : []),
  ];

  test('takes its turn before each request, by what it is for', async () => {
    await using world = await start();
    const { id } = await world.manager.create(wishOf(world));
    expect(world.paced.at(-1)).toBe('create');
    await world.manager.describe(id);
    expect(world.paced.at(-1)).toBe('look');
    await world.manager.list(STAMP);
    expect(world.paced.at(-1)).toBe('look');
    await world.manager.destroy(id);
    expect(world.paced.at(-1)).toBe('release');
    await world.manager.catalog();
    expect(world.paced.at(-1)).toBe(catalog === 'live' ? 'catalog' : 'release');
    expect(world.paced).toHaveLength(await calls(world));
  });

  test('without a turn nothing is asked', async () => {
    await using world = await start();
    const { id } = await world.manager.create(wishOf(world));
    const before = await calls(world);
    const closed = new Error('the process is stopping');
    const manager = world.connect({ pace: async () => Promise.reject(closed) });
    for (const call of every(world, manager, id)) {
      await expect(call()).rejects.toThrow('the process is stopping');
    }
    expect(await calls(world)).toBe(before);
  });

  test('with a key that is refused it is lease.unauthorized, and says what to mend', async () => {
    await using world = await start();
    const { id } = await world.manager.create(wishOf(world));
    const manager = world.connect({ apiKey: 'a-key-of-nobody' });
    for (const call of every(world, manager, id)) {
      const refused = await failure(call());
      expect(refused).toMatchObject(UNAUTHORIZED);
      expect(refused['message']).toContain('_API_KEY');
      expect(refused['message']).not.toContain('a-key-of-nobody');
    }
    expect(await namesOf(world)).toEqual([`${STAMP}a`]);
  });

  test('too often asked, each of them is lease.unavailable with the time that the provider gives', async () => {
    await using world = await start();
    const { id } = await world.manager.create(wishOf(world));
    await world.control.setFaults([{ kind: 'error', error: 'rate_limited', retry_after: 3 }]);
    const count = every(world, world.manager, id).length;
    for (let at = 0; at < count; at += 1) {
      const call = every(world, world.connect(), id)[at];
      const refused = await failure(call?.() ?? Promise.resolve());
      expect(refused).toMatchObject({ ...UNAVAILABLE, retryAfterMs: 3000 });
    }
  });

  test('has a time limit', async () => {
    await using world = await start();
    const { id } = await world.manager.create(wishOf(world));
    const manager = world.connect({ timeoutMs: 200 });
    await world.control.setFaults([{ kind: 'hang' }]);
    for (const call of every(world, manager, id)) {
      const from = performance.now();
      expect(await failure(call())).toMatchObject(UNAVAILABLE);
      expect(performance.now() - from).toBeLessThan(10_000);
    }
  });

  test('an answer that is late and in time is an answer', async () => {
    await using world = await start();
    await world.control.setFaults([{ kind: 'slow', delay_ms: 150 }]);
    const { id } = await world.manager.create(wishOf(world));
    for (const call of every(world, world.connect(), id)) await call();
    expect(await namesOf(world)).toContain(`${STAMP}z`);
  });

  test('says what the provider can do', async () => {
    await using world = await start();
    const { bootDeadlineMs, listLagMs, modelCache, engineForm, modelCachePath } =
      world.manager.capabilities;
    expect(bootDeadlineMs).toBeGreaterThanOrEqual(10 * 60_000);
    expect(listLagMs).toBeLessThan(bootDeadlineMs);
    expect([null, 'network_volume', 'file_system']).toContain(modelCache);
    expect(engineForm).toBe(form);
    expect(modelCachePath.startsWith(cachePath)).toBe(true);
  });
}
