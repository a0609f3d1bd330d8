import { transient } from '../domain/errors.ts';
import type { CallPurpose } from './lease-contract.ts';

const LONGEST_TIMER_MS = 2 ** 31 - 1;

/**
 * Takes the turn of a create, and resolves to how many ms it may still take to leave. Rejects with Transient `lease.unavailable` where it does not come before `sendBefore`, and
 * else as the pace does: nothing may be sent after that.
 */
export async function createTurn(
  pace: (purpose: CallPurpose, signal?: AbortSignal) => Promise<void>,
  sendBefore: number,
  now: () => number,
): Promise<number> {
  const left = Math.ceil(sendBefore - now());
  if (left <= 0) throw tooLate();
  const patience = AbortSignal.timeout(Math.min(left, LONGEST_TIMER_MS));
  try {
    await pace('create', patience);
  } catch (error) {
    throw patience.aborted ? tooLate() : error;
  }
  // A turn that was given just in time may be heard of late.
  const rest = sendBefore - now();
  if (rest <= 0) throw tooLate();
  return rest;
}

function tooLate(): Error {
  const message =
    'The create did not get its turn before it would have come too late: it was not sent, and there is certainly no machine.';
  return transient('lease.unavailable', message);
}
