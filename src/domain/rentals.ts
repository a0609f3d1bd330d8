import type { Rental } from './cost.ts';
import type { LeaseAttempt } from './lease.ts';

/** The machines of a job as they are paid for, those that are gone among them: one an attempt. */
export function rentalsOf(provisions: readonly { attempts: readonly LeaseAttempt[] }[]): Rental[] {
  return provisions.flatMap(({ attempts }) => attempts.map(rentalOf));
}

/** What the provider never told an id of was never seen, and has no cost that anybody knows. */
function rentalOf(attempt: LeaseAttempt): Rental {
  const { provider, pricePerHour, machine, createdAt, askedAt, endedAt } = attempt;
  // One that was taken over from another job is paid for from then on, not from when it was created.
  const from = machine === null ? null : Math.max(createdAt ?? 0, askedAt);
  return { provider, pricePerHour, from, until: endedAt };
}
