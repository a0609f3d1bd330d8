import { chooseOffers, requireOffer } from '../domain/choose-offer.ts';
import { estimateCost, toUsd } from '../domain/cost.ts';
import type { MeasuredSpeed } from '../domain/cost.ts';
import { SluiceError } from '../domain/errors.ts';
import { gpuWishes } from '../domain/gpu-wish.ts';
import type { JobResources } from '../domain/lease.ts';
import type { Offer } from '../resources/contract.ts';
import type { Inspection, Warning } from './validate.ts';

/**
 * From the request for a machine to its first answer: some minutes until it has booted and its image is there, and some
 * until the weights are.
 */
const ASSUMED_START_MS = 10 * 60_000;

/** The cheapest machine that a job could get now; a warning where there is none, which may keep it waiting or end it. */
export function cheapestOffer(
  resources: JobResources,
  offers: readonly Offer[],
): { offer: Offer; warning: null } | { offer: null; warning: Warning | null } {
  const choices = gpuWishes(resources).map((wish) => ({
    wish,
    choice: chooseOffers(offers, wish, { policy: 'cheapest', speeds: new Map() }),
  }));
  const all = choices.flatMap(({ choice }) => choice.candidates);
  const [offer] = all.toSorted((a, b) => priceOf(a) - priceOf(b));
  if (offer !== undefined) return { offer, warning: null };
  const [first] = choices;
  if (first === undefined) return { offer: null, warning: null };
  try {
    requireOffer(first.choice, first.wish);
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error;
    const { code, message, param } = error;
    return { offer: null, warning: { code, message, param } };
  }
  return { offer: null, warning: null };
}

/** Those of which nobody knows what they cost come last; finite, so that two of them can be subtracted. */
function priceOf({ pricePerHour }: Offer): number {
  return pricePerHour ?? Number.MAX_VALUE;
}

/** What a job is likely to cost on machines of an offer; null is what nobody knows. */
export function costView(
  resources: JobResources,
  { lines, estimate }: Inspection,
  offer: Offer,
  measured: MeasuredSpeed | null,
) {
  const { provider, pricePerHour } = offer;
  const { replicas: machines, spec } = resources;
  const gpuCount = spec.accelerator.count;
  const { basis, outputTokens, seconds, cost } = estimateCost({
    lines,
    tokens: estimate,
    measured,
    gpuCount,
    machines,
    provider,
    pricePerHour,
    startMs: ASSUMED_START_MS,
  });
  return {
    usd: cost === null ? null : toUsd(cost),
    basis,
    seconds,
    output_tokens: outputTokens,
    provider,
    gpu_type: offer.type,
    gpu_count: gpuCount,
    replicas: machines,
    price_per_hour: pricePerHour,
  };
}
