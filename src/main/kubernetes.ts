import type { Log } from '../../processors/deps.ts';
import type { Leasing } from '../../processors/leasing.ts';
import type { Settings } from '../../config/schema.ts';
import { describeError } from '../domain/errors.ts';
import { openAccess } from '../resources/kubernetes/access.ts';
import { createCluster } from '../resources/kubernetes/cluster.ts';
import type { Cluster } from '../resources/kubernetes/cluster.ts';
import { createKubernetes } from '../resources/kubernetes/index.ts';
import type { LeaseAccount, LeaseManager } from '../resources/lease-contract.ts';
import type { RemoteService } from '../runtimes/remote/contract.ts';
import { createClusterJobs } from './cluster-jobs.ts';
import { engineParts } from './engine-parts.ts';
import { stampOf } from './stamp.ts';
import { storageSettings } from './storage-settings.ts';
import type { System } from './system.ts';

/** The cluster of the settings. Nothing is asked of it yet. */
function openCluster(settings: Settings): Cluster {
  const { kubeconfig, kubernetesContext: context, kubernetesServiceHost: host } = settings;
  const { kubernetesServicePort: port, serviceAccountDir: serviceAccount } = settings;
  return createCluster({
    open: async () =>
      openAccess({
        kubeconfig,
        context,
        serviceAccount,
        inCluster: host === undefined ? null : { host, port },
      }),
    namespaces: settings.kubernetesNamespaces,
  });
}

/** How jobs are run that do not say. Pods cannot read what lies in a folder of this machine. */
export function clusterForm(settings: Settings): 'deployment' | 'job' {
  if (settings.kubernetesRuntime !== undefined) return settings.kubernetesRuntime;
  return storageSettings(settings).type === 'LOCAL' ? 'deployment' : 'job';
}

/** Where whole jobs are run in Jobs; null where PROVISIONER names no cluster. */
export async function openClusterJobs(
  { settings, storage, log }: Pick<System, 'settings' | 'storage' | 'log'>,
  leasing: Pick<Leasing, 'manager'> | null,
  now: () => number,
): Promise<RemoteService | null> {
  const manager = leasing?.manager('kubernetes') ?? null;
  if (manager === null) return null;
  // Nothing waits for it: a job that comes meanwhile is told the same.
  void reportCluster(manager, log);
  return createClusterJobs({
    settings,
    cluster: openCluster(settings),
    catalog: async () => manager.catalog(),
    terms: {
      resource: settings.kubernetesGpuResource,
      productLabel: settings.kubernetesGpuLabel,
      modelCache: settings.kubernetesModelCache ?? null,
      objectStore: engineParts(settings).objectStore,
      workerImage: settings.kubernetesWorkerImage ?? null,
      queue: settings.kubernetesQueue ?? null,
    },
    storage,
    stamp: await stampOf(storage),
    log,
    now,
  });
}

/** Says in the log whether the cluster can be used, and what is to be mended; never rejects. */
async function reportCluster({ checks }: LeaseManager, log: Log): Promise<void> {
  try {
    const found = (await checks?.()) ?? [];
    for (const { state, message } of found) {
      if (state === 'ok') log.info({ cluster: message }, 'engines run in Kubernetes');
      else log.warn({ reason: message }, 'engines cannot run in Kubernetes yet');
    }
  } catch (error) {
    log.warn({ reason: describeError(error) }, 'engines cannot run in Kubernetes yet');
  }
}

/** Engines that this deployment has in the cluster of its settings. */
export function createKubernetesOf(settings: Settings, now: () => number): LeaseAccount {
  return createKubernetes({
    cluster: openCluster(settings),
    access: settings.kubernetesAccess,
    resource: settings.kubernetesGpuResource,
    productLabel: settings.kubernetesGpuLabel,
    isAutoscaled: settings.kubernetesAutoscaled,
    scheduleMs: settings.kubernetesPendingWait,
    objectStore: engineParts(settings).objectStore,
    runsJobs: clusterForm(settings) === 'job',
    now,
  });
}
