import { jobCost, toUsd } from '../../domain/cost.ts';
import { isFinal } from '../../domain/job.ts';
import type { JobRecord } from '../../domain/job.ts';
import { isOver } from '../../domain/lease.ts';
import type { JobResources, LeaseAttempt } from '../../domain/lease.ts';
import { currentAttempt } from '../../domain/provision.ts';
import type { ProvisionRecord } from '../../domain/provision.ts';
import { rentalsOf } from '../../domain/rentals.ts';

/**
 * The machines of a job: those that it has, those that it had once they are given back, and before it has any those
 * that it asks for. Machines that are alike are one entry of `resource_details`. `provisionId` is that of the one
 * that the job shows. Null: none are leased for it.
 */
export function allocationView(
  job: JobRecord,
  provisions: readonly ProvisionRecord[],
  provisionId: string,
) {
  const { resources } = job.options;
  if (resources === null || resources.machine !== undefined) return null;
  const leased = machinesOf(provisions);
  const view = {
    provision_id: provisionId,
    // AIBrix's word for the end of a reservation, which no machine here has.
    provision_resource_deadline: 0,
    resource_details: leased.length > 0 ? detailsOf(leased) : [asked(resources)],
    requested: requestedView(resources),
  };
  return { ...view, raw_json: JSON.stringify(view) };
}

/** What was asked for, in the words of the request. */
function requestedView(resources: JobResources) {
  const { spec } = resources;
  return {
    replicas: resources.replicas,
    provider: resources.providers,
    regions: resources.regions,
    gpu_types: resources.gpuTypes.length > 0 ? resources.gpuTypes : [spec.accelerator.type],
    gpu_count: spec.accelerator.count,
    interruptible: resources.interruptible,
    max_price_per_hour: resources.maxPricePerHour,
    max_cost_usd: resources.maxCostUsd,
    max_idle_minutes: resources.maxIdleMinutes,
  };
}

/** Attempts that have a machine; where none has one any more, the last of each slot that had. */
function machinesOf(provisions: readonly ProvisionRecord[]): LeaseAttempt[] {
  const had = new Map<number, LeaseAttempt>();
  const has: LeaseAttempt[] = [];
  for (const provision of provisions) {
    const attempt = currentAttempt(provision);
    if (attempt === null || attempt.machine === null) continue;
    had.set(provision.slot, attempt);
    if (!isOver(attempt)) has.push(attempt);
  }
  return has.length > 0 ? has : [...had.values()];
}

function detailsOf(attempts: readonly LeaseAttempt[]) {
  const alike = Map.groupBy(attempts, ({ provider, offer, region, pricePerHour }) =>
    JSON.stringify([provider, offer, region, pricePerHour]),
  );
  return [...alike.values()].flatMap((group) => {
    const [first] = group;
    return first === undefined ? [] : [detail(first, group.length)];
  });
}

/** `extra` has texts only, as in AIBrix. */
function detail(attempt: LeaseAttempt, replica: number) {
  const { provider, region, offer, gpuCount, pricePerHour } = attempt;
  const price = pricePerHour === null ? {} : { price_per_hour: String(pricePerHour) };
  const extra = { provider, region, offer, gpu_count: String(gpuCount), ...price };
  return { endpoint_cluster: '', gpu_type: attempt.gpuType, replica, extra };
}

function asked({ spec, gpuTypes, replicas }: JobResources) {
  const gpuType = gpuTypes[0] ?? spec.accelerator.type;
  const extra = { gpu_count: String(spec.accelerator.count) };
  return { endpoint_cluster: '', gpu_type: gpuType, replica: replicas, extra };
}

/** What the machines of a job have cost by `now` (ms); null: none are leased for it. */
export function costView(job: JobRecord, provisions: readonly ProvisionRecord[], now: number) {
  const { resources } = job.options;
  if (resources === null || resources.machine !== undefined) return null;
  const { cost, perHour, unpriced, isFinal: isPaidUp } = jobCost(rentalsOf(provisions), now);
  // A machine that was asked for may come to be, and be paid for, until it is known that it did not.
  const isSettled = provisions.every(({ attempts }) => attempts.every(isOver));
  return {
    so_far_usd: toUsd(cost),
    per_hour_usd: toUsd(perHour),
    unpriced_machines: unpriced,
    is_final: isPaidUp && isSettled && isFinal(job.state),
  };
}
