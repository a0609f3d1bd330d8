import type { RelayTarget } from '../machines/relay.ts';
import type { Cluster } from './cluster.ts';
import { isOver } from './cluster.ts';
import { ENDPOINT_SLICES, ENDPOINTS, PODS, SERVICES } from './kinds.ts';
import { hasCondition } from './objects.ts';
import type { KubeObject, Pod, Service } from './objects.ts';
import type { ClusterNetwork } from './network.ts';
import { matchesSelector } from './selectors.ts';

/** Which pods are behind a Service, and the way to them. */

type Port = NonNullable<Service['spec']['ports']>[number];

/** The pods that a Service selects, those that are not ready apart. */
function backends(
  { store }: Pick<Cluster, 'store'>,
  service: Service,
): { ready: Pod[]; unready: Pod[] } {
  const { selector } = service.spec;
  if (selector === undefined) return { ready: [], unready: [] };
  const pods = (store.list(PODS, service.metadata.namespace) as Pod[]).filter(
    (pod) =>
      matchesSelector({ matchLabels: selector }, pod.metadata.labels) &&
      pod.status.podIP !== undefined &&
      !isOver(pod),
  );
  const isReady = (pod: Pod): boolean =>
    hasCondition(pod.status.conditions, 'Ready') && pod.metadata.deletionTimestamp === undefined;
  return { ready: pods.filter(isReady), unready: pods.filter((pod) => !isReady(pod)) };
}

function targetPort({ targetPort: wanted, port }: Port, pod: Pod | undefined): number {
  if (typeof wanted === 'number') return wanted;
  if (wanted === undefined) return port;
  const ports = [...(pod?.spec.containers ?? []), ...(pod?.spec.initContainers ?? [])].flatMap(
    ({ ports = [] }) => ports,
  );
  return ports.find(({ name }) => name === wanted)?.containerPort ?? port;
}

const reference = ({ metadata }: Pod) => ({
  kind: 'Pod',
  namespace: metadata.namespace,
  name: metadata.name,
  uid: metadata.uid,
});

/** Keeps Endpoints and EndpointSlices as the pods are. */
export function createEndpoints(cluster: Cluster): { sync(): void } {
  const { store } = cluster;

  function put(
    kind: typeof ENDPOINTS,
    object: Pick<KubeObject, 'metadata'> & Record<string, unknown>,
  ): void {
    const { namespace, name } = object.metadata;
    if (store.get(kind, namespace, name) === undefined) {
      store.create(kind, { apiVersion: '', kind: '', ...object });
      return;
    }
    store.update(kind, namespace, name, (copy) => {
      const { metadata: _metadata, ...fields } = object;
      Object.assign(copy, fields);
    });
  }

  function syncService(service: Service): void {
    const { namespace, name, uid, labels = {} } = service.metadata;
    const { ready, unready } = backends(cluster, service);
    const ports = service.spec.ports ?? [];
    const [any] = [...ready, ...unready];
    const addresses = (pods: readonly Pod[]) =>
      pods.map((pod) => ({
        ip: pod.status.podIP,
        nodeName: pod.spec.nodeName,
        targetRef: reference(pod),
      }));
    const shown = ports.map((port) => ({
      ...(port.name === undefined ? {} : { name: port.name }),
      port: targetPort(port, any),
      protocol: port.protocol ?? 'TCP',
    }));
    const subset = {
      ...(ready.length === 0 ? {} : { addresses: addresses(ready) }),
      ...(unready.length === 0 ? {} : { notReadyAddresses: addresses(unready) }),
      ports: shown,
    };
    const ownerReferences = [
      { apiVersion: 'v1', kind: 'Service', name, uid, controller: true, blockOwnerDeletion: true },
    ];
    put(ENDPOINTS, {
      metadata: { name, namespace, labels, ownerReferences } as unknown as KubeObject['metadata'],
      subsets: any === undefined ? [] : [subset],
    });
    put(ENDPOINT_SLICES, {
      metadata: {
        name: `${name}-${uid.slice(0, 5)}`,
        namespace,
        labels: { ...labels, 'kubernetes.io/service-name': name },
        ownerReferences,
      } as unknown as KubeObject['metadata'],
      addressType: 'IPv4',
      ports: shown,
      endpoints: [...ready, ...unready].map((pod) => {
        const isReady = ready.includes(pod);
        return {
          addresses: [pod.status.podIP],
          conditions: {
            ready: isReady,
            serving: isReady,
            terminating: pod.metadata.deletionTimestamp !== undefined,
          },
          nodeName: pod.spec.nodeName,
          targetRef: reference(pod),
        };
      }),
    });
  }

  return {
    sync() {
      for (const service of store.list(SERVICES) as Service[]) {
        if (service.metadata.deletionTimestamp === undefined && service.spec.selector !== undefined)
          syncService(service);
      }
    },
  };
}

interface Held {
  address: string;
  closers: (() => Promise<void>)[];
}

/** Gives Services their addresses and passes connections on, as kube-proxy does. */
export function createServiceProxy(cluster: Cluster, network: ClusterNetwork) {
  const { store } = cluster;
  const held = new Map<string, Held>();
  let turn = 0;
  let work = Promise.resolve();
  let closed = false;

  function route(namespace: string | undefined, name: string, port: Port): RelayTarget | undefined {
    const service = store.get(SERVICES, namespace, name) as Service | undefined;
    if (service === undefined) return undefined;
    const { ready } = backends(cluster, service);
    turn += 1;
    const pod = ready[turn % Math.max(1, ready.length)];
    return pod?.status.podIP === undefined
      ? undefined
      : { host: pod.status.podIP, port: targetPort(port, pod) };
  }

  async function open({ metadata, spec }: Service): Promise<void> {
    const { namespace, name, uid } = metadata;
    if (spec.clusterIP === 'None') return;
    const address = await network.allocate();
    const closers: Held['closers'] = [];
    held.set(uid, { address, closers });
    for (const port of spec.ports ?? []) {
      const relay = await network.listen(address, port.port, () => route(namespace, name, port));
      closers.push(relay.close);
    }
    if (store.get(SERVICES, namespace, name)?.metadata.uid !== uid) return;
    store.update(SERVICES, namespace, name, (copy) => {
      const service = copy as Service;
      service.spec.clusterIP = address;
      service.spec.clusterIPs = [address];
    });
  }

  async function shut(uid: string, { address, closers }: Held): Promise<void> {
    held.delete(uid);
    for (const close of closers) await close();
    await network.release(address);
  }

  async function settle(): Promise<void> {
    if (closed) return;
    const services = store.list(SERVICES) as Service[];
    for (const service of services) {
      if (!held.has(service.metadata.uid)) await open(service);
    }
    const uids = new Set(services.map(({ metadata }) => metadata.uid));
    for (const [uid, one] of held) if (!uids.has(uid)) await shut(uid, one);
  }

  const stop = store.subscribe(({ kind }) => {
    if (kind === SERVICES) work = work.then(settle);
  });

  return {
    /** Lines of /etc/hosts for the names that a cluster's DNS would know. */
    hosts(): string[] {
      return (store.list(SERVICES) as Service[]).flatMap(({ metadata, spec }) => {
        const { name, namespace } = metadata;
        if (spec.clusterIP === undefined || spec.clusterIP === 'None') return [];
        const names = ['', '.svc', '.svc.cluster.local'].map((end) => `${name}.${namespace}${end}`);
        return [`${spec.clusterIP} ${name} ${names.join(' ')}`];
      });
    },
    async close(): Promise<void> {
      closed = true;
      stop();
      await work;
      for (const [uid, one] of held) await shut(uid, one);
    },
  };
}
