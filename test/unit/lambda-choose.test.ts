import { describe, expect, test } from 'vitest';
import { chooseOffers } from '../../src/domain/choose-offer.ts';
import type { GpuWish } from '../../src/domain/choose-offer.ts';
import { toOffer } from '../../src/resources/lambda-cloud/types.ts';
import { INSTANCE_TYPES } from '../simulators/lambda/catalog.ts';

/** The catalog, with capacity in two regions but where a test says otherwise. */
function catalog(stock: Record<string, string[]> = {}) {
  const offers = [...INSTANCE_TYPES.values()].map((type) =>
    toOffer(
      {
        name: type.name,
        gpuDescription: type.gpu_description,
        gpus: type.specs.gpus,
        pricePerHour: type.price_cents_per_hour / 100,
        storageGib: type.specs.storage_gib,
        regions: stock[type.name] ?? ['us-east-1', 'us-west-1'],
        architecture: null,
      },
      0,
    ),
  );
  return offers.filter((offer) => offer !== null);
}

function choose(wish: Partial<GpuWish>, stock?: Record<string, string[]>): string[] {
  const whole: GpuWish = {
    gpuType: '',
    count: 1,
    vramGb: 0,
    interconnect: '',
    regions: [],
    interruptible: false,
    maxPricePerHour: null,
    needsPrice: false,
    providers: ['lambdaCloud'],
    ...wish,
  };
  const rules = { policy: 'cheapest', speeds: new Map() } as const;
  return chooseOffers(catalog(stock), whole, rules).candidates.map(({ id }) => id);
}

describe('which instance types are tried, and in which order', () => {
  test('the cheapest first, and the dearer ones after it', () => {
    expect(choose({ gpuType: 'H100' })).toEqual(['gpu_1x_h100_pcie', 'gpu_1x_h100_sxm5']);
  });

  test('not what has no capacity, or only where it may not be', () => {
    expect(choose({ gpuType: 'H100' }, { gpu_1x_h100_pcie: [] })).toEqual(['gpu_1x_h100_sxm5']);
    const wish = { gpuType: 'H100', regions: ['us-east-1'] };
    expect(choose(wish, { gpu_1x_h100_pcie: ['us-west-1'] })).toEqual(['gpu_1x_h100_sxm5']);
  });

  test('at one price the most preferred region decides, and then the name', () => {
    const wish = { gpuType: 'A100 40GB', regions: ['us-west-1', 'us-east-1'] };
    const stock = { gpu_1x_a100: ['us-east-1'], gpu_1x_a100_sxm4: ['us-east-1', 'us-west-1'] };
    expect(choose(wish, stock)).toEqual(['gpu_1x_a100_sxm4', 'gpu_1x_a100']);
    expect(choose(wish)).toEqual(['gpu_1x_a100', 'gpu_1x_a100_sxm4']);
  });

  test('the count is exact', () => {
    expect(choose({ gpuType: 'A100-PCIE-40GB', count: 2 })).toEqual(['gpu_2x_a100']);
    expect(choose({ gpuType: 'A100-PCIE-40GB', count: 3 })).toEqual([]);
    expect(choose({ gpuType: 'A100-SXM-80GB', count: 8 })).toEqual(['gpu_8x_a100_80gb_sxm4']);
  });

  test('the memory is at least what is asked for', () => {
    expect(choose({ gpuType: 'A100', count: 8, vramGb: 41 })).toEqual(['gpu_8x_a100_80gb_sxm4']);
    expect(choose({ gpuType: 'A10', vramGb: 25 })).toEqual([]);
  });

  test.for([
    ['NVIDIA H100 80GB HBM3', 1, 'gpu_1x_h100_sxm5'],
    ['H100 80GB PCIe', 1, 'gpu_1x_h100_pcie'],
    ['H100-SXM-80GB', 8, 'gpu_8x_h100_sxm5'],
    ['H100-SXM', 2, 'gpu_2x_h100_sxm5'],
    ['B200 SXM6', 8, 'gpu_8x_b200_sxm6'],
    ['NVIDIA RTX A6000', 4, 'gpu_4x_a6000'],
    ['Tesla-V100-SXM2-16GB', 8, 'gpu_8x_v100'],
    ['Quadro RTX 6000', 1, 'gpu_1x_rtx6000'],
    ['gpu_1x_gh200', 1, 'gpu_1x_gh200'],
  ] as const)('%s, %i of them', ([gpuType, count, id]) => {
    expect(choose({ gpuType, count })[0]).toBe(id);
  });

  test.for(['H100 NVL', 'RTX 6000 Ada', 'GB', 'N/A', 'CPU', 'H200'])(
    '%j is not there',
    (gpuType) => {
      expect(choose({ gpuType })).toEqual([]);
    },
  );

  test('whichever GPU is none beside other processors', () => {
    expect(choose({ gpuType: '' })).not.toContain('gpu_1x_gh200');
    const grace = catalog().filter(({ architecture }) => architecture === 'arm64');
    expect(grace.map(({ id }) => id)).toEqual(['gpu_1x_gh200']);
  });
});
