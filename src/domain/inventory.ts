import { isOver, parseMachineName } from './lease.ts';
import type { LeaseAttempt } from './lease.ts';
import type { LeaseProvider, ProvisionRecord } from './provision.ts';

/** A machine as far as its provider's list matters here. */
export interface ListedMachine {
  provider: LeaseProvider;
  id: string;
  name: string;
  state: 'booting' | 'running' | 'stopping' | 'gone';
  /** By the provider's word, ms since 1970; null where it does not say. */
  createdAt: number | null;
}

/** A provision as far as it may own a machine. */
export type MachineOwner = Pick<
  ProvisionRecord,
  'id' | 'job' | 'state' | 'attempts' | 'current' | 'handedTo' | 'isDestroying'
>;

/** What is known of a machine beside itself. */
export interface Evidence {
  /** Begins the names of all machines of this deployment. */
  stamp: string;
  /** The provision that is `answerable` for it; null: there is none. */
  record: MachineOwner | null;
  /** All machines of that name at that provider, itself included. */
  namesakes: readonly ListedMachine[];
  /** When a look found first that no record names it, Redis time in ms; null: none did. */
  orphanSince: number | null;
  /** Why the records may not be whole, or not the right ones; null: nothing is wrong. */
  doubt: string | null;
  /** When the list was asked for, Redis time in ms. */
  now: number;
}

/**
 * What becomes of a listed machine. `foreign`: not ours, and never touched. `gone`: costs nothing any more. `wanted`:
 * stays. `unwanted`: our record names it, and has no use for it: destroyed at once. `orphan`: has our stamp and no
 * record names it: stays while `spared` says why, and is destroyed when that is null. `adopt` is the number of the
 * attempt whose machine it is and that does not have its id yet.
 */
export type MachineVerdict =
  | { is: 'foreign' | 'gone' }
  | { is: 'wanted'; adopt: number | null }
  | { is: 'unwanted'; why: string; adopt: number | null }
  | { is: 'orphan'; spared: string | null };

/** An orphan is found so far apart at least, before anything is done about it. */
export const ORPHAN_APART_MS = 5 * 60_000;
/** Longer than anybody may be between asking for a machine and having it on record. */
export const ORPHAN_AGE_MS = 15 * 60_000;

/** Decides on one machine of a whole list; the same evidence gives the same verdict. */
export function judge(machine: ListedMachine, evidence: Evidence): MachineVerdict {
  if (!machine.name.startsWith(`${evidence.stamp}-`)) return { is: 'foreign' };
  if (machine.state === 'gone') return { is: 'gone' };
  const { record } = evidence;
  const attempt = record === null ? null : attemptOf(machine, record);
  // A record that does not know the attempt has lost some, or is not the machine's: no proof of anything.
  if (record === null || attempt === null) {
    return { is: 'orphan', spared: whySpared(machine, evidence) };
  }
  const double = whyDouble(machine, attempt, evidence.namesakes);
  const lacksId = attempt.machine === null && double === null && !isOver(attempt);
  const adopt = lacksId && record.state !== 'released' ? attempt.n : null;
  const why = whyUnwanted(attempt, record) ?? double;
  return why === null ? { is: 'wanted', adopt } : { is: 'unwanted', why, adopt };
}

/**
 * The attempt under which a provision has a machine, or had it; null also where another one has it now. A machine that
 * came back from another provision is that of the later attempt.
 */
function attemptOf(
  { provider, name }: Pick<ListedMachine, 'provider' | 'name'>,
  { attempts }: Pick<MachineOwner, 'attempts'>,
): LeaseAttempt | null {
  const found = attempts.findLast((each) => each.provider === provider && each.name === name);
  return found === undefined || found.state === 'handed' ? null : found;
}

function whyUnwanted(attempt: LeaseAttempt, record: MachineOwner): string | null {
  if (record.state === 'released') return 'its provision is released';
  // Until that is decided another job's provision may take it over.
  if (record.state === 'releasing' && record.isDestroying) return 'its provision is being released';
  if (attempt.n !== record.current) return 'its provision has gone on to another machine';
  if (attempt.state === 'leaving') return 'it is being given back';
  return isOver(attempt) ? 'it was taken to be gone, or never to have been' : null;
}

function whyDouble(
  machine: ListedMachine,
  attempt: LeaseAttempt,
  namesakes: readonly ListedMachine[],
): string | null {
  const kept = attempt.machine ?? namesakes.toSorted(byAge)[0]?.id ?? machine.id;
  return kept === machine.id ? null : `it is a second one of its name, beside ${kept}`;
}

/** Those that can be used first, then the oldest: whoever adopts by name takes the same one. */
function byAge(one: ListedMachine, other: ListedMachine): number {
  const rank = usable(other) - usable(one);
  const age = (one.createdAt ?? Number.MAX_VALUE) - (other.createdAt ?? Number.MAX_VALUE);
  return rank || age || (one.id < other.id ? -1 : 1);
}

function usable({ state }: ListedMachine): number {
  if (state === 'booting' || state === 'running') return 2;
  return state === 'stopping' ? 1 : 0;
}

/** Why nothing is done about an orphan yet; null: it may go. */
function whySpared(
  { name, createdAt }: ListedMachine,
  { stamp, orphanSince, doubt, now }: Evidence,
): string | null {
  const parsed = parseMachineName(name, stamp);
  if (parsed === null) return 'its name does not say how old it is';
  const youngest = Math.max(parsed.at, createdAt ?? parsed.at);
  if (!(now - youngest > ORPHAN_AGE_MS)) return 'it is younger than 15 minutes';
  if (orphanSince === null || !(now - orphanSince >= ORPHAN_APART_MS)) {
    return 'it was not found so 5 minutes ago';
  }
  return doubt;
}

/**
 * The provision that answers for a machine; null: none does. Of those that are not released, and the one that the key
 * of its name leads to, it is the one that has it in use: a machine that was handed over keeps its name, and may outlive
 * the record of who leased it.
 */
export function answerable(
  machine: ListedMachine,
  unreleased: readonly MachineOwner[],
  byKey: MachineOwner | null,
): MachineOwner | null {
  const all = byKey === null ? unreleased : [byKey, ...unreleased];
  const claims = all.filter((each) => isClaim(machine, each));
  const byId = claims.find((each) => attemptOf(machine, each)?.machine === machine.id);
  return byId ?? claims.find((each) => attemptOf(machine, each)?.machine === null) ?? byKey;
}

/** What was handed over is its taker's, even where that one is about to write so. */
function isClaim(machine: ListedMachine, claim: MachineOwner): boolean {
  const attempt = claim.handedTo === null ? attemptOf(machine, claim) : null;
  return attempt !== null && whyUnwanted(attempt, claim) === null;
}
