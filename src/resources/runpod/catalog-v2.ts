import * as v from 'valibot';
import type { Offer } from '../contract.ts';
import { readAs } from './dialect.ts';
import type { Http } from './http.ts';
import { COUNTS, offerOf } from './offers.ts';
import type { CloudType } from './settings.ts';

const perCloud = v.object({ secure: v.number(), community: v.number() });

const gpuType = v.object({
  id: v.pipe(v.string(), v.nonEmpty()),
  memory: v.number(),
  secure: v.boolean(),
  community: v.boolean(),
  price: perCloud,
  maxCount: perCloud,
  availability: v.string(),
  /** Left out where nothing is available. */
  dataCenters: v.optional(v.array(v.object({ id: v.string(), availability: v.string() })), []),
});

const gpuTypes = v.object({ gpus: v.array(gpuType) });

interface CatalogOptions {
  cloudType: CloudType;
  /** Only stock in these counts; empty: stock anywhere. */
  dataCenters: readonly string[];
  now: () => number;
}

const IN_STOCK = new Set(['LOW', 'MEDIUM', 'HIGH']);

/** Whether it can be had, and where; no place: nobody says. */
function stockOf(
  { availability, dataCenters }: v.InferOutput<typeof gpuType>,
  wanted: readonly string[],
): Pick<Offer, 'stock' | 'regions'> {
  const places = dataCenters.filter(({ id }) => wanted.length === 0 || wanted.includes(id));
  const stocked = places.filter((place) => IN_STOCK.has(place.availability));
  const regions = stocked.map(({ id }) => id);
  const levels = wanted.length === 0 ? [availability] : places.map((place) => place.availability);
  if (levels.some((level) => IN_STOCK.has(level))) return { stock: 'available', regions };
  // A level that nobody has heard of may mean some.
  const isNone = levels.every((level) => level === 'NONE');
  return { stock: isNone ? 'unavailable' : 'unknown', regions };
}

/** REST v2's catalog: list prices, and stock by the number of GPUs of one machine. It is no reservation. */
export async function askCatalog(http: Http, options: CatalogOptions): Promise<Offer[]> {
  const { cloudType, dataCenters, now } = options;
  const cloud = cloudType === 'SECURE' ? 'secure' : 'community';
  const rounds = COUNTS.map(async (count) => {
    const path = `/catalog/gpus?include=AVAILABILITY&product=POD&count=${count}&cloud=${cloudType}`;
    const answer = await http.ask({ purpose: 'catalog', method: 'GET', path, expects: [200] });
    const { gpus } = readAs(gpuTypes, 'a catalog of GPUs', answer);
    const rented = gpus.filter((gpu) => gpu[cloud] && gpu.maxCount[cloud] >= count);
    return rented.map((gpu) =>
      offerOf(
        { gpuType: gpu.id, count },
        {
          vramGb: gpu.memory,
          // A price of 0 would be a gift; it is what stands where there is none.
          pricePerHour: gpu.price[cloud] > 0 ? cents(gpu.price[cloud] * count) : null,
          ...stockOf(gpu, dataCenters),
          checkedAt: now(),
        },
      ),
    );
  });
  return (await Promise.all(rounds)).flat();
}

/** Without the noise of binary fractions: prices have at most four digits after the point. */
function cents(usd: number): number {
  return Math.round(usd * 10_000) / 10_000;
}
