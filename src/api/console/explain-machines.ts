import { currentAttempt } from '../../domain/provision.ts';
import type { LeaseAttempt } from '../../domain/lease.ts';
import { PROVISION_STATES } from '../../domain/provision.ts';
import type { ProvisionRecord } from '../../domain/provision.ts';

/** How far a job has come whose machines are leased, by the one that is the furthest; null: it has none yet. */
export function explainMachines(
  provisions: readonly ProvisionRecord[],
): { code: string; text: string; since: number } | null {
  const [first] = provisions.toSorted((a, b) => rank(b) - rank(a));
  if (first === undefined) return null;
  const { waitingSince, enteredAt, createdAt, state, reason } = first;
  if (waitingSince !== null) {
    return {
      code: 'no_capacity',
      text: `It waits for a machine${because(reason)}`,
      since: waitingSince,
    };
  }
  const since = enteredAt[state] ?? createdAt;
  const attempt = currentAttempt(first);
  if (attempt === null || attempt.machine === null) {
    return { code: 'leasing', text: `A machine is being leased${because(reason)}`, since };
  }
  const machine = describeMachine(attempt);
  if (state === 'starting') {
    return {
      code: 'engine_starting',
      text: `Its engine starts on ${machine}${because(reason)}`,
      since,
    };
  }
  return {
    code: 'booting',
    text: `It waits until ${machine} can be reached${because(reason)}`,
    since,
  };
}

function rank({ state, waitingSince }: ProvisionRecord): number {
  return waitingSince === null ? PROVISION_STATES.indexOf(state) : -1;
}

function describeMachine({ machine, provider, gpuCount, gpuType, region }: LeaseAttempt): string {
  const where = region === '' ? '' : ` in ${region}`;
  return `the machine ${machine} of ${provider} (${gpuCount} × ${gpuType}${where})`;
}

function because(reason: string): string {
  return reason === '' ? '' : `: ${reason.replace(/\.$/, '')}`;
}
