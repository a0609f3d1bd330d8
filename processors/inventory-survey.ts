import { describeError } from '../src/domain/errors.ts';
import { answerable, judge } from '../src/domain/inventory.ts';
import type { ListedMachine, MachineOwner, MachineVerdict } from '../src/domain/inventory.ts';
import { parseMachineName } from '../src/domain/lease.ts';
import { LEASE_PROVIDERS } from '../src/domain/provision.ts';
import type { LeaseProvider } from '../src/domain/provision.ts';
import type { Machine } from '../src/resources/lease-contract.ts';
import type { Store } from '../src/store/store.ts';
import { whyDoubtful } from './collect-census.ts';
import type { CensusDeps } from './collect-census.ts';
import type { Log } from './deps.ts';
import type { Inventory, Leasing } from './leasing.ts';

/** Records of provisions, as far as machines are looked up in them. */
export type MachineRecords = Pick<Store['provisions'], 'byKey' | 'unreleased' | 'attempt'> & {
  get(id: string): Promise<MachineOwner | null>;
};

export interface SurveyDeps extends CensusDeps {
  store: {
    collect: CensusDeps['store']['collect'];
    machines: Pick<Store['machines'], 'orphans'>;
    provisions: Omit<MachineRecords, 'attempt'>;
  };
  leasing: Pick<Leasing, 'stamp' | 'manager' | 'inventory'>;
  log: Log;
}

/** A machine with what our records say of it. */
export interface Judged {
  provider: LeaseProvider;
  machine: Machine;
  verdict: MachineVerdict;
  /** The provision that answers for it; null: no record does. */
  record: MachineOwner | null;
}

/** What can be told of all providers at a moment. */
export interface MachineSurvey {
  machines: Judged[];
  /** Providers that did not answer, with the reason. */
  failures: { provider: LeaseProvider; reason: string }[];
}

/** The providers that this process leases from. */
export function enabledProviders({ manager }: Pick<Leasing, 'manager'>): LeaseProvider[] {
  return LEASE_PROVIDERS.filter((provider) => manager(provider) !== null);
}

/** Whose each machine is that carries our stamp; changes nothing. */
export async function surveyMachines(maxAgeMs: number, deps: SurveyDeps): Promise<MachineSurvey> {
  const survey: MachineSurvey = { machines: [], failures: [] };
  for (const provider of enabledProviders(deps.leasing)) {
    try {
      const inventory = await deps.leasing.inventory(provider, maxAgeMs);
      survey.machines.push(...(await judgeMachines(provider, inventory, deps)));
    } catch (error) {
      survey.failures.push({ provider, reason: describeError(error) });
    }
  }
  return survey;
}

/**
 * Judges machines of a list by the records as they are now, which are therefore younger than the list: what it shows
 * was on record before it was asked for. Without `only`, all of the list but those of others. One whose record cannot
 * be read is left out and logged.
 */
export async function judgeMachines(
  provider: LeaseProvider,
  { at, machines }: Inventory,
  deps: SurveyDeps,
  only?: (machine: Machine) => boolean,
): Promise<Judged[]> {
  const { stamp } = deps.leasing;
  const listed = machines.map((machine) => ({ ...machine, provider }));
  if (listed.length === 0) return [];
  const { claims, doubt: unread } = await readClaims(deps);
  const since = await deps.store.machines.orphans.of(provider);
  // Asking the storage is dear, and needed only where there is an orphan that nothing else spares.
  let doubt: Promise<string | null> | null = null;
  const judged: Judged[] = [];

  async function judgeOne(machine: Machine & ListedMachine): Promise<void> {
    const record = answerable(machine, claims, await recordByKey(machine, deps));
    const namesakes = listed.filter(({ name }) => name === machine.name);
    const orphanSince = since.get(machine.id) ?? null;
    const evidence = { stamp, record, namesakes, orphanSince, now: at };
    let verdict = judge(machine, { ...evidence, doubt: null });
    if (verdict.is === 'foreign') return;
    if (verdict.is === 'orphan' && verdict.spared === null) {
      doubt ??= unread === null ? whyInDoubt(deps) : Promise.resolve(unread);
      verdict = judge(machine, { ...evidence, doubt: await doubt });
    }
    judged.push({ provider, machine, verdict, record });
  }

  for (const machine of listed) {
    if (only !== undefined && !only(machine)) continue;
    try {
      await judgeOne(machine);
    } catch (err) {
      const fields = { provider, machine: machine.id, name: machine.name, err };
      deps.log.error(fields, 'it cannot be told whose a machine is');
    }
  }
  return judged;
}

/** By the census that collecting the storage keeps, and with what ends such a doubt. */
async function whyInDoubt(deps: SurveyDeps): Promise<string | null> {
  const doubt = await whyDoubtful(deps);
  if (doubt === null) return null;
  return `${doubt} If Redis is the right one and whole, run sluice gc --confirm.`;
}

/** Of those that cannot be read nobody knows what they have, so that no machine is without a record for sure. */
async function readClaims({
  store: { provisions },
  log,
}: SurveyDeps): Promise<{ claims: MachineOwner[]; doubt: string | null }> {
  const claims: MachineOwner[] = [];
  let doubt: string | null = null;
  for await (const id of provisions.unreleased()) {
    try {
      const record = await provisions.get(id);
      if (record !== null && record.attempts.length > 0) claims.push(record);
    } catch (err) {
      log.error({ provision: id, err }, 'the record of a provision cannot be read');
      doubt = `The record of provision ${id} cannot be read.`;
    }
  }
  return { claims, doubt };
}

/** The provision that the key in a machine's name leads to, or whoever took the machine over from there. */
async function recordByKey(
  machine: Pick<Machine, 'name'>,
  { store: { provisions }, leasing }: SurveyDeps,
): Promise<MachineOwner | null> {
  const parsed = parseMachineName(machine.name, leasing.stamp);
  const id = parsed === null ? null : await provisions.byKey(parsed.key);
  let record = id === null ? null : await provisions.get(id);
  const seen = new Set<string>();
  while (record !== null && record.handedTo !== null && !seen.has(record.id)) {
    seen.add(record.id);
    // While it is found out whether the other one took the machine, its id has a mark before it.
    const taker: MachineOwner | null = await provisions.get(record.handedTo.replace(/^!/, ''));
    if (taker === null || !taker.attempts.some(({ name }) => name === machine.name)) break;
    record = taker;
  }
  // What became of a machine that was handed over to somebody who does not know it, nobody can tell.
  return record?.state === 'released' && record.handedTo !== null ? null : record;
}
