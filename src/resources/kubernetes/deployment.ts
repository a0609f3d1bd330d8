import { ENGINE_PORT } from '../../domain/engines/public-url.ts';
import { engineContainer } from './engine-container.ts';
import type { EngineTerms, GpuChoice } from './engine-container.ts';
import type { JobResources } from '../../domain/lease.ts';

/** What tells objects of Sluice from all others. */
export const MANAGED = { 'app.kubernetes.io/managed-by': 'sluice' } as const;
export const ENGINE = { ...MANAGED, 'app.kubernetes.io/component': 'engine' } as const;
const INSTANCE = 'app.kubernetes.io/instance';
/** The engine needs no token, and has nothing to lose that is worth waiting for. */
const GRACE_SECONDS = 10;

/** A selector of all objects with these labels. */
export function selectorOf(labels: Readonly<Record<string, string>>): string {
  return Object.entries(labels)
    .map(([key, value]) => `${key}=${value}`)
    .join(',');
}

/** Which engine an object belongs to; null: to none of ours. */
export function instanceOf(labels: Readonly<Record<string, string>>): string | null {
  return labels[INSTANCE] ?? null;
}

export interface DeploymentOrder {
  name: string;
  namespace: string;
  engine: Pick<JobResources, 'spec' | 'servingName'>;
  gpu: GpuChoice;
}

/** The Deployment of one engine, of one pod. Throws as `engineContainer` does. */
export function renderDeployment(order: DeploymentOrder, terms: EngineTerms) {
  const { name, namespace, engine, gpu } = order;
  const labels = { ...ENGINE, [INSTANCE]: name };
  const pod = engineContainer(engine, gpu, terms);
  return {
    apiVersion: 'apps/v1',
    kind: 'Deployment',
    metadata: { name, namespace, labels },
    spec: {
      replicas: 1,
      // A second pod beside the first would ask for its GPUs once more.
      strategy: { type: 'Recreate' },
      revisionHistoryLimit: 0,
      progressDeadlineSeconds: engine.spec.engine.ready_timeout_seconds + 60,
      selector: { matchLabels: { [INSTANCE]: name } },
      template: {
        metadata: { labels },
        spec: {
          automountServiceAccountToken: false,
          enableServiceLinks: false,
          terminationGracePeriodSeconds: GRACE_SECONDS,
          containers: [pod.container],
          volumes: pod.volumes,
          tolerations: pod.tolerations,
          ...(Object.keys(pod.nodeSelector).length === 0 ? {} : { nodeSelector: pod.nodeSelector }),
          ...(pod.affinity === null ? {} : { affinity: pod.affinity }),
        },
      },
    },
  };
}

/** The Service in front of it, which goes with the Deployment. */
export function renderService(
  { name, namespace }: Pick<DeploymentOrder, 'name' | 'namespace'>,
  deploymentUid: string,
) {
  return {
    apiVersion: 'v1',
    kind: 'Service',
    metadata: {
      name,
      namespace,
      labels: { ...ENGINE, [INSTANCE]: name },
      ownerReferences: [{ apiVersion: 'apps/v1', kind: 'Deployment', name, uid: deploymentUid }],
    },
    spec: {
      selector: { [INSTANCE]: name },
      ports: [{ name: 'http', port: ENGINE_PORT, targetPort: ENGINE_PORT }],
    },
  };
}
