import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { answerable, judge, ORPHAN_AGE_MS, ORPHAN_APART_MS } from '../../src/domain/inventory.ts';
import type { Evidence, ListedMachine, MachineOwner } from '../../src/domain/inventory.ts';
import { ATTEMPT_STATES, machineName } from '../../src/domain/lease.ts';
import type { LeaseAttempt } from '../../src/domain/lease.ts';
import { PROVISION_STATES } from '../../src/domain/provision.ts';

const STAMP = 'sl-0123abcd';
const KEY = '0123456789abcdef';
const NOW = 1_800_000_000_000;
const OLD = NOW - 2 * ORPHAN_AGE_MS;
const NAME = machineName(STAMP, KEY, 1, OLD);

function attempt(change: Partial<LeaseAttempt> = {}): LeaseAttempt {
  return {
    n: 1,
    name: NAME,
    provider: 'runpod',
    offer: '1x H100',
    gpuType: 'H100',
    gpuCount: 1,
    pricePerHour: 2,
    region: '',
    hostKey: '',
    state: 'there',
    askedAt: OLD,
    machine: 'm1',
    createdAt: OLD,
    reachedAt: null,
    endedAt: null,
    missing: 0,
    missingSince: null,
    missingAt: null,
    notBefore: null,
    error: '',
    raw: '',
    ...change,
  };
}

function owner(change: Partial<MachineOwner> = {}): MachineOwner {
  const none = { handedTo: null, isDestroying: false };
  const attempts = change.attempts ?? [attempt()];
  const current = attempts.at(-1)?.n ?? 0;
  const own = { id: 'prov_a_0_0', job: 'job_a', state: 'serving' } as const;
  return { ...own, attempts, current, ...none, ...change };
}

function listed(change: Partial<ListedMachine> = {}): ListedMachine {
  return {
    provider: 'runpod',
    id: 'm1',
    name: NAME,
    state: 'running',
    createdAt: OLD,
    ...change,
  };
}

function verdict(machine: ListedMachine, change: Partial<Evidence> = {}) {
  return judge(machine, {
    stamp: STAMP,
    record: owner(),
    namesakes: [machine],
    orphanSince: null,
    doubt: null,
    now: NOW,
    ...change,
  });
}

/** Evidence by which nothing spares an orphan. */
const PROVEN = { record: null, orphanSince: NOW - ORPHAN_APART_MS } as const;

describe('a machine that a record names', () => {
  test('is kept while it is that of the current attempt', () => {
    for (const state of PROVISION_STATES) {
      if (state === 'released') continue;
      expect(verdict(listed(), { record: owner({ state }) })).toEqual({
        is: 'wanted',
        adopt: null,
      });
    }
  });

  test('goes when its provision is released, or begun to be destroyed', () => {
    expect(verdict(listed(), { record: owner({ state: 'released' }) }).is).toBe('unwanted');
    const record = owner({ state: 'releasing', isDestroying: true });
    expect(verdict(listed(), { record }).is).toBe('unwanted');
  });

  test('goes when another attempt is the current one', () => {
    const later = attempt({ n: 2, name: machineName(STAMP, KEY, 2, NOW), machine: 'm2' });
    const record = owner({ attempts: [attempt(), later] });
    expect(verdict(listed(), { record }).is).toBe('unwanted');
    const second = listed({ id: 'm2', name: later.name });
    expect(verdict(second, { record })).toEqual({ is: 'wanted', adopt: null });
  });

  test('goes when its attempt has ended, though its provision has no other', () => {
    for (const state of ATTEMPT_STATES) {
      const record = owner({ state: 'creating', attempts: [attempt({ state })] });
      const fates: Partial<Record<typeof state, string>> = {
        leaving: 'unwanted',
        none: 'unwanted',
        gone: 'unwanted',
        // Whoever has it now answers for it, and where there is nobody, nothing is proven.
        handed: 'orphan',
      };
      const found = verdict(listed(), { record }).is;
      expect([state, found]).toEqual([state, fates[state] ?? 'wanted']);
    }
  });

  test('that has a double: only the one on record is kept', () => {
    const [one, two] = [listed(), listed({ id: 'm0', createdAt: OLD - 1 })];
    const namesakes = [two, one];
    expect(verdict(one, { namesakes }).is).toBe('wanted');
    expect(verdict(two, { namesakes })).toEqual({
      is: 'unwanted',
      why: 'it is a second one of its name, beside m1',
      adopt: null,
    });
  });

  test('that has a double and no id on record: the oldest that can be used is adopted', () => {
    const record = owner({ attempts: [attempt({ machine: null, state: 'unknown' })] });
    const namesakes = [
      listed({ id: 'unsaid', createdAt: null }),
      listed({ id: 'younger', createdAt: OLD + 1 }),
      listed({ id: 'taken-away', state: 'stopping', createdAt: OLD - 9 }),
      listed({ id: 'older', state: 'booting' }),
      listed({ id: 'ended', state: 'gone', createdAt: OLD - 10 }),
    ];
    const found = namesakes.map((each) => [each.id, verdict(each, { record, namesakes }).is]);
    expect(Object.fromEntries(found)).toEqual({
      unsaid: 'unwanted',
      younger: 'unwanted',
      'taken-away': 'unwanted',
      older: 'wanted',
      ended: 'gone',
    });
    const kept = verdict(listed({ id: 'older', state: 'booting' }), { record, namesakes });
    expect(kept).toEqual({ is: 'wanted', adopt: 1 });
    const only = listed({ id: 'taken-away', state: 'stopping' });
    expect(verdict(only, { record })).toEqual({ is: 'wanted', adopt: 1 });
  });

  test('gets its id on record though it goes, as long as that is kept', () => {
    const attempts = [attempt({ machine: null, state: 'unknown' })];
    const leaving = owner({ state: 'releasing', isDestroying: true, attempts });
    expect(verdict(listed(), { record: leaving })).toMatchObject({ is: 'unwanted', adopt: 1 });
    const left = owner({ state: 'released', attempts });
    expect(verdict(listed(), { record: left })).toMatchObject({ is: 'unwanted', adopt: null });
    // Else it would be used, though it is on its way out.
    const over = owner({ attempts: [attempt({ machine: null, state: 'none' })] });
    expect(verdict(listed(), { record: over })).toMatchObject({ is: 'unwanted', adopt: null });
  });
});

describe('a machine that no record names', () => {
  test('goes when it is old enough and was found so before', () => {
    expect(verdict(listed(), PROVEN)).toEqual({ is: 'orphan', spared: null });
  });

  test('stays while it is young by its name or by its provider', () => {
    const name = machineName(STAMP, KEY, 1, NOW - ORPHAN_AGE_MS);
    for (const young of [
      listed({ name, createdAt: OLD }),
      listed({ name, createdAt: null }),
      listed({ createdAt: NOW - ORPHAN_AGE_MS }),
    ]) {
      const spared = 'it is younger than 15 minutes';
      expect(verdict(young, PROVEN)).toEqual({ is: 'orphan', spared });
    }
  });

  test('stays at its first sighting, and until 5 minutes after it', () => {
    const spared = 'it was not found so 5 minutes ago';
    for (const orphanSince of [null, NOW, NOW - ORPHAN_APART_MS + 1]) {
      const found = verdict(listed(), { ...PROVEN, orphanSince });
      expect(found).toEqual({ is: 'orphan', spared });
    }
  });

  test('stays while the records are in doubt, and tells why', () => {
    const found = verdict(listed(), { ...PROVEN, doubt: 'Redis is empty.' });
    expect(found).toEqual({ is: 'orphan', spared: 'Redis is empty.' });
  });

  test('is an orphan, too, where its provision knows another attempt of that number, or none', () => {
    const other = attempt({ name: machineName(STAMP, KEY, 1, NOW) });
    for (const attempts of [[], [other], [attempt({ provider: 'lambdaCloud' })]]) {
      const record = owner({ attempts, state: 'released' });
      expect(verdict(listed(), { record }).is).toBe('orphan');
    }
  });

  test('stays where its name does not tell its age', () => {
    const spared = 'its name does not say how old it is';
    const odd = listed({ name: `${STAMP}-by-hand` });
    expect(verdict(odd, PROVEN)).toEqual({ is: 'orphan', spared });
  });
});

test("another deployment's machine is foreign, also where its stamp begins like ours", () => {
  for (const name of ['', 'training', machineName(`${STAMP}e`, KEY, 1, OLD), NAME.slice(1)]) {
    expect(verdict(listed({ name }), PROVEN)).toEqual({ is: 'foreign' });
  }
});

describe('who answers for a machine', () => {
  test('is whoever took it over, not who leased it', () => {
    const before = owner({ state: 'released', handedTo: 'prov_b_0_0' });
    const after = owner({ id: 'prov_b_0_0' });
    expect(answerable(listed(), [before, after], before)?.id).toBe('prov_b_0_0');
    // Its record may be erased while the taker still uses the machine.
    expect(answerable(listed(), [after], null)?.id).toBe('prov_b_0_0');
  });

  test('of two claims is the one that has its id', () => {
    const one = owner({ id: 'prov_b_0_0', attempts: [attempt({ machine: 'other' })] });
    expect(answerable(listed(), [one, owner()], one)?.id).toBe('prov_a_0_0');
  });

  test('is nobody whose current attempt is another one, or who gives it back', () => {
    const later = attempt({ n: 2, name: machineName(STAMP, KEY, 2, NOW) });
    const on = owner({ attempts: [attempt(), later] });
    const out = owner({ state: 'releasing', isDestroying: true });
    expect(answerable(listed(), [on, out], null)).toBeNull();
    expect(answerable(listed(), [on, out], on)?.id).toBe(on.id);
  });
});

const times = fc.constantFrom(OLD, NOW - ORPHAN_AGE_MS, NOW - ORPHAN_APART_MS, NOW - 1, NOW);
/** Few, so that machines and records often mean the same. */
const names = fc.oneof(
  { weight: 4, arbitrary: fc.constantFrom(NAME, machineName(STAMP, KEY, 2, OLD)) },
  fc
    .tuple(fc.constantFrom(STAMP, `${STAMP}e`, 'sl-99999999'), fc.constantFrom(1, 2, 3), times)
    .map(([stamp, n, at]) => machineName(stamp, KEY, n, at)),
  fc.constantFrom('', 'training', `${STAMP}-by-hand`),
);
const providers = fc.constantFrom('runpod' as const, 'runpod' as const, 'lambdaCloud' as const);
const ids = fc.constantFrom('m1', 'm2', 'm3');
const machines = fc.record<ListedMachine>({
  provider: providers,
  id: ids,
  name: names,
  state: fc.constantFrom('booting', 'running', 'stopping', 'gone'),
  createdAt: fc.oneof(times, fc.constant(null)),
});
const attempts = fc.array(
  fc
    .tuple(names, providers, fc.option(ids), fc.constantFrom(...ATTEMPT_STATES))
    .map(([name, provider, machine, state]) => attempt({ name, provider, machine, state })),
  { maxLength: 3 },
);
const owners = fc
  .record({
    id: fc.constantFrom('prov_a_0_0', 'prov_b_0_0'),
    state: fc.constantFrom(...PROVISION_STATES),
    attempts: attempts.map((all) => all.map((each, i) => ({ ...each, n: i + 1 }))),
    isDestroying: fc.boolean(),
  })
  .map(owner);
const scenes = fc.record({
  machine: machines,
  others: fc.array(machines, { maxLength: 3 }),
  claims: fc.array(owners, { maxLength: 3 }),
  byKey: fc.option(owners),
  orphanSince: fc.option(times),
  doubt: fc.constantFrom(null, 'Redis is empty.'),
});
type Scene = typeof scenes extends fc.Arbitrary<infer T> ? T : never;

/** As a look decides: true where the machine would be destroyed. */
function isDestroyed({ machine, others, claims, byKey, ...rest }: Scene): boolean {
  const namesakes = [machine, ...others].filter(
    ({ name, provider }) => name === machine.name && provider === machine.provider,
  );
  const record = answerable(machine, claims, byKey);
  const found = judge(machine, { stamp: STAMP, record, namesakes, now: NOW, ...rest });
  return found.is === 'unwanted' || (found.is === 'orphan' && found.spared === null);
}

const LIVE: ReadonlySet<string> = new Set(['asked', 'unknown', 'there']);

/** Whether a provision that is not on its way out stands on this machine, by its id. */
function standsOn({ machine, claims, byKey }: Scene): boolean {
  return [...claims, ...(byKey === null ? [] : [byKey])].some(({ state, attempts: all }) => {
    const last = all.at(-1);
    if (state === 'releasing' || state === 'released' || last === undefined) return false;
    const { machine: id, name, provider } = last;
    const isSame = id === machine.id && name === machine.name && provider === machine.provider;
    return isSame && LIVE.has(last.state);
  });
}

describe('whatever the records and lists are', () => {
  /** How many scenes would destroy something, which all have to be right. */
  function countDestroyed(isRight: (scene: Scene) => boolean, change: Partial<Scene> = {}): number {
    let count = 0;
    const holds = (drawn: Scene): boolean => {
      const scene = { ...drawn, ...change };
      if (!isDestroyed(scene)) return true;
      count += 1;
      return isRight(scene);
    };
    fc.assert(fc.property(scenes, holds), { numRuns: 5_000 });
    return count;
  }

  test('nothing is destroyed that an unreleased provision stands on', () => {
    expect(countDestroyed((scene) => !standsOn(scene))).toBeGreaterThan(100);
    expect(fc.sample(scenes, 5_000).filter(standsOn).length).toBeGreaterThan(0);
  });

  test('nothing is destroyed without our stamp', () => {
    const isOurs = ({ machine }: Scene) => machine.name.startsWith(`${STAMP}-`);
    expect(countDestroyed(isOurs)).toBeGreaterThan(100);
  });

  test('no orphan is destroyed that is in doubt, young, or seen once', () => {
    const isProven = ({ machine, orphanSince, doubt }: Scene): boolean => {
      const isOld = machine.createdAt === null || NOW - machine.createdAt > ORPHAN_AGE_MS;
      const isOldByName = machine.name.endsWith((OLD / 1_000).toString(36));
      const isSeen = orphanSince !== null && NOW - orphanSince >= ORPHAN_APART_MS;
      return doubt === null && isOld && isOldByName && isSeen;
    };
    expect(countDestroyed(isProven, { claims: [], byKey: null })).toBeGreaterThan(0);
  });

  test('of all namesakes that one live attempt may have, one is kept', () => {
    const doubles = fc.uniqueArray(machines, { minLength: 1, selector: ({ id }) => id });
    const property = fc.property(doubles, fc.boolean(), (all, hasId) => {
      const same = all.map((each) => ({ ...each, name: NAME, provider: 'runpod' as const }));
      const there = same.filter(({ state }) => state !== 'gone');
      const id = hasId ? (there[0]?.id ?? null) : null;
      const byKey = owner({ attempts: [attempt({ machine: id, state: 'asked' })] });
      const kept = there.filter((machine) => {
        const scene = { machine, others: same, claims: [], byKey, orphanSince: null, doubt: null };
        return !isDestroyed(scene);
      });
      expect(kept).toHaveLength(Math.min(there.length, 1));
    });
    fc.assert(property, { numRuns: 500 });
  });
});
