import { describeError } from '../src/domain/errors.ts';
import type { LeaseProvider } from '../src/domain/provision.ts';
import type { Metrics } from '../src/observability/metrics.ts';
import type { LeaseManager, Machine } from '../src/resources/lease-contract.ts';
import type { Store } from '../src/store/store.ts';
import { enabledProviders, judgeMachines } from './inventory-survey.ts';
import type { Judged, MachineRecords, SurveyDeps } from './inventory-survey.ts';
import { seen } from './lease-task.ts';
import type { Inventory } from './leasing.ts';

export interface InventoryDeps extends SurveyDeps {
  store: SurveyDeps['store'] & { machines: Store['machines']; provisions: MachineRecords };
  metrics: Pick<Metrics, 'machines' | 'leakedMachines'>;
  /** ms; only differences count. */
  now(): number;
}

export interface InventorySweep {
  /** Compares all inventories with the records, if this process has the lease; false when another one has it. */
  round(signal: AbortSignal): Promise<boolean>;
  /** Lets another process compare at once. */
  close(): Promise<void>;
}

/** Longer than a provider's list and what is done about it takes; nothing is destroyed once it is over. */
const LEASE_MS = 120_000;
const FIRST_AGAIN_MS = 15_000;
const LONGEST_AGAIN_MS = 120_000;
/** A machine that is still there so long after the first destroy is a person's business. */
const ALARM_MS = 10 * 60_000;
const SAY_AGAIN_MS = 10 * 60_000;
/** What is not listed for so long is gone; a list may leave one out for a moment. */
const FORGET_MS = 3_600_000;

/** What this process did about a machine; who sweeps after it begins anew, which does no harm. */
interface Tried {
  tries: number;
  at: number;
  answer: 'gone' | 'going' | 'failed';
}

interface Sweep extends InventoryDeps {
  holder: string;
  tried: Map<string, Tried>;
  /** Whether this is to be said now: the same is said again after a while only. */
  says(what: string): boolean;
}

/**
 * Finds machines of this deployment that nobody needs any more, whatever died before it gave them back, and destroys
 * them: at once those that our records name and have no use for, and with great care those that no record names. What is
 * destroyed is judged again right before, by what the records say then.
 */
export function createInventorySweep(holder: string, deps: InventoryDeps): InventorySweep {
  const said = new Map<string, number>();
  function says(what: string): boolean {
    const now = deps.now();
    for (const [each, at] of said) if (now - at >= SAY_AGAIN_MS) said.delete(each);
    if (said.has(what)) return false;
    said.set(what, now);
    return true;
  }
  const sweep: Sweep = { ...deps, holder, tried: new Map(), says };
  return {
    async round(signal) {
      for (const provider of enabledProviders(deps.leasing)) {
        if (signal.aborted) return true;
        if (!(await deps.store.machines.sweep.lease(holder, LEASE_MS))) {
          // Whoever compares tells; two that do would be added up.
          deps.metrics.machines.reset();
          deps.metrics.leakedMachines.reset();
          return false;
        }
        await sweepProvider(provider, signal, sweep);
      }
      return true;
    },
    async close() {
      await deps.store.machines.sweep.yield(holder);
    },
  };
}

async function sweepProvider(
  provider: LeaseProvider,
  signal: AbortSignal,
  sweep: Sweep,
): Promise<void> {
  const manager = sweep.leasing.manager(provider);
  if (manager === null) return;
  try {
    const inventory = await sweep.leasing.inventory(provider, 0);
    const judged = await judgeMachines(provider, inventory, sweep);
    const known = await forgetOld(provider, judged, inventory, sweep);
    await adoptAll(judged, sweep);
    for (const each of judged.toSorted(orphansLast)) {
      if (signal.aborted) return;
      if (!(await dealWith(each, inventory, manager, sweep))) break;
    }
    count(provider, judged, known, sweep);
  } catch (err) {
    sweep.log.warn({ provider, err }, 'the machines of a provider could not be compared');
  }
}

function orphansLast(one: Judged, other: Judged): number {
  return Number(one.verdict.is === 'orphan') - Number(other.verdict.is === 'orphan');
}

/** Drops what was noted of machines that are wanted now, or are gone; returns those that were found before. */
async function forgetOld(
  provider: LeaseProvider,
  judged: readonly Judged[],
  { at }: Inventory,
  { store: { machines }, tried }: Sweep,
): Promise<Set<string>> {
  const known = new Set<string>();
  const fates = new Map(judged.map(({ machine, verdict }) => [machine.id, verdict.is]));
  for (const kind of ['orphans', 'destroyed'] as const) {
    for (const [id, since] of await machines[kind].of(provider)) {
      const fate = fates.get(id);
      const isOver = fate === undefined ? at - since > FORGET_MS : !isLeft(fate, kind);
      if (isOver) await machines[kind].forget({ provider, id });
      else known.add(id);
    }
  }
  for (const key of tried.keys()) {
    if (key.startsWith(`${provider} `) && !fates.has(key.slice(provider.length + 1))) {
      tried.delete(key);
    }
  }
  return known;
}

function isLeft(fate: Judged['verdict']['is'], kind: 'orphans' | 'destroyed'): boolean {
  return fate === 'orphan' || (kind === 'destroyed' && fate === 'unwanted');
}

/** Writes the ids of machines whose attempt has none: whoever asked for them died, or got no answer. */
async function adoptAll(
  judged: readonly Judged[],
  { store: { provisions }, log }: Sweep,
): Promise<void> {
  for (const { provider, machine, verdict, record } of judged) {
    if (!('adopt' in verdict) || verdict.adopt === null || record === null) continue;
    const news = { state: 'there', ...seen(machine) } as const;
    if (!(await provisions.attempt(record.id, verdict.adopt, news))) continue;
    const fields = { provider, machine: machine.id, name: machine.name, provision: record.id };
    log.info(fields, 'a machine was found by its name');
  }
}

/** Destroys a machine that is to go, if its time has come; false when this process must not do so any more. */
async function dealWith(
  { provider, machine, verdict }: Judged,
  inventory: Inventory,
  manager: LeaseManager,
  sweep: Sweep,
): Promise<boolean> {
  if (verdict.is !== 'unwanted' && verdict.is !== 'orphan') return true;
  const { machines } = sweep.store;
  const ref = { provider, id: machine.id };
  if (verdict.is === 'orphan') await machines.orphans.note(ref);
  if (verdict.is === 'orphan' && verdict.spared !== null) {
    const fields = { ...fieldsOf(provider, machine), reason: verdict.spared };
    if (sweep.says(`${provider} ${machine.id} ${verdict.spared}`)) {
      sweep.log.warn(fields, 'a machine that no record names is left alone');
    }
    return true;
  }
  const last = sweep.tried.get(keyOf(ref));
  if (last !== undefined && sweep.now() - last.at < againMs(last.tries)) return true;
  const again = await judgeAgain(provider, machine, verdict.is, inventory, sweep);
  if (again === null) return true;
  const since = await machines.destroyed.note(ref);
  alarm(provider, machine, inventory.at - since, sweep);
  // Last of all: a process that was stopped in between may have slept for hours.
  if (!(await machines.isSweeping(sweep.holder))) return false;
  await destroy(provider, machine, again, manager, sweep);
  return true;
}

function againMs(tries: number): number {
  return Math.min(LONGEST_AGAIN_MS, FIRST_AGAIN_MS * 2 ** (tries - 1));
}

function keyOf({ provider, id }: { provider: LeaseProvider; id: string }): string {
  return `${provider} ${id}`;
}

function fieldsOf(provider: LeaseProvider, { id, name, pricePerHour }: Machine) {
  return { provider, machine: id, name, price_per_hour: pricePerHour };
}

/**
 * Why a machine still is to go by the records as they are now; null: it is not. Of an orphan the list, too, is read again.
 */
async function judgeAgain(
  provider: LeaseProvider,
  { id }: Machine,
  was: 'unwanted' | 'orphan',
  inventory: Inventory,
  sweep: Sweep,
): Promise<string | null> {
  const list = was === 'orphan' ? await sweep.leasing.inventory(provider, 0) : inventory;
  const [found] = await judgeMachines(provider, list, sweep, (each) => each.id === id);
  const verdict = found?.verdict;
  if (verdict?.is === 'unwanted') return verdict.why;
  const isProven = was === 'orphan' && verdict?.is === 'orphan' && verdict.spared === null;
  return isProven ? 'no record names it' : null;
}

function alarm(provider: LeaseProvider, machine: Machine, ms: number, sweep: Sweep): void {
  if (ms < ALARM_MS || !sweep.says(`${provider} ${machine.id} alarm`)) return;
  const fields = { ...fieldsOf(provider, machine), minutes: Math.floor(ms / 60_000) };
  sweep.log.error(fields, 'a machine is still there long after it was destroyed, and may cost');
}

async function destroy(
  provider: LeaseProvider,
  machine: Machine,
  reason: string,
  manager: LeaseManager,
  { tried, now, log }: Sweep,
): Promise<void> {
  const key = keyOf({ provider, id: machine.id });
  const tries = (tried.get(key)?.tries ?? 0) + 1;
  const fields = { ...fieldsOf(provider, machine), reason, tries };
  log.warn(fields, 'a machine that nobody needs is destroyed');
  let answer: Tried['answer'] = 'failed';
  try {
    answer = await manager.destroy(machine.id);
  } catch (error) {
    log.warn({ ...fields, error: describeError(error) }, 'a machine could not be destroyed');
  }
  tried.set(key, { tries, at: now(), answer });
}

/** A machine counts as leaked from the second look on that finds it: what is given back is there for a moment. */
function count(
  provider: LeaseProvider,
  judged: readonly Judged[],
  known: ReadonlySet<string>,
  { metrics, tried }: Sweep,
): void {
  for (const state of ['booting', 'running', 'stopping'] as const) {
    const there = judged.filter(({ machine }) => machine.state === state);
    metrics.machines.set({ provider, state }, there.length);
  }
  const leaked = judged.filter(({ machine: { id }, verdict }) => {
    const isLeft = verdict.is === 'unwanted' || verdict.is === 'orphan';
    return isLeft && known.has(id) && tried.get(keyOf({ provider, id }))?.answer !== 'gone';
  });
  metrics.leakedMachines.set({ provider }, leaked.length);
}
