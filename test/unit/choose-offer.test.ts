import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  chooseOffers,
  explain,
  nearestTypes,
  PLANNING_POLICIES,
  requireOffer,
} from '../../src/domain/choose-offer.ts';
import type { GpuOffer, GpuWish, PlanningPolicy } from '../../src/domain/choose-offer.ts';
import type { Offer } from '../../src/resources/contract.ts';

function runpod(count: number, type: string, vramGb: number, price: number | null): GpuOffer {
  return {
    provider: 'runpod',
    id: `${count}x ${type}`,
    kind: 'machine',
    type,
    count,
    vramGb,
    pricePerHour: price,
    stock: 'available',
    regions: [],
    error: '',
  };
}

function lambda(id: string, type: string, count: number, vramGb: number, price: number): GpuOffer {
  return {
    ...runpod(count, type, vramGb, price),
    provider: 'lambdaCloud',
    id,
    regions: ['us-west-1'],
  };
}

const SXM = runpod(1, 'NVIDIA H100 80GB HBM3', 80, 3.99);
const PCIE = runpod(1, 'NVIDIA H100 PCIe', 80, 2.89);
const NVL = runpod(1, 'NVIDIA H100 NVL', 94, 3.07);
const H200 = runpod(2, 'NVIDIA H200', 141, 9.18);
const SXM_X2 = runpod(2, 'NVIDIA H100 80GB HBM3', 80, 7.98);
const PCIE_X2 = runpod(2, 'NVIDIA H100 PCIe', 80, 5.78);
const L_SXM = lambda('gpu_1x_h100_sxm5', 'H100 (80 GB SXM5)', 1, 80, 3.29);
const L_PCIE = lambda('gpu_1x_h100_pcie', 'H100 (80 GB PCIe)', 1, 80, 2.49);
const L_A10 = lambda('gpu_1x_a10', 'A10 (24 GB PCIe)', 1, 24, 0.75);
const L_A100 = lambda('gpu_1x_a100_sxm4', 'A100 (40 GB SXM4)', 1, 40, 1.29);
const ALL = [SXM, PCIE, NVL, H200, SXM_X2, PCIE_X2, L_SXM, L_PCIE, L_A10, L_A100];

function wishOf(changes: Partial<GpuWish> = {}): GpuWish {
  return {
    gpuType: 'H100',
    count: 1,
    vramGb: 0,
    interconnect: '',
    regions: [],
    interruptible: false,
    maxPricePerHour: null,
    needsPrice: false,
    providers: ['runpod', 'lambdaCloud'],
    ...changes,
  };
}

function choose(
  changes: Partial<GpuWish>,
  policy: PlanningPolicy = 'simple',
  offers: readonly GpuOffer[] = ALL,
  speeds: Record<string, number> = {},
) {
  return chooseOffers(offers, wishOf(changes), { policy, speeds: new Map(Object.entries(speeds)) });
}

function idsOf(...args: Parameters<typeof choose>): string[] {
  return choose(...args).candidates.map(({ id }) => id);
}

function failureOf(changes: Partial<GpuWish>, offers: readonly GpuOffer[] = ALL): unknown {
  try {
    requireOffer(choose(changes, 'simple', offers), wishOf(changes));
    return null;
  } catch (error) {
    return error;
  }
}

describe('which offers fit', () => {
  const ROWS: [string, Partial<GpuWish>, GpuOffer[]][] = [
    ['a family', {}, [PCIE, NVL, SXM, L_PCIE, L_SXM]],
    ['a name of one provider finds that GPU with all', { gpuType: SXM.type }, [SXM, L_SXM]],
    ['as people write it', { gpuType: 'H100-SXM-80GB' }, [SXM, L_SXM]],
    ['the id of an offer', { gpuType: 'gpu_1x_h100_pcie' }, [L_PCIE]],
    ['an A10 is no A100', { gpuType: 'NVIDIA-A10' }, [L_A10]],
    ['an A100 with 80 GB is none with 40', { gpuType: 'A100-SXM4-80GB' }, []],
    ['whichever GPU', { gpuType: '', maxPricePerHour: 1 }, [L_A10]],
    ['by memory', { vramGb: 81 }, [NVL]],
    ['the number is exact', { gpuType: '', count: 2 }, [PCIE_X2, SXM_X2, H200]],
    ['joined by NVLink', { gpuType: '', count: 2, interconnect: 'nvlink' }, [SXM_X2, H200]],
    ['PCIe is what every machine has', { count: 2, interconnect: 'pcie' }, [PCIE_X2, SXM_X2]],
    ['one GPU is joined to none', { gpuType: 'H100 PCIe', interconnect: 'nvlink' }, [PCIE, L_PCIE]],
    ['an H200 is on an SXM board', { gpuType: 'H200-SXM-141GB', count: 2 }, [H200]],
    ['up to a price, itself included', { maxPricePerHour: 2.89 }, [PCIE, L_PCIE]],
    ['of one provider', { providers: ['lambdaCloud'] }, [L_PCIE, L_SXM]],
    [
      'in a region, where the provider says',
      { regions: ['US-WEST-1'] },
      [PCIE, NVL, SXM, L_PCIE, L_SXM],
    ],
    ['in another region', { regions: ['eu'], providers: ['lambdaCloud'] }, []],
    [
      'in the order of providers',
      { gpuType: 'H100 PCIe', providers: ['lambdaCloud', 'runpod'] },
      [L_PCIE, PCIE],
    ],
  ];

  test.for(ROWS)('%s', ([, changes, offers]) => {
    expect(idsOf(changes)).toEqual(offers.map(({ id }) => id));
  });

  test('none that may be taken away, unless the job allows it', () => {
    const spot = { ...SXM, id: 'spot', interruptible: true };
    expect(idsOf({}, 'simple', [spot])).toEqual([]);
    expect(idsOf({ interruptible: true }, 'simple', [spot, SXM])).toEqual([SXM.id, 'spot']);
  });

  test('none with other processors, unless its GPU is asked for', () => {
    const grace = lambda('gpu_1x_gh200', 'GH200 (96 GB)', 1, 96, 1.49);
    const arm: GpuOffer = { ...grace, architecture: 'arm64' };
    expect(idsOf({ gpuType: '' }, 'cheapest', [arm, L_SXM])).toEqual([L_SXM.id]);
    expect(explain(choose({ gpuType: '' }, 'simple', [arm]))).toEqual([
      expect.stringContaining('arm64'),
    ]);
    for (const gpuType of ['GH200', 'NVIDIA GH200 480GB', 'gpu_1x_gh200']) {
      expect(idsOf({ gpuType }, 'simple', [arm, L_SXM])).toEqual([arm.id]);
    }
  });

  test('none of which nobody knows the price, where the job has a limit', () => {
    const secret = { ...SXM, id: 'secret', pricePerHour: null };
    expect(idsOf({}, 'cheapest', [secret, SXM])).toEqual([SXM.id, 'secret']);
    expect(idsOf({ maxPricePerHour: 99 }, 'simple', [secret])).toEqual([]);
    expect(idsOf({ needsPrice: true }, 'simple', [secret])).toEqual([]);
  });

  test('none of which nobody knows the memory, where it matters', () => {
    const secret = { ...SXM, id: 'secret', vramGb: null };
    expect(idsOf({ vramGb: 80 }, 'simple', [secret, SXM])).toEqual([SXM.id]);
    expect(idsOf({}, 'simple', [secret])).toEqual(['secret']);
  });

  test('none that is out of stock, whether or not the provider gives a reason', () => {
    expect(idsOf({}, 'simple', [{ ...SXM, stock: 'unavailable' }])).toEqual([]);
    expect(idsOf({}, 'simple', [{ ...SXM, error: 'broken' }])).toEqual([]);
  });

  test('offers as a catalog has them are taken as they are', () => {
    const offer: Offer = {
      ...SXM,
      provider: 'static',
      architecture: 'x86_64',
      address: '',
      models: [],
      checkedAt: 1,
    };
    const rules = { policy: 'simple', speeds: new Map() } as const;
    const { candidates } = chooseOffers([offer], wishOf({ providers: ['static'] }), rules);
    expect(candidates[0]?.checkedAt).toBe(1);
  });
});

describe('in which order', () => {
  test('the cheapest first', () => {
    const ids = [L_PCIE, PCIE, NVL, L_SXM, SXM].map(({ id }) => id);
    expect(idsOf({}, 'cheapest')).toEqual(ids);
  });

  test('the fastest first, known by whatever spelling, and the others by price after it', () => {
    const speeds = { 'H100 (80 GB SXM5)': 5_000, 'NVIDIA H100 NVL': 4_000 };
    const ids = [L_SXM, SXM, NVL, L_PCIE, PCIE].map(({ id }) => id);
    expect(idsOf({}, 'fastest', ALL, speeds)).toEqual(ids);
  });

  test('at one price the preferred region, then what is surely there', () => {
    const east = { ...L_SXM, id: 'east', regions: ['us-east-1'] };
    const both = {
      ...L_SXM,
      id: 'both',
      regions: ['eu-1', 'us-west-1'],
      stock: 'unknown' as const,
    };
    const regions = ['us-west-1', 'us-east-1'];
    expect(idsOf({ regions }, 'cheapest', [east, both, L_SXM])).toEqual([L_SXM.id, 'both', 'east']);
  });
});

describe('where there is none', () => {
  test('no such GPU: the names that are nearest', () => {
    expect(failureOf({ gpuType: 'H10O' })).toMatchObject({
      kind: 'InvalidInput',
      code: 'lease.no_gpu_type',
      param: 'accelerator.type',
      message: expect.stringMatching(/no GPU called 'H10O'.*accelerator.type.*H100 \(80 GB/),
    });
    expect(failureOf({ gpuType: 'A100-SXM4-80GB' })).toMatchObject({
      message: expect.stringContaining("such as 'A100 (40 GB SXM4)'"),
    });
  });

  test('no capacity: what is left, and what widens the choice', () => {
    const gone = [SXM, L_PCIE].map((each) => ({
      ...each,
      stock: 'unavailable' as const,
      error: 'None left.',
    }));
    const error = failureOf({}, [...gone, SXM_X2]);
    expect(error).toMatchObject({ kind: 'NoCapacity', code: 'lease.no_capacity' });
    expect(error).toMatchObject({
      message: expect.stringMatching(/1 × H100 .*None left.*allow more regions/),
    });
  });

  test('limits that none keeps, now or later: no waiting helps', () => {
    expect(failureOf({ maxPricePerHour: 2 })).toMatchObject({
      kind: 'InvalidInput',
      code: 'lease.no_offer',
      message: expect.stringMatching(
        /costs \$2.89 an hour, and at most \$2 may be paid.*and \d more/,
      ),
    });
    expect(failureOf({ count: 3 })).toMatchObject({ code: 'lease.no_offer' });
    expect(failureOf({ count: 2, interconnect: 'ib' })).toMatchObject({
      message: expect.stringContaining('nvlink'),
    });
  });

  test('a region that has none now may have one soon', () => {
    const wish = { regions: ['eu'], providers: ['lambdaCloud'] };
    expect(failureOf(wish)).toMatchObject({ code: 'lease.no_capacity' });
  });

  test('an empty catalog is asked again', () => {
    expect(failureOf({}, [])).toMatchObject({ kind: 'NoCapacity' });
    expect(failureOf({ providers: ['kubernetes'] })).toMatchObject({ kind: 'NoCapacity' });
  });

  test('all objections to an offer are told', () => {
    const [line] = explain(choose({ vramGb: 90, maxPricePerHour: 1 }, 'simple', [SXM]));
    expect(line).toBe(
      'runpod 1x NVIDIA H100 80GB HBM3: has 80 GB, and 90 GB are wanted; costs $3.99 an hour, and at most $1 may be paid',
    );
  });

  test('nearest names are those of the family, then those that differ least', () => {
    expect(nearestTypes('RTX 4080', [{ type: 'NVIDIA GeForce RTX 4090' }, L_A10, SXM])[0]).toBe(
      'NVIDIA GeForce RTX 4090',
    );
  });
});

describe('whatever the catalog', () => {
  const TYPES = ALL.map(({ type }) => type);
  /** Mostly what fits, so that most offers fail by one thing alone, if at all. */
  function mostly<T>(usual: T, ...others: T[]) {
    return fc.oneof(
      { weight: 6, arbitrary: fc.constant(usual) },
      { weight: 1, arbitrary: fc.constantFrom(...others) },
    );
  }
  const offers = fc.array(
    fc.record({
      provider: mostly('runpod', 'lambdaCloud', 'static'),
      id: fc.constantFrom('a', 'b', 'c', 'd'),
      kind: mostly<'machine' | 'engine'>('machine', 'engine'),
      type: fc.constantFrom(...TYPES, '', 'cpu'),
      count: mostly<number | null>(1, 2, 8, null),
      vramGb: mostly<number | null>(80, 24, 141, null),
      pricePerHour: mostly<number | null>(1, 0.5, 2, 4, null),
      stock: mostly<GpuOffer['stock']>('available', 'unavailable', 'unknown'),
      regions: mostly<string[]>([], ['eu'], ['us'], ['eu', 'us']),
      error: mostly('', 'broken'),
      interruptible: mostly(false, true),
    }),
    { maxLength: 24 },
  );
  const wishes = fc.record({
    gpuType: mostly('', 'H100', 'A100', 'nonsense', ...TYPES),
    count: mostly(1, 2),
    vramGb: fc.constantFrom(0, 80),
    interconnect: fc.constantFrom('' as const, 'pcie' as const, 'nvlink' as const),
    regions: fc.constantFrom<string[]>([], ['eu'], ['us', 'eu']),
    interruptible: fc.boolean(),
    maxPricePerHour: fc.option(fc.constantFrom(1, 3)),
    needsPrice: fc.boolean(),
    providers: fc.constantFrom(['runpod'], ['lambdaCloud', 'runpod']),
  });
  const rules = fc.record({
    policy: fc.constantFrom(...PLANNING_POLICIES),
    speeds: fc.constantFrom(
      new Map<string, number>(),
      new Map([
        ['H100 SXM', 9],
        [PCIE.type, 5],
      ]),
    ),
  });

  test('no candidate breaks a limit, and each offer is on one side, with a reason on the other', () => {
    fc.assert(
      fc.property(offers, wishes, rules, (all, wish, rule) => {
        const { candidates, out } = chooseOffers(all, wish, rule);
        expect(candidates.length + out.length).toBe(all.length);
        expect(out.every(({ objections }) => objections.length > 0)).toBe(true);
        for (const offer of candidates) {
          expect(offer.kind).toBe('machine');
          expect(offer.count).toBe(wish.count);
          expect(offer.stock).not.toBe('unavailable');
          expect(offer.error).toBe('');
          expect(wish.providers).toContain(offer.provider);
          expect(offer.vramGb ?? 0).toBeGreaterThanOrEqual(wish.vramGb);
          const limit = wish.maxPricePerHour ?? (wish.needsPrice ? 1e9 : Infinity);
          expect(offer.pricePerHour ?? (limit === Infinity ? 0 : Infinity)).toBeLessThanOrEqual(
            limit,
          );
          expect(wish.interruptible || !offer.interruptible).toBe(true);
          const isThere = offer.regions.some((each) => wish.regions.includes(each));
          expect(wish.regions.length === 0 || offer.regions.length === 0 || isThere).toBe(true);
        }
      }),
    );
  });

  test('the order is total: the same whatever the order of the catalog', () => {
    fc.assert(
      fc.property(
        offers.chain((all) =>
          fc.tuple(fc.constant(all), fc.shuffledSubarray<GpuOffer>(all, { minLength: all.length })),
        ),
        wishes,
        rules,
        ([all, shuffled], wish, rule) => {
          const keyed = (list: readonly GpuOffer[]) =>
            chooseOffers(list, wish, rule).candidates.map(
              ({ provider, id, regions, stock, pricePerHour }) =>
                [provider, id, regions.join(), stock, pricePerHour].join(),
            );
          expect(keyed(shuffled)).toEqual(keyed(all));
        },
      ),
    );
  });

  test('prices rise under cheapest, and speeds fall under fastest, what is unknown last', () => {
    const speeds = new Map([['NVIDIA H100 80GB HBM3', 9]]);
    fc.assert(
      fc.property(offers, wishes, (all, wish) => {
        const cheapest = chooseOffers(all, wish, { policy: 'cheapest', speeds }).candidates;
        const prices = cheapest.map(({ pricePerHour }) => pricePerHour ?? 1e9);
        expect(prices).toEqual(prices.toSorted((a, b) => a - b));
        const fastest = chooseOffers(all, wish, { policy: 'fastest', speeds }).candidates;
        const known = fastest.map(({ type }) => /H100.*(?:HBM3|SXM)/.test(type));
        expect(known.lastIndexOf(true)).toBe(known.filter(Boolean).length - 1);
      }),
    );
  });

  test('where there is no candidate there is an error with a mend, and else none', () => {
    fc.assert(
      fc.property(offers, wishes, rules, (all, wish, rule) => {
        const choice = chooseOffers(all, wish, rule);
        const message = messageOf(() => requireOffer(choice, wish));
        expect(message === '').toBe(choice.candidates.length > 0);
        expect(message).toMatch(/^$|accelerator\.type|Widen the limit|tried again|asked again/);
      }),
    );
  });
});

function messageOf(act: () => void): string {
  try {
    act();
    return '';
  } catch (error) {
    return error instanceof Error ? error.message : 'no error';
  }
}
