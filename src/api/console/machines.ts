import type { Judged, MachineSurvey } from '../../../processors/inventory-survey.ts';
import { currentAttempt } from '../../domain/provision.ts';
import type { ProvisionRecord } from '../../domain/provision.ts';
import type { Route } from '../routes.ts';
import { unixSeconds } from '../views.ts';

export interface MachinesDeps {
  /** All machines of this deployment, as its providers list them, with whose each is. */
  surveyMachines(): Promise<MachineSurvey>;
}

/** What is leased now by the word of the providers, whatever the records say. */
export function machineRoutes(deps: MachinesDeps): Route[] {
  return [
    {
      path: '/api/v1/machines',
      async get(c) {
        const { machines, failures } = await deps.surveyMachines();
        return c.json({ machines: machines.map(listedView), failures });
      },
    },
  ];
}

/** A machine in a provider's list; null is a number that nobody knows. */
export function listedView({ provider, machine, verdict, record }: Judged) {
  return {
    provider,
    id: machine.id,
    name: machine.name,
    status: machine.state,
    region: machine.region,
    gpu_type: machine.gpuType,
    gpu_count: machine.gpuCount,
    price_per_hour: machine.pricePerHour,
    created_at: machine.createdAt === null ? 0 : unixSeconds(machine.createdAt),
    use: verdict.is,
    reason: reasonOf(verdict),
    provision_id: record?.id ?? '',
    job_id: record?.job ?? '',
  };
}

function reasonOf(verdict: Judged['verdict']): string {
  if (verdict.is === 'unwanted') return verdict.why;
  return verdict.is === 'orphan' ? (verdict.spared ?? '') : '';
}

/** The machine that a provision stands on, or the last try at one; null where it leases none. */
export function machineOf(provision: ProvisionRecord) {
  const attempt = currentAttempt(provision);
  if (attempt === null) return null;
  return {
    id: attempt.machine ?? '',
    name: attempt.name,
    status: attempt.state,
    region: attempt.region,
    gpu_type: attempt.gpuType,
    gpu_count: attempt.gpuCount,
    price_per_hour: attempt.pricePerHour,
  };
}
