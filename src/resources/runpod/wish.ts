import { invalidInput, SluiceError } from '../../domain/errors.ts';
import type { Offer } from '../contract.ts';
import type { MachineWish } from '../lease-contract.ts';
import type { Volume } from './dialect.ts';
import { parseOfferId } from './offers.ts';

/** RunPod's own limit is 191 letters; names of more than 60 were seen to make trouble. */
const LONGEST_NAME = 60;

/** The GPU type that is wished for. Throws InvalidInput for what can never be had, NoCapacity for what costs too much. */
export function checkWish(wish: MachineWish, known: readonly Offer[]): string {
  const { name, offer: id, gpuCount, maxPricePerHour } = wish;
  if (name === '' || name.length > LONGEST_NAME) {
    throw invalidInput(
      'lease.invalid_name',
      `'${name}' must have 1 to ${LONGEST_NAME} characters.`,
    );
  }
  const key = parseOfferId(id);
  if (key === null || (known.length > 0 && !known.some(({ type }) => type === key.gpuType))) {
    throw invalidInput('lease.unknown_offer', `RunPod has no offer '${id}'; see its catalog.`);
  }
  if (key.count !== gpuCount) {
    const message = `The offer '${id}' has ${key.count} GPUs, and ${gpuCount} are wished for.`;
    throw invalidInput('lease.unknown_offer', message);
  }
  const price = known.find((offer) => offer.id === id)?.pricePerHour ?? null;
  if (price !== null) checkPrice(id, price, maxPricePerHour);
  return key.gpuType;
}

/** Throws NoCapacity where it costs more than is wished, or nobody knows what: another offer may cost less. */
export function checkPrice(what: string, pricePerHour: number | null, most: number | null): void {
  if (most === null || (pricePerHour !== null && pricePerHour <= most)) return;
  const costs = pricePerHour === null ? 'has no known price' : `costs ${pricePerHour} USD an hour`;
  const message = `'${what}' ${costs}, and at most ${most} USD an hour are allowed.`;
  throw new SluiceError('NoCapacity', 'lease.no_capacity', message);
}

/** The volume of this id, or else of this name. Throws InvalidInput where there is not exactly one. */
export function pickVolume(volumes: readonly Volume[], wished: string): Volume {
  const named = volumes.filter(({ name }) => name === wished);
  const found = volumes.find(({ id }) => id === wished) ?? named[0];
  if (found === undefined) {
    const message = `RunPod has no network volume '${wished}' in this account.`;
    throw invalidInput('lease.unknown_volume', message);
  }
  if (found.id !== wished && named.length > 1) {
    const ids = named.map(({ id }) => id).join(', ');
    const message = `RunPod has several network volumes named '${wished}': name one by its id (${ids}).`;
    throw invalidInput('lease.unknown_volume', message);
  }
  return found;
}

/**
 * The data centers that are asked for, one create after the other; an empty list is anywhere. A wish's regions come one
 * by one, because RunPod takes several in no order; a volume is where it is.
 */
export function placesOf(
  regions: readonly string[],
  preset: readonly string[],
  volume: Volume | null,
): (readonly string[])[] {
  if (volume === null) return regions.length === 0 ? [preset] : regions.map((region) => [region]);
  const { id, dataCenter } = volume;
  const allowed = regions.length === 0 ? preset : regions;
  if (allowed.length > 0 && !allowed.includes(dataCenter)) {
    const message = `The network volume '${id}' is in ${dataCenter}, and machines are wished for in ${allowed.join(', ')} only.`;
    throw invalidInput('lease.unknown_volume', message);
  }
  return [[dataCenter]];
}
