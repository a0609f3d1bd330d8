import { describeError } from '../src/domain/errors.ts';
import { isOfUse, isOver } from '../src/domain/lease.ts';
import type { LeaseAttempt } from '../src/domain/lease.ts';
import type { ProvisionRecord } from '../src/domain/provision.ts';
import type { LeaseManager, Machine } from '../src/resources/lease-contract.ts';
import type { Deps } from './deps.ts';
import type { Leasing } from './leasing.ts';

/** A machine counts as gone that is missing, by id and name, in so many whole lists over so long. */
const MISSING_LISTS = 3;
const MISSING_MS = 90_000;
/** Where lists prove what is there: two, since what makes pods may be a moment behind what it was deleted with. */
const PROOF_LISTS = 2;
const LOOK_MS = 2_000;
/** Where nothing is paid for any more, it seems, any list will do that others have asked for. */
const CALM_LOOK_MS = 15_000;

interface Holding {
  provision: Pick<ProvisionRecord, 'id' | 'attempts' | 'current'>;
  leasing: Leasing;
}

type GiveBackDeps = Pick<Deps, 'log' | 'now'> & { store: Pick<Deps['store'], 'provisions'> };

/** Marks an attempt as given up, and gives its machine back. */
export async function giveUpAttempt(
  { provision, leasing }: Holding,
  attempt: LeaseAttempt,
  error: string,
  deps: GiveBackDeps,
): Promise<void> {
  await deps.store.provisions.attempt(provision.id, attempt.n, { state: 'leaving', error });
  // As one that is not leaving yet: it is destroyed whatever lists say of it, also where it has stopped by itself.
  await giveBack({ provision, leasing }, attempt, deps);
}

/** Goes on giving back what earlier attempts of a provision may have left. */
export async function giveBackOthers(
  { provision, leasing }: Holding,
  deps: GiveBackDeps,
): Promise<void> {
  const left = provision.attempts.filter(
    (attempt) =>
      !isOver(attempt) && (attempt.n !== provision.current || attempt.state === 'leaving'),
  );
  for (const attempt of left) await giveBack({ provision, leasing }, attempt, deps);
}

/**
 * One step towards an attempt that is over: its machine is given back, and looked at, until the provider shows that it
 * is gone, or it is missing for long enough. True where it is over. Never rejects for what the provider does.
 */
export async function giveBack(
  holding: Holding,
  attempt: LeaseAttempt,
  deps: GiveBackDeps,
): Promise<boolean> {
  const { provision, leasing } = holding;
  const manager = leasing.manager(attempt.provider);
  if (manager === null) {
    deps.log.error(
      { provisionId: provision.id, provider: attempt.provider, machine: attempt.machine },
      'a machine cannot be given back: this process has no settings for its provider',
    );
    return false;
  }
  try {
    const { machine } = attempt;
    const isGone =
      machine === null
        ? // Nobody knows what became of the create: what turns up under its name is given back.
          await isMissing(holding, attempt, ({ name }) => name === attempt.name, deps)
        : await isGivenBack(holding, attempt, machine, manager, deps);
    if (!isGone) return false;
    const state = machine === null ? 'none' : 'gone';
    // What is missing long enough to be gone was so, and cost nothing more, since it was missing first.
    const endedAt = attempt.missingSince ?? deps.now();
    // False where its machine was found meanwhile.
    return await deps.store.provisions.attempt(provision.id, attempt.n, { state, endedAt });
  } catch (error) {
    deps.log.warn(
      { provisionId: provision.id, machine: attempt.machine, reason: describeError(error) },
      'machine could not be given back yet',
    );
    return false;
  }
}

async function isGivenBack(
  holding: Holding,
  attempt: LeaseAttempt,
  machine: string,
  manager: LeaseManager,
  deps: GiveBackDeps,
): Promise<boolean> {
  if (attempt.state !== 'leaving') {
    await manager.destroy(machine);
    await deps.store.provisions.attempt(holding.provision.id, attempt.n, { state: 'leaving' });
    return false;
  }
  // That a provider knows none of that id is no proof: lists and ids were seen to lag behind.
  return isMissing(
    holding,
    attempt,
    (each) => each.id === machine || each.name === attempt.name,
    deps,
  );
}

function isEnough(lists: number, ms: number, isProof: boolean): boolean {
  return isProof ? lists >= PROOF_LISTS : lists >= MISSING_LISTS && ms >= MISSING_MS;
}

/** A list of before the machine was there proves nothing. */
function maxAgeOf({ missing }: LeaseAttempt, isProof: boolean): number {
  if (isProof) return 0;
  return missing > 0 ? CALM_LOOK_MS : LOOK_MS;
}

/** What is on its way out already is left to it. */
async function destroyAll(found: readonly Machine[], manager: LeaseManager | null): Promise<void> {
  for (const { id } of found.filter(isOfUse)) await manager?.destroy(id);
}

async function isMissing(
  { provision, leasing }: Holding,
  attempt: LeaseAttempt,
  isIt: (machine: Machine) => boolean,
  deps: GiveBackDeps,
): Promise<boolean> {
  const manager = leasing.manager(attempt.provider);
  const isProof = attempt.machine !== null && manager?.capabilities.areListsProof === true;
  const { at, machines } = await leasing.inventory(attempt.provider, maxAgeOf(attempt, isProof));
  const found = machines.filter(isIt);
  const there = found.find(({ state }) => state !== 'gone');
  if (there !== undefined) {
    const news = { machine: there.id, missing: 0, missingSince: null, missingAt: null };
    await deps.store.provisions.attempt(provision.id, attempt.n, news);
    await destroyAll(found, manager);
    return false;
  }
  // By its own word the provider has it no longer.
  if (found.length > 0) return true;
  const since = attempt.missingSince ?? at;
  const lists = attempt.missing + (at > (attempt.missingAt ?? 0) ? 1 : 0);
  if (isEnough(lists, at - since, isProof)) return true;
  if (lists > attempt.missing) {
    const news = { missing: lists, missingSince: since, missingAt: at };
    await deps.store.provisions.attempt(provision.id, attempt.n, news);
  }
  return false;
}
