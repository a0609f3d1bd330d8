import type { LeaseAttempt, MachineLogin } from '../../domain/lease.ts';
import { currentAttempt } from '../../domain/provision.ts';
import type { ProvisionRecord } from '../../domain/provision.ts';
import { unixSeconds } from '../views.ts';

/**
 * A provision as a job shows it; its times are unix seconds. `others` are those that its job had beside it, whose machines
 * are found by the same `raw_json`.
 */
export function provisionView(provision: ProvisionRecord, others: readonly ProvisionRecord[] = []) {
  const attempt = currentAttempt(provision);
  return {
    provision_id: provision.id,
    provider: provision.provider,
    idempotency_key: provision.id,
    status: provision.state,
    region: attempt?.region ?? '',
    error_message: provision.reason || (attempt?.error ?? ''),
    created_at: unixSeconds(provision.createdAt),
    updated_at: unixSeconds(updatedAt(provision)),
    raw_json: JSON.stringify(rawJob(provision, others)),
  };
}

function updatedAt({ createdAt, enteredAt }: ProvisionRecord): number {
  return Math.max(createdAt, ...Object.values(enteredAt));
}

function rawJob(provision: ProvisionRecord, others: readonly ProvisionRecord[]) {
  return {
    ...rawProvision(provision),
    ...machinesView([provision, ...others]),
    ...(others.length === 0 ? {} : { others: others.map(rawProvision) }),
  };
}

/**
 * All that is known, in the words and the case of AIBrix's ProvisionResult where that has any, and every attempt of the
 * provision beside: by these a machine is found at its provider, whatever became of the job.
 */
function rawProvision(provision: ProvisionRecord) {
  const attempt = currentAttempt(provision);
  return {
    provisionId: provision.id,
    provider: provision.provider,
    idempotencyKey: provision.id,
    owner: provision.owner,
    status: provision.state,
    region: attempt?.region ?? '',
    errorMessage: provision.reason || (attempt?.error ?? ''),
    address: provision.address,
    createdAt: moment(provision.createdAt),
    updatedAt: moment(updatedAt(provision)),
    attempts: provision.attempts.map(attemptView),
    ...(provision.hostKey === null
      ? {}
      : { ...loginView(provision.login), hostKey: provision.hostKey }),
  };
}

/** Every machine, the gone ones too, where AIBrix's scripts look for them: `runpod.pods` and `lambdaCloud.groupResults`. */
function machinesView(provisions: readonly ProvisionRecord[]) {
  const machines = provisions.flatMap((provision) => {
    const current = currentAttempt(provision);
    return provision.attempts
      .filter(({ machine }) => machine !== null)
      .map((attempt) => ({ attempt, login: attempt === current ? provision.login : null }));
  });
  const pods = machines.filter(({ attempt }) => attempt.provider === 'runpod').map(podView);
  const groups = machines.filter(({ attempt }) => attempt.provider === 'lambdaCloud');
  return {
    ...(pods.length === 0 ? {} : { runpod: { pods } }),
    ...(groups.length === 0 ? {} : { lambdaCloud: { groupResults: groups.map(groupView) } }),
  };
}

interface MachineOf {
  attempt: LeaseAttempt;
  /** Null: it is not known, or not any more. */
  login: MachineLogin | null;
}

function podView({ attempt, login }: MachineOf) {
  return {
    podId: attempt.machine,
    gpuTypeId: attempt.gpuType,
    ...loginView(login),
    dataCenterId: attempt.region,
    state: attempt.state,
  };
}

function groupView({ attempt, login }: MachineOf) {
  const { machine, offer, region, state } = attempt;
  const instance = { instanceId: machine, instanceType: offer, ...loginView(login), region, state };
  return {
    instances: [instance],
    replicas: 1,
    acceleratorType: attempt.gpuType,
    acceleratorCount: attempt.gpuCount,
  };
}

function loginView(login: MachineLogin | null) {
  return { publicIp: login?.host ?? '', sshUser: login?.user ?? '', sshPort: login?.port ?? 0 };
}

function attemptView(attempt: LeaseAttempt) {
  const { machine, missing, missingSince, raw, ...rest } = attempt;
  return {
    ...rest,
    machineId: machine ?? '',
    askedAt: moment(attempt.askedAt),
    createdAt: momentOrEmpty(attempt.createdAt),
    reachedAt: momentOrEmpty(attempt.reachedAt),
    endedAt: momentOrEmpty(attempt.endedAt),
    ...(missing === 0 ? {} : { missing, missingSince: momentOrEmpty(missingSince) }),
    raw: parsedOr(raw),
  };
}

function moment(ms: number): string {
  return new Date(ms).toISOString();
}

function momentOrEmpty(ms: number | null): string {
  return ms === null ? '' : moment(ms);
}

/** A provider's answer as what it was; as the text that it is where that is no JSON, such as one that was cut. */
function parsedOr(raw: string): unknown {
  if (raw === '') return null;
  try {
    return JSON.parse(raw);
  } catch {
    // Not ours to judge: who looks for a machine reads it all the same.
    return raw;
  }
}
