import type { Settings } from '../../config/schema.ts';
import { invalidInput } from '../domain/errors.ts';
import { imageOf } from '../domain/engines/index.ts';
import { ENGINE_PORT } from '../domain/engines/public-url.ts';
import type { JobResources } from '../domain/lease.ts';
import { leaseProvider } from '../domain/provision.ts';
import type { LeaseProvider } from '../domain/provision.ts';
import { createKubernetesOf } from './kubernetes.ts';
import { createLambdaCloud, LAMBDA_CLOUD_LIMITS } from '../resources/lambda-cloud/index.ts';
import type { LeaseAccount, Pace } from '../resources/lease-contract.ts';
import { bucketName, createPace } from '../resources/pace.ts';
import type { DrawUnits, PaceLimits } from '../resources/pace.ts';
import { createRunPod, RUNPOD_LIMITS } from '../resources/runpod/index.ts';
import { checkKeyFile } from '../runtimes/ssh/keys.ts';

/** What a manager is opened with beside its settings. */
interface Given {
  stamp: string;
  pace: Pace;
  now: () => number;
  /** Takes how often the credential may be used, where the provider tells that. */
  onLimits: (limits: PaceLimits) => void;
}

/** All that is known here of one provider. */
interface LeaseParts {
  /** What its calls are counted by. */
  credential(settings: Settings): string;
  limits: PaceLimits;
  open(settings: Settings, given: Given): LeaseAccount;
  /** What is to be done where its catalog has nothing to be had. */
  emptyMend: string;
  /** Volume or file system that keeps weights, by id or name; null: none. */
  modelCache(settings: Settings): string | null;
  /** Image that a machine is leased with; '' where machines run no image. */
  image(settings: Settings, resources: Pick<JobResources, 'spec'>): string;
}

/** A provider that is added is added here. */
export const LEASE_PARTS = {
  runpod: {
    credential: ({ runpodApiKey = '' }) => runpodApiKey,
    limits: RUNPOD_LIMITS,
    emptyMend: 'widen RUNPOD_DATA_CENTERS where it is set, or wait',
    open: (settings, { pace, now, onLimits }) =>
      createRunPod(
        {
          apiKey: settings.runpodApiKey ?? '',
          baseUrl: settings.runpodBaseUrl ?? null,
          apiVersion: settings.runpodApiVersion ?? null,
          cloudType: settings.runpodCloudType,
          dataCenters: settings.runpodDataCenters,
          ...(settings.runpodProxy === null ? {} : { publicPort: ENGINE_PORT }),
        },
        { pace, now, onLimits },
      ),
    modelCache: ({ runpodNetworkVolume = null }) => runpodNetworkVolume,
    image: ({ runpodImage }, { spec }) => runpodImage ?? imageOf(spec.engine),
  },
  lambdaCloud: {
    credential: ({ lambdaCloudApiKey = '' }) => lambdaCloudApiKey,
    limits: LAMBDA_CLOUD_LIMITS,
    emptyMend: 'widen LAMBDA_CLOUD_REGION where it is set, or wait',
    open: (settings, { stamp, pace, now }) =>
      createLambdaCloud(
        {
          apiKey: settings.lambdaCloudApiKey ?? '',
          ...(settings.lambdaCloudBaseUrl === undefined
            ? {}
            : { baseUrl: settings.lambdaCloudBaseUrl }),
          stamp,
          sshKeyNames: settings.lambdaCloudSshKeys,
          regions: settings.lambdaCloudRegions,
          now,
        },
        { pace },
      ),
    modelCache: ({ lambdaCloudFileSystem = null }) => lambdaCloudFileSystem,
    image: () => '',
  },
  kubernetes: {
    // Its API server paces who asks too often by itself.
    credential: ({ kubeconfig = '' }) => kubeconfig,
    limits: { callsPerSecond: 100, createsPerSecond: null },
    emptyMend: 'add nodes, or uncordon those that are there',
    open: (settings, { now }) => createKubernetesOf(settings, now),
    modelCache: ({ kubernetesModelCache = null }) => kubernetesModelCache,
    image: () => '',
  },
} as const satisfies Record<LeaseProvider, LeaseParts>;

/** Those that PROVISIONER names, in its order. */
export function enabledLeases({ provisioners }: Pick<Settings, 'provisioners'>): LeaseProvider[] {
  return provisioners.map(leaseProvider).filter((provider) => provider !== null);
}

/** What managers are opened with; who shares `draw` shares their rates. */
interface Shared {
  stamp: string;
  draw: DrawUnits;
  now: () => number;
}

/** Throws InvalidInput for settings at odds. */
export function openManager(
  provider: LeaseProvider,
  settings: Settings,
  { stamp, draw, now }: Shared,
): LeaseAccount {
  const { credential, open, limits: documented } = LEASE_PARTS[provider];
  const name = bucketName(provider, credential(settings));
  let limits: PaceLimits = documented;
  const pace = createPace({ name, limits: () => limits, draw });
  return open(settings, {
    stamp,
    pace,
    now,
    onLimits(told) {
      limits = told;
    },
  });
}

/** The managers that are enabled. Throws InvalidInput for settings at odds. */
export function openManagers(settings: Settings, shared: Shared): Map<LeaseProvider, LeaseAccount> {
  const enabled = enabledLeases(settings);
  return new Map(enabled.map((each) => [each, openManager(each, settings, shared)]));
}

/** Type and key without the comment. */
function material(key: string): string {
  return key.trim().split(/\s+/).slice(0, 2).join(' ');
}

/**
 * The public key that machines let in; '' where this process knows none, and so leases none. Throws InvalidInput
 * `ssh.key_file` for a file that cannot be used, and `ssh.key_mismatch` where RUNPOD_SSH_PUBLIC_KEY is of another key.
 */
export async function authorizedKeyOf({
  sshKeyFile,
  runpodSshPublicKey,
  provisioners,
}: Pick<Settings, 'sshKeyFile' | 'runpodSshPublicKey' | 'provisioners'>): Promise<string> {
  if (sshKeyFile === undefined) return material(runpodSshPublicKey ?? '');
  const { publicKey } = await checkKeyFile(sshKeyFile);
  const isOther = runpodSshPublicKey !== undefined && material(runpodSshPublicKey) !== publicKey;
  if (!isOther || !provisioners.includes('runpod')) return publicKey;
  throw invalidInput(
    'ssh.key_mismatch',
    `RUNPOD_SSH_PUBLIC_KEY is not the public half of ${sshKeyFile}, with which pods are logged in to: leave it out, or ` +
      `set it to ${publicKey}`,
  );
}
