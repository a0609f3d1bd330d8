import { invalidInput, SluiceError } from './errors.ts';
import { isGpu, parseGpuName } from './gpu-names.ts';
import type { GpuName } from './gpu-names.ts';

export const PLANNING_POLICIES = ['simple', 'cheapest', 'fastest'] as const;
export type PlanningPolicy = (typeof PLANNING_POLICIES)[number];

/** What a provider's catalog says of a kind of machine, as far as one is chosen by it. */
export interface GpuOffer {
  provider: string;
  id: string;
  kind: 'engine' | 'machine';
  /** GPU, as the provider spells it. */
  type: string;
  count: number | null;
  vramGb: number | null;
  /** US dollars an hour for all of it; null where nobody knows. */
  pricePerHour: number | null;
  stock: 'available' | 'unavailable' | 'unknown';
  /** Where it can be had now; empty: the provider does not say. */
  regions: readonly string[];
  /** Why it cannot be had now; empty where it can. */
  error: string;
  /** May be taken away in mid-use; missing where the provider sells both as one offer. */
  interruptible?: boolean;
  /** Of its processors; missing or null: nobody knows. */
  architecture?: 'x86_64' | 'arm64' | null;
}

/** What a job wants of a machine, and what it must not be. */
export interface GpuWish {
  /** As anybody spells a GPU, or the id of an offer; empty: whichever. */
  gpuType: string;
  count: number;
  /** Least memory of one GPU, GB; 0: whatever it has. */
  vramGb: number;
  /** How the GPUs of the machine are joined at least; empty, or `pcie`: however. */
  interconnect: 'nvlink' | 'pcie' | 'ib' | '';
  /** In order of preference; empty: anywhere. */
  regions: readonly string[];
  /** Whether one will do that may be taken away in mid-use. */
  interruptible: boolean;
  /** US dollars an hour for all of it; null: whatever it costs. */
  maxPricePerHour: number | null;
  /** A price must be known, as where a job has a maximum for all it costs. */
  needsPrice: boolean;
  /** In the order in which they are asked; the others are not. */
  providers: readonly string[];
}

/**
 * Why an offer is not taken. `other`: it is not what was asked for (another provider, another GPU). `limit`: it breaks a
 * limit of the wish, and will tomorrow. `capacity`: it cannot be had now.
 */
export interface Objection {
  kind: 'other' | 'limit' | 'capacity';
  reason: string;
}

export interface OfferChoice<Of extends GpuOffer> {
  /** In the order in which they are to be tried. */
  candidates: Of[];
  /** All others, each with every objection to it. */
  out: { offer: Of; objections: Objection[] }[];
}

export interface ChoiceRules {
  policy: PlanningPolicy;
  /** Tokens a second of the job's template, by GPU type as a provider spells it; only `fastest` looks at them. */
  speeds: ReadonlyMap<string, number>;
}

/**
 * The offers that fit a wish, in order: `simple` as the providers are named, `cheapest` by price, those without a known
 * price last, `fastest` by measured speed, those that were never measured after them by price. What is equal by that
 * goes by provider, preferred region, stock, price and name, so that any two processes choose alike.
 */
export function chooseOffers<Of extends GpuOffer>(
  offers: readonly Of[],
  wish: GpuWish,
  rules: ChoiceRules,
): OfferChoice<Of> {
  const candidates: Of[] = [];
  const out: OfferChoice<Of>['out'] = [];
  const asked = parseGpuName(wish.gpuType);
  for (const offer of offers) {
    const objections = [
      ...whyOther(offer, wish, asked),
      ...whyLimit(offer, wish),
      ...whyNow(offer, wish),
    ];
    if (objections.length === 0) candidates.push(offer);
    else out.push({ offer, objections });
  }
  const byPolicy = policyOrder(rules);
  const compare = (one: Of, other: Of) => byPolicy(one, other) || byDefault(one, other, wish);
  return {
    candidates: candidates.toSorted(compare),
    out: out.toSorted((one, other) => byDefault(one.offer, other.offer, wish)),
  };
}

/** Candidates of several wishes in the order in which they are to be tried; what is equal by the policy stays as it is. */
export function orderOffers<Of extends GpuOffer>(
  candidates: readonly Of[],
  rules: ChoiceRules,
): Of[] {
  return candidates.toSorted(policyOrder(rules));
}

function whyOther(offer: GpuOffer, wish: GpuWish, asked: GpuName | null): Objection[] {
  const found: string[] = [];
  if (offer.kind !== 'machine') found.push('is an engine that runs already, and nothing to lease');
  if (!wish.providers.includes(offer.provider)) {
    found.push(`the job is to be run on ${wish.providers.join(', ') || 'no provider'}`);
  }
  if (!isAskedGpu(offer, wish.gpuType, asked)) found.push(`is no ${wish.gpuType}`);
  // vLLM's own images are for both; those of others mostly for x86_64 alone, so that nobody gets one unasked.
  if (offer.architecture === 'arm64' && wish.gpuType.trim() === '') {
    found.push('has arm64 processors, and is taken only where its GPU is asked for');
  }
  return found.map((reason) => ({ kind: 'other', reason }));
}

function isAskedGpu(offer: GpuOffer, gpuType: string, asked: GpuName | null): boolean {
  const text = gpuType.trim().toLowerCase();
  if (text === '') return true;
  if (text === offer.type.toLowerCase() || text === offer.id.toLowerCase()) return true;
  const offered = gpuOf(offer);
  return asked !== null && offered !== null && isGpu(asked, offered);
}

/**
 * Without a word an H200 is the one on an SXM board, since the other kind is called H200 NVL; and a V100 is Lambda
 * Cloud's, which has none but those with SXM2, while RunPod's say which they are.
 */
const USUAL_SXM = /^(?:H200|V100)$/;

/** What is known of an offer's GPU by its type, its id and the provider's word on its memory. */
function gpuOf({ type, id, vramGb }: GpuOffer): GpuName | null {
  const gpu = parseGpuName(type);
  if (gpu === null) return null;
  const usual = USUAL_SXM.test(gpu.family) ? ('sxm' as const) : null;
  return {
    ...gpu,
    memoryGb: gpu.memoryGb ?? vramGb,
    form: gpu.form ?? parseGpuName(id)?.form ?? usual,
  };
}

function whyLimit(offer: GpuOffer, wish: GpuWish): Objection[] {
  const found = [...whySize(offer, wish), ...whyPrice(offer, wish)];
  const joined = wish.count > 1 ? whyJoined(offer, wish.interconnect) : null;
  if (joined !== null) found.push(joined);
  if (offer.interruptible === true && !wish.interruptible) {
    found.push('may be taken away in mid-use, which the job does not allow');
  }
  return found.map((reason) => ({ kind: 'limit', reason }));
}

function whySize({ count, vramGb }: GpuOffer, wish: GpuWish): string[] {
  const found: string[] = [];
  if (count !== wish.count) {
    found.push(`has ${count ?? 'an unknown number of'} GPUs, and ${wish.count} are wanted`);
  }
  if (wish.vramGb > 0 && (vramGb === null || vramGb < wish.vramGb)) {
    const memory = vramGb === null ? 'memory that nobody knows' : `${vramGb} GB`;
    found.push(`has ${memory}, and ${wish.vramGb} GB are wanted`);
  }
  return found;
}

function whyPrice({ pricePerHour: price }: GpuOffer, wish: GpuWish): string[] {
  const { maxPricePerHour: most, needsPrice } = wish;
  if (price === null) {
    const isLimited = most !== null || needsPrice;
    return isLimited ? ['has no known price, and the job has a limit to what it may cost'] : [];
  }
  return most !== null && price > most
    ? [`costs $${price} an hour, and at most $${most} may be paid`]
    : [];
}

function whyJoined(offer: GpuOffer, interconnect: GpuWish['interconnect']): string | null {
  if (interconnect === '' || interconnect === 'pcie') return null;
  if (interconnect === 'ib') {
    return 'is one machine, for which InfiniBand is no use; nvlink is what joins its GPUs';
  }
  const form = gpuOf(offer)?.form ?? null;
  return form === 'sxm' || form === 'nvl' ? null : 'is not known to join its GPUs by NVLink';
}

function whyNow(offer: GpuOffer, { regions }: GpuWish): Objection[] {
  const found: string[] = [];
  if (offer.stock === 'unavailable' || offer.error !== '') {
    found.push(offer.error === '' ? 'there is none left now' : offer.error);
  } else if (regionRank(offer, regions) === Infinity) {
    found.push(
      `is to be had in ${offer.regions.join(', ')} now, and ${regions.join(', ')} is wanted`,
    );
  }
  return found.map((reason) => ({ kind: 'capacity', reason }));
}

/** Place of the offer's best region among the preferred ones; Infinity where it has none of them. */
function regionRank({ regions }: GpuOffer, preferred: readonly string[]): number {
  if (regions.length === 0 || preferred.length === 0) return 0;
  const there = new Set(regions.map((region) => region.toLowerCase()));
  const rank = preferred.findIndex((each) => there.has(each.toLowerCase()));
  return rank < 0 ? Infinity : rank;
}

type Order = (one: GpuOffer, other: GpuOffer) => number;

function policyOrder({ policy, speeds }: ChoiceRules): Order {
  if (policy === 'simple') return () => 0;
  if (policy === 'cheapest') return byPrice;
  const speedOf = speedReader(speeds);
  return (one, other) => compare(speedOf(other) ?? -1, speedOf(one) ?? -1) || byPrice(one, other);
}

function byPrice(one: GpuOffer, other: GpuOffer): number {
  return compare(one.pricePerHour ?? Infinity, other.pricePerHour ?? Infinity);
}

const STOCK = { available: 0, unknown: 1, unavailable: 2 } as const;

function byDefault(one: GpuOffer, other: GpuOffer, { providers, regions }: GpuWish): number {
  return (
    compare(providerRank(one, providers), providerRank(other, providers)) ||
    compare(regionRank(one, regions), regionRank(other, regions)) ||
    compare(STOCK[one.stock], STOCK[other.stock]) ||
    byPrice(one, other) ||
    compare(one.provider, other.provider) ||
    compare(one.id, other.id) ||
    compare(one.regions.join(), other.regions.join())
  );
}

function providerRank({ provider }: GpuOffer, providers: readonly string[]): number {
  const rank = providers.indexOf(provider);
  return rank < 0 ? Infinity : rank;
}

/** Not by subtraction: two that are infinite are equal. */
function compare<T extends number | string>(one: T, other: T): number {
  if (one === other) return 0;
  return one < other ? -1 : 1;
}

/** The speed on a GPU, also where it was measured on one that another provider spells otherwise. */
function speedReader(speeds: ReadonlyMap<string, number>): (offer: GpuOffer) => number | null {
  const byGpu = new Map<string, number>();
  for (const [type, speed] of speeds) {
    const gpu = parseGpuName(type);
    if (gpu === null) continue;
    const key = keyOf(gpu);
    byGpu.set(key, Math.max(speed, byGpu.get(key) ?? 0));
  }
  return (offer) => {
    const gpu = gpuOf(offer);
    return speeds.get(offer.type) ?? (gpu === null ? null : (byGpu.get(keyOf(gpu)) ?? null));
  };
}

function keyOf({ family, form, memoryGb }: GpuName): string {
  return [family, form, memoryGb].join(' ');
}

/** Why each offer that is out is out, one line an offer, for people. */
export function explain({ out }: Pick<OfferChoice<GpuOffer>, 'out'>): string[] {
  return out.map(({ offer, objections }) => {
    const reasons = objections.map(({ reason }) => reason.replace(/\.$/, ''));
    return `${offer.provider} ${offer.id}: ${reasons.join('; ')}`;
  });
}

/** Names and reasons that a message can hold. */
const SHOWN = 3;

/**
 * Throws where there is no candidate: `InvalidInput` `lease.no_gpu_type` where no provider of the wish has that GPU at
 * all, `InvalidInput` `lease.no_offer` where those that there are break limits of the wish, so that waiting is no use, and
 * `NoCapacity` `lease.no_capacity` where one would do and cannot be had now.
 */
export function requireOffer(choice: OfferChoice<GpuOffer>, wish: GpuWish): void {
  if (choice.candidates.length > 0) return;
  const providers = wish.providers.join(', ') || 'no provider';
  const known = choice.out.filter(({ offer }) => wish.providers.includes(offer.provider));
  const machines = known.filter(({ offer }) => offer.kind === 'machine');
  if (machines.length === 0) {
    const message = `The catalog of ${providers} is empty now; it is asked again.`;
    throw new SluiceError('NoCapacity', 'lease.no_capacity', message);
  }
  const ofType = machines.filter(({ objections }) =>
    objections.every(({ kind }) => kind !== 'other'),
  );
  if (ofType.length === 0)
    throw noGpuType(
      machines.map(({ offer }) => offer),
      wish,
      providers,
    );
  const gone = ofType.filter(({ objections }) =>
    objections.every(({ kind }) => kind === 'capacity'),
  );
  const wanted = `${wish.count} × ${wish.gpuType || 'any GPU'}`;
  if (gone.length === 0) {
    throw invalidInput(
      'lease.no_offer',
      `No machine of ${providers} with ${wanted} is within the limits of this job: ${reasonsOf(ofType)}. ` +
        'Widen the limit that is named, or choose another GPU.',
    );
  }
  throw new SluiceError(
    'NoCapacity',
    'lease.no_capacity',
    `${wanted} cannot be had now: ${reasonsOf(gone)}. It is tried again; ` +
      'to be served sooner allow more regions, another GPU or another provider.',
  );
}

function reasonsOf(out: OfferChoice<GpuOffer>['out']): string {
  const lines = explain({ out });
  const rest = lines.length - SHOWN;
  return lines.slice(0, SHOWN).join(' · ') + (rest > 0 ? ` · and ${rest} more` : '');
}

function noGpuType(offers: readonly GpuOffer[], wish: GpuWish, providers: string): SluiceError {
  const nearest = nearestTypes(wish.gpuType, offers).map((type) => `'${type}'`);
  return invalidInput(
    'lease.no_gpu_type',
    `${providers} has no GPU called '${wish.gpuType}'. ` +
      `Set accelerator.type of the template to what is there, such as ${nearest.join(', ')}.`,
    { param: 'accelerator.type' },
  );
}

/** The GPU types that are spelled most like a text, those of the same family first. */
export function nearestTypes(text: string, offers: readonly Pick<GpuOffer, 'type'>[]): string[] {
  const asked = parseGpuName(text);
  const types = [...new Set(offers.map(({ type }) => type))].filter((type) => type !== '');
  const ranked = types.map((type) => {
    const gpu = parseGpuName(type);
    const isFamily = asked !== null && gpu?.family === asked.family;
    return { type, far: isFamily ? -1 : distance(spelling(text, asked), spelling(type, gpu)) };
  });
  const sorted = ranked.toSorted((a, b) => compare(a.far, b.far) || compare(a.type, b.type));
  return sorted.slice(0, SHOWN).map(({ type }) => type);
}

/** Long enough for the name of any GPU; comparing takes the square of it. */
const LONGEST = 64;

function spelling(text: string, gpu: GpuName | null): string {
  return (gpu?.family ?? text.toUpperCase().replaceAll(/[^A-Z0-9]/g, '')).slice(0, LONGEST);
}

/** Letters to add, drop or change to make one text of the other (Levenshtein). */
function distance(one: string, other: string): number {
  let row = Array.from({ length: other.length + 1 }, (_, i) => i);
  for (const [i, letter] of Array.from(one).entries()) {
    const next = [i + 1];
    for (const [j, match] of Array.from(other).entries()) {
      const change = (row[j] ?? 0) + (letter === match ? 0 : 1);
      next.push(Math.min(change, (row[j + 1] ?? 0) + 1, (next[j] ?? 0) + 1));
    }
    row = next;
  }
  return row.at(-1) ?? 0;
}
