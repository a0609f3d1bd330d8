import { describe, expect, test } from 'vitest';
import { createRunPod } from '../../src/resources/runpod/index.ts';

interface Asked {
  dataCenters?: readonly string[];
  cloudType?: 'SECURE' | 'COMMUNITY';
}

const L40S = {
  id: 'NVIDIA L40S',
  name: 'L40S',
  memory: 48,
  secure: true,
  community: true,
  price: { secure: 0.86, community: 0.7901 },
  maxCount: { secure: 4, community: 2 },
  availability: 'HIGH',
  dataCenters: [
    { id: 'US-KS-2', name: 'Kansas', availability: 'HIGH' },
    { id: 'EU-RO-1', name: 'Romania', availability: 'LOW' },
    { id: 'EU-SE-1', name: 'Sweden', availability: 'NONE' },
  ],
};

/** The offers of a catalog that has this type in it, by id, and the queries that were asked. */
async function offersOf(gpu: object, { dataCenters = [], cloudType = 'SECURE' }: Asked = {}) {
  const urls: string[] = [];
  const account = { apiKey: 'k', baseUrl: null, apiVersion: null, cloudType, dataCenters };
  const manager = createRunPod(account, {
    pace: async () => {},
    now: () => 7,
    fetcher: async ({ url }) => {
      urls.push(url);
      return { status: 200, headers: {}, text: JSON.stringify({ gpus: [gpu] }) };
    },
  });
  const offers = await manager.catalog();
  return { offers: Object.fromEntries(offers.map((offer) => [offer.id, offer])), urls };
}

describe('the catalog of v2', () => {
  test('has an offer for each number of GPUs that one machine has, priced as a whole', async () => {
    const { offers, urls } = await offersOf(L40S);
    expect(Object.keys(offers)).toEqual(['1x NVIDIA L40S', '2x NVIDIA L40S', '4x NVIDIA L40S']);
    expect(offers['4x NVIDIA L40S']).toEqual({
      provider: 'runpod',
      id: '4x NVIDIA L40S',
      kind: 'machine',
      type: 'NVIDIA L40S',
      count: 4,
      architecture: 'x86_64',
      vramGb: 48,
      pricePerHour: 3.44,
      stock: 'available',
      regions: ['US-KS-2', 'EU-RO-1'],
      address: '',
      models: [],
      error: '',
      checkedAt: 7,
    });
    // Without `product` it is refused; stock of 1 says nothing about 8.
    expect(urls.map((url) => new URL(url).search)).toEqual(
      [1, 2, 4, 8].map((count) => `?include=AVAILABILITY&product=POD&count=${count}&cloud=SECURE`),
    );
  });

  test('is that of the cloud that is rented from', async () => {
    const { offers } = await offersOf(L40S, { cloudType: 'COMMUNITY' });
    expect(Object.keys(offers)).toEqual(['1x NVIDIA L40S', '2x NVIDIA L40S']);
    expect(offers['2x NVIDIA L40S']?.pricePerHour).toBe(1.5802);
    const none = await offersOf({ ...L40S, community: false }, { cloudType: 'COMMUNITY' });
    expect(none.offers).toEqual({});
  });

  test.for([
    [['EU-RO-1'], 'available', ['EU-RO-1']],
    [['EU-SE-1'], 'unavailable', []],
    [['EU-SE-1', 'US-KS-2'], 'available', ['US-KS-2']],
    [['AP-JP-1'], 'unavailable', []],
  ] as const)('stock counts in %s only: %s', async ([dataCenters, stock, regions]) => {
    const { offers } = await offersOf(L40S, { dataCenters });
    expect(offers['1x NVIDIA L40S']).toMatchObject({ stock, regions });
  });

  test('none left, a level that nobody has heard of, and a price of nothing', async () => {
    const { dataCenters: _, ...rest } = L40S;
    const none = await offersOf({ ...rest, availability: 'NONE' });
    expect(none.offers['1x NVIDIA L40S']).toMatchObject({
      stock: 'unavailable',
      regions: [],
      error: expect.stringContaining('none'),
    });
    const odd = await offersOf({
      ...rest,
      availability: 'SCARCE',
      price: { secure: 0, community: 0 },
    });
    expect(odd.offers['1x NVIDIA L40S']).toMatchObject({ stock: 'unknown', pricePerHour: null });
  });

  test('of another shape it is none', async () => {
    const broken = offersOf({ ...L40S, price: null });
    await expect(broken).rejects.toMatchObject({ code: 'lease.unavailable' });
  });
});
