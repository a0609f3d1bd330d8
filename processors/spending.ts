import { overspent } from '../src/domain/cost.ts';
import type { JobRecord } from '../src/domain/job.ts';
import { isReleased } from '../src/domain/provision.ts';
import type { ProvisionRecord } from '../src/domain/provision.ts';
import { rentalsOf } from '../src/domain/rentals.ts';
import type { SettleDeps } from './deps.ts';
import { stopJob } from './settle.ts';

/** Stops a job that has cost what it may, or pays for machines that have nothing to do; what was answered is kept. */
export async function guardSpending(job: JobRecord, deps: SettleDeps): Promise<void> {
  const { resources } = job.options;
  if (resources === null) return;
  if (resources.maxCostUsd === null && resources.maxIdleMinutes === null) return;
  const provisions = await deps.store.provisions.ofJob(job.id);
  const spending = { rentals: rentalsOf(provisions), idleSince: idleSince(job, provisions) };
  const found = overspent(resources, spending, deps.now());
  if (found === null) return;
  const errors = [{ code: found.limit, message: found.message, line: null, param: null }];
  const event = 'The job has reached its limit of spending.';
  deps.log.warn({ jobId: job.id, limit: found.limit }, 'job stopped by its limit of spending');
  await stopJob(job.id, { outcome: 'failed', event, reason: found.message, errors }, deps);
}

/**
 * Since when machines that can be used have no line to answer: the job is held, or none of their engines serves. Null
 * while lines are sent, or nothing is there to be used yet.
 */
function idleSince(job: JobRecord, provisions: readonly ProvisionRecord[]): number | null {
  const live = provisions.filter(({ state }) => !isReleased(state));
  const reached = live.flatMap(({ current, attempts }) => {
    const at = attempts.find(({ n }) => n === current)?.reachedAt ?? null;
    return at === null ? [] : [at];
  });
  if (reached.length === 0) return null;
  if (job.pausedAt !== null) return Math.max(job.pausedAt, Math.min(...reached));
  if (job.state === 'in_progress') return null;
  // An engine that is lost was noted when it was, and what is said of it a moment later.
  const since = live.map(({ reasonAt, createdAt, engineAt }) =>
    Math.max(reasonAt ?? createdAt, engineAt ?? 0),
  );
  return Math.max(Math.min(...reached), Math.min(...since));
}
