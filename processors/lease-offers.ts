import { chooseOffers, orderOffers, requireOffer } from '../src/domain/choose-offer.ts';
import { canAfford, jobCost, toUsd } from '../src/domain/cost.ts';
import { describeError, invalidInput, SluiceError, transient } from '../src/domain/errors.ts';
import { gpuWishes } from '../src/domain/gpu-wish.ts';
import type { JobResources, LeaseAttempt } from '../src/domain/lease.ts';
import type { LeaseProvider, ProvisionRecord } from '../src/domain/provision.ts';
import { rentalsOf } from '../src/domain/rentals.ts';
import type { Offer } from '../src/resources/contract.ts';
import type { Deps } from './deps.ts';
import type { Leasing } from './leasing.ts';

/** A machine that may be asked for: an offer of a provider that this process has settings for. */
export interface Candidate {
  provider: LeaseProvider;
  offer: Offer;
}

/** A machine that came and was of no use may be met again at the same provider for about so long. */
const USELESS_MS = 10 * 60_000;
/** A machine is leased only where it, and all that are paid for, can be paid for so long: to start, and be of some use. */
const LEAST_PAID_MS = 5 * 60_000;

/**
 * The machines that may be asked for now, best first. Throws as `requireOffer` does where there is none, and
 * `lease.unavailable` (Transient) where no catalog could be read.
 */
export async function candidates(
  resources: JobResources,
  leasing: Leasing,
  { leases }: Pick<Deps['store'], 'leases'>,
): Promise<Candidate[]> {
  const measured = leasing.policy === 'fastest' ? await leases.speeds(resources.templateId) : [];
  const speeds = new Map(
    [...measured].map(([type, { tokensPerSecond }]) => [type, tokensPerSecond]),
  );
  const { offers, away } = await readCatalogs(resources.providers, leasing);
  const rules = { policy: leasing.policy, speeds };
  const found: Offer[] = [];
  let refusal: unknown;
  for (const wish of gpuWishes(resources)) {
    const choice = chooseOffers(offers, wish, rules);
    try {
      requireOffer(choice, wish);
      found.push(...choice.candidates);
    } catch (error) {
      // That one of several cannot be had now may pass; that there is no such GPU will not.
      const isPassing = error instanceof SluiceError && error.kind === 'NoCapacity';
      if (refusal === undefined || isPassing) refusal = error;
    }
  }
  // That the others have no such GPU says nothing of the one that is away.
  if (found.length === 0) throw away ?? refusal;
  return orderOffers(found, rules).flatMap((offer) => {
    const provider = resources.providers.find((each) => each === offer.provider);
    return provider === undefined ? [] : [{ provider, offer }];
  });
}

async function readCatalogs(
  providers: readonly LeaseProvider[],
  leasing: Leasing,
): Promise<{ offers: Offer[]; away: SluiceError | null }> {
  const managers = providers.flatMap((provider) => leasing.manager(provider) ?? []);
  if (managers.length === 0) {
    const message = `This process has no settings for ${providers.join(', ')}: set their credentials.`;
    throw transient('lease.no_settings', message);
  }
  const answers = await Promise.allSettled(managers.map((manager) => manager.catalog()));
  const offers = answers.flatMap((each) => (each.status === 'fulfilled' ? each.value : []));
  const failed = answers.filter((each) => each.status === 'rejected').map(toSluiceError);
  // One provider that is away must not keep a job from the others.
  const away = failed.find(({ kind }) => kind === 'Transient') ?? null;
  const worst = away ?? failed[0];
  if (worst !== undefined && offers.length === 0) throw worst;
  return { offers, away };
}

function toSluiceError({ reason }: PromiseRejectedResult): SluiceError {
  if (reason instanceof SluiceError) return reason;
  return transient('lease.unavailable', describeError(reason), { cause: reason });
}

/**
 * The first candidate that was not refused just now; null: none is left to be asked. What came and was of no use is
 * asked again only where nothing else is left. Throws InvalidInput `lease.too_dear` where the job can pay for none.
 */
export function nextCandidate(
  found: readonly Candidate[],
  provision: Pick<ProvisionRecord, 'attempts'>,
  all: readonly ProvisionRecord[],
  resources: JobResources,
  now: number,
): Candidate | null {
  const open = affordable(found, all, resources, now).filter(
    (candidate) =>
      !provision.attempts.some((attempt) => isSame(attempt, candidate) && isRefused(attempt, now)),
  );
  const useful = open.find(
    (candidate) =>
      !provision.attempts.some((attempt) => isSame(attempt, candidate) && wasUseless(attempt, now)),
  );
  return useful ?? open[0] ?? null;
}

function affordable(
  found: readonly Candidate[],
  all: readonly ProvisionRecord[],
  resources: JobResources,
  now: number,
): readonly Candidate[] {
  const rentals = rentalsOf(all);
  const paid = found.filter(({ provider, offer }) =>
    canAfford(resources, rentals, { ...offer, provider }, now, LEAST_PAID_MS),
  );
  if (found.length === 0 || paid.length > 0) return paid;
  const { cost } = jobCost(rentals, now);
  throw invalidInput(
    'lease.too_dear',
    `max_cost_usd is $${resources.maxCostUsd}, of which $${toUsd(cost)} is spent: that does not pay for five more minutes of any ` +
      'machine that fits. Raise it for a copy of this job; what was answered is kept.',
  );
}

function isSame(
  attempt: Pick<LeaseAttempt, 'provider' | 'offer'>,
  { provider, offer }: Candidate,
): boolean {
  return attempt.provider === provider && attempt.offer === offer.id;
}

function isRefused({ notBefore }: LeaseAttempt, now: number): boolean {
  return notBefore !== null && now < notBefore;
}

function wasUseless({ state, machine, askedAt }: LeaseAttempt, now: number): boolean {
  return machine !== null && state !== 'there' && now - askedAt < USELESS_MS;
}
