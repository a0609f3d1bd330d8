import type { Offer } from '../contract.ts';

/** An offer, as its id names it. */
export interface OfferKey {
  gpuType: string;
  count: number;
}

/** GPUs of one machine that are offered: tensor parallelism takes powers of two, and each count is a request. */
export const COUNTS: readonly number[] = [1, 2, 4, 8];

/** One GPU type in a number is one offer: `2x NVIDIA H100 80GB HBM3`. */
export function offerId({ gpuType, count }: OfferKey): string {
  return `${count}x ${gpuType}`;
}

/** Null for what is no id of an offer here. */
export function parseOfferId(id: string): OfferKey | null {
  const [, count, gpuType] = /^([1-9]\d?)x (\S.*)$/.exec(id) ?? [];
  return count === undefined || gpuType === undefined ? null : { gpuType, count: Number(count) };
}

/** An offer with what is the same for all of RunPod's. */
export function offerOf(
  key: OfferKey,
  known: Pick<Offer, 'vramGb' | 'pricePerHour' | 'stock' | 'regions' | 'checkedAt'>,
): Offer {
  return {
    provider: 'runpod',
    id: offerId(key),
    kind: 'machine',
    type: key.gpuType,
    count: key.count,
    // RunPod rents no machine with another processor.
    architecture: 'x86_64',
    address: '',
    models: [],
    error: known.stock === 'unavailable' ? 'RunPod has none of these left now.' : '',
    ...known,
  };
}
