import { describeError } from '../src/domain/errors.ts';
import type { JobRecord } from '../src/domain/job.ts';
import type { JobResources, LeaseAttempt, MachineLogin } from '../src/domain/lease.ts';
import { isReleased } from '../src/domain/provision.ts';
import type { ProvisionRecord } from '../src/domain/provision.ts';
import type { LeaseManager, Machine } from '../src/resources/lease-contract.ts';
import type { Deps } from './deps.ts';
import type { Leasing } from './leasing.ts';

/** A list that is not older shows where a machine is. */
export const LOOK_MS = 2_000;

/** What a provision that leases a machine is worked on with. */
export interface LeaseTask {
  provision: ProvisionRecord;
  job: JobRecord;
  resources: JobResources;
  leasing: Leasing;
  signal: AbortSignal;
}

/** The machine is on record before it is decided whether it is kept. */
export async function adopted(
  { provision, ...task }: LeaseTask,
  attempt: LeaseAttempt,
  machine: Machine,
  deps: Deps,
): Promise<void> {
  const { id, job } = provision;
  await deps.store.provisions.attempt(id, attempt.n, { state: 'there', ...seen(machine) });
  deps.log.info(
    { jobId: job, provisionId: id, provider: attempt.provider, machine: machine.id },
    'machine leased',
  );
  // A pod waits for its node yet, and so does its job.
  const isHosted = task.leasing.manager(attempt.provider)?.engines !== undefined;
  const change = { login: machine.ssh, ...(isHosted ? {} : { waitingSince: null }) };
  const booting = await deps.advanceProvision(provision, 'booting', change);
  if (booting !== 'stale') return;
  const now = await deps.store.provisions.get(id);
  if (now === null || isReleased(now.state) || now.current !== attempt.n) {
    const manager = task.leasing.manager(attempt.provider);
    // Whoever releases the provision, or compares inventories with the records, finds it, too.
    const news = { state: 'leaving', endedAt: deps.now() } as const;
    await deps.store.provisions.attempt(id, attempt.n, news);
    if (manager !== null) await destroyQuietly(manager, machine.id, deps);
  }
}

async function destroyQuietly(
  manager: LeaseManager,
  machine: string,
  { log }: Pick<Deps, 'log'>,
): Promise<void> {
  try {
    await manager.destroy(machine);
  } catch (error) {
    // It is on record, and given back again until the provider says that it is gone.
    log.warn({ machine, reason: describeError(error) }, 'machine could not be given back yet');
  }
}

/** What a provider shows of a machine, for the record. */
export function seen(machine: Machine) {
  return {
    machine: machine.id,
    region: machine.region,
    createdAt: machine.createdAt,
    raw: JSON.stringify(machine.raw ?? null).slice(0, MOST_RAW),
    missing: 0,
    missingSince: null,
    missingAt: null,
    ...(machine.pricePerHour === null ? {} : { pricePerHour: machine.pricePerHour }),
    ...(machine.gpuType === '' ? {} : { gpuType: machine.gpuType }),
  };
}

/** A list that was asked for sooner after a create may miss its machine. */
const YOUNG_MS = 5_000;
/** A provider's answer is a few kilobytes; one without end must not fill the record. */
const MOST_RAW = 16_384;

/** As the list shows it; one that is missing in it is asked for by its id. */
export async function findMachine(
  { leasing }: Pick<LeaseTask, 'leasing'>,
  attempt: LeaseAttempt,
  manager: LeaseManager,
): Promise<Machine | null> {
  if (attempt.machine === null) return null;
  const { machines } = await leasing.inventory(attempt.provider, LOOK_MS);
  const listed = machines.find(({ id }) => id === attempt.machine);
  return listed ?? manager.describe(attempt.machine);
}

/**
 * The same of a machine that boots. Null, too, for one that is younger than the list: the next one shows all of these,
 * and a call for each would keep that from its turn.
 */
export async function findBooting(
  { leasing }: Pick<LeaseTask, 'leasing'>,
  attempt: LeaseAttempt,
  manager: LeaseManager,
  maxAgeMs: number,
): Promise<Machine | null> {
  if (attempt.machine === null) return null;
  const { at, machines } = await leasing.inventory(attempt.provider, maxAgeMs);
  const listed = machines.find(({ id }) => id === attempt.machine);
  if (listed !== undefined || at < attempt.askedAt + YOUNG_MS) return listed ?? null;
  return manager.describe(attempt.machine);
}

export function isSameLogin(one: MachineLogin, other: MachineLogin | null): boolean {
  return (
    other !== null && one.host === other.host && one.port === other.port && one.user === other.user
  );
}
