import type { Verdict } from '../queues/worker.ts';
import { isOfUse } from '../src/domain/lease.ts';
import type { LeaseAttempt, MachineLogin } from '../src/domain/lease.ts';
import { currentAttempt, machineProvider } from '../src/domain/provision.ts';
import type { ProvisionRecord } from '../src/domain/provision.ts';
import type { MachineSite } from '../src/runtimes/contract.ts';
import type { Deps } from './deps.ts';
import { endJob, ensureEngine, keepUnreachable } from './engine-run.ts';
import { ensureHostedEngine, hostedEngines } from './hosted-engine.ts';
import type { Leasing } from './leasing.ts';
import { findMachine, isSameLogin, seen } from './lease-task.ts';
import type { LeaseTask } from './lease-task.ts';
import { say } from './say.ts';
import { fillLeftSlots, settle } from './settle.ts';

const TRY_AGAIN_MS = 1_000;
/** A machine that its provider shows as running is given up after so long without a way to it. */
const UNREACHABLE_MS = 3 * 60_000;
/** So many machines of one slot that were lost soon after they came are no bad luck. */
const MOST_MACHINES = 5;
/** One that was of use for longer came to something: those that may be taken away are, now and then. */
const OF_USE_MS = 3 * 60 * 60_000;

/** The machine of a provision as one logs in to it; null where that is not known. */
export function siteOf(
  provision: ProvisionRecord,
  leasing: Pick<Leasing, 'publicUrl'>,
): MachineSite | null {
  const attempt = currentAttempt(provision);
  if (attempt === null || provision.login === null) return null;
  const { hostKey } = attempt;
  const provider = machineProvider(attempt.provider);
  if (provider === null) return null;
  const publicUrl = leasing.publicUrl(attempt);
  return {
    provider,
    login: provision.login,
    hostKey,
    ...(publicUrl === null ? {} : { publicUrl }),
  };
}

/** The same as `ensureEngine` on a leased machine: one that is lost is given back, and another one leased. */
export async function ensureLeasedEngine(task: LeaseTask, deps: Deps): Promise<Verdict | null> {
  const { provision, leasing, ...rest } = task;
  const lost = async (reason: string) => replaceMachine(task, reason, deps);
  const hosted = hostedEngines(provision, leasing);
  if (hosted !== null) return ensureHostedEngine({ ...task, lost }, hosted, deps);
  const attempt = currentAttempt(provision);
  const site = siteOf(provision, leasing);
  const { machines } = leasing;
  if (attempt === null || site === null || machines === null) {
    return replaceMachine(task, 'It has no machine on record.', deps);
  }
  return ensureEngine(
    {
      ...rest,
      provision,
      site,
      machines,
      unreachable: async (reason) => unreachable(task, attempt, reason, deps),
      lost,
    },
    deps,
  );
}

/** The machine may be gone, or be at another address; or the way to it is cut for a while. */
async function unreachable(
  task: LeaseTask,
  attempt: LeaseAttempt,
  reason: string,
  deps: Deps,
): Promise<Verdict> {
  const { provision, leasing } = task;
  const since = await keepUnreachable(provision, deps);
  await say(task, reason, deps);
  const manager = leasing.manager(attempt.provider);
  if (manager !== null) {
    const machine = await findMachine(task, attempt, manager);
    // What is stopping was taken away, and is paid for without coming back.
    if (machine === null || !isOfUse(machine)) {
      const why = machine?.reason ? ` (${machine.reason})` : '';
      return replaceMachine(task, `The machine ${attempt.machine} is gone${why}.`, deps);
    }
    await deps.store.provisions.attempt(provision.id, attempt.n, seen(machine));
    await follow(task, attempt, machine.ssh, deps);
  }
  if (deps.now() - since > UNREACHABLE_MS) {
    return replaceMachine(task, `It could not be reached for 3 minutes: ${reason}`, deps);
  }
  return { againInMs: TRY_AGAIN_MS };
}

/** A machine may get another address while it runs: all who have a way to it ask for it anew. */
async function follow(
  { provision }: LeaseTask,
  attempt: LeaseAttempt,
  login: MachineLogin | null,
  deps: Deps,
): Promise<void> {
  if (login === null || isSameLogin(login, provision.login)) return;
  await deps.store.provisions.keep(provision.id, { login });
  deps.log.warn(
    { provisionId: provision.id, machine: attempt.machine, host: login.host, port: login.port },
    'machine has another address',
  );
}

/** Gives a machine back that is of no use any more, and has its slot get another one. */
async function replaceMachine(task: LeaseTask, reason: string, deps: Deps): Promise<Verdict> {
  const { provision, job } = task;
  const all = await deps.store.provisions.ofJob(job.id);
  const lost = all.filter(
    (each) => each.slot === provision.slot && each.reason !== '' && isRecent(each, deps.now()),
  );
  if (lost.length >= MOST_MACHINES) {
    const message = `${MOST_MACHINES} machines came to nothing one after the other. The last one: ${reason}`;
    await endJob(task, 'machines_lost', message, deps, 'resource_failed');
    return 'done';
  }
  deps.log.warn({ jobId: job.id, provisionId: provision.id, reason }, 'machine lost');
  const moved = await deps.advanceProvision(provision, 'releasing', { reason });
  if (moved === 'stale') return 'done';
  await settle(job.id, deps, { why: `A machine was lost: ${reason}` });
  const now = await deps.store.jobs.get(job.id);
  if (now !== null) await fillLeftSlots(now, await deps.store.provisions.ofJob(job.id), deps);
  return 'done';
}

function isRecent(provision: ProvisionRecord, now: number): boolean {
  const { createdAt } = provision;
  return now - (currentAttempt(provision)?.reachedAt ?? createdAt) < OF_USE_MS;
}
