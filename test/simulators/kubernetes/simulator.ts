import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { openYard, whyNoNamespaces } from '../machines/yard.ts';
import type { Yard } from '../machines/yard.ts';
import { createAuth } from './auth.ts';
import { makeCertificates } from './certificates.ts';
import type { Cluster } from './cluster.ts';
import { createControl } from './control.ts';
import type { KubernetesControl } from './control.ts';
import { createControllers } from './controllers.ts';
import { createRecorder } from './events.ts';
import { DEFAULT_IMAGES, writePrograms } from './images.ts';
import type { ImageProgram } from './images.ts';
import { startKubelet } from './kubelet.ts';
import type { Kubelet } from './kubelet.ts';
import { NAMESPACES, NODES } from './kinds.ts';
import type { Kind } from './kinds.ts';
import { DEFAULT_KNOBS } from './knobs.ts';
import type { KubernetesKnobs } from './knobs.ts';
import { createLoop } from './loop.ts';
import { openNetwork } from './network.ts';
import type { ClusterNetwork } from './network.ts';
import { makeNode } from './nodes.ts';
import type { NodeSpec } from './nodes.ts';
import { isRecord } from './objects.ts';
import type { KubeObject } from './objects.ts';
import { loadKinds } from './openapi.ts';
import { createRest } from './rest.ts';
import { createServiceProxy } from './services.ts';
import { startServer } from './server.ts';
import type { Asked } from './server.ts';
import { notFound } from './status.ts';
import type { Status } from './status.ts';
import { createStore } from './store.ts';
import { createSubresources } from './subresources.ts';

/** How to start one. */
export interface KubernetesOptions {
  /** Default: one node `node-1` with 8 CPUs, 32 GiB and one GPU. */
  nodes?: readonly NodeSpec[];
  /** Come before the default ones. */
  images?: readonly ImageProgram[];
  knobs?: Partial<KubernetesKnobs>;
  /** `none`: pods are objects only, nobody runs them; needs no namespaces. Default `real`. */
  pods?: 'real' | 'none';
  /** 0, the default, takes a free one. */
  port?: number;
}

/** A Kubernetes cluster without machines; it ends with this process, however that ends. */
export interface KubernetesSimulator extends AsyncDisposable {
  /** https, on loopback. */
  url: string;
  /** PEM of its authority. */
  ca: string;
  /** Of the cluster's administrator. */
  token: string;
  /** Path of a kubeconfig of the administrator. */
  kubeconfig: string;
  control: KubernetesControl;
  /** What differs from the defaults, from now on. */
  set(knobs: Partial<KubernetesKnobs>): void;
}

const NAMES = [
  'localhost',
  'kubernetes',
  'kubernetes.default',
  'kubernetes.default.svc',
  'kubernetes.default.svc.cluster.local',
];

function kubeconfigOf(url: string, ca: string, token: string): string {
  return JSON.stringify({
    apiVersion: 'v1',
    kind: 'Config',
    clusters: [
      {
        name: 'simulator',
        cluster: { server: url, 'certificate-authority-data': Buffer.from(ca).toString('base64') },
      },
    ],
    users: [{ name: 'admin', user: { token } }],
    contexts: [
      { name: 'simulator', context: { cluster: 'simulator', user: 'admin', namespace: 'default' } },
    ],
    'current-context': 'simulator',
  });
}

/** Why pods cannot be run here, with what would mend it; undefined where they can. */
export { whyNoNamespaces };

interface Ground {
  yard: Yard;
  network: ClusterNetwork;
  apiAddress: string;
}

async function openGround(): Promise<Ground> {
  const why = await whyNoNamespaces();
  if (why !== undefined) throw new Error(why);
  const yard = await openYard();
  const network = await openNetwork();
  return { yard, network, apiAddress: await network.allocate() };
}

export async function startKubernetes(
  options: KubernetesOptions = {},
): Promise<KubernetesSimulator> {
  const knobs: KubernetesKnobs = { ...DEFAULT_KNOBS, ...options.knobs };
  const ground = options.pods === 'none' ? undefined : await openGround();
  // With the yard, which the next simulator sweeps if this one is killed.
  const home =
    ground?.yard.folder ??
    (await mkdtemp(path.join(tmpdir(), `sluice-kubernetes-${process.pid}-`)));
  const store = createStore();
  const recorder = createRecorder(store);
  const auth = createAuth(store);
  const certificates = await makeCertificates(NAMES, [
    '127.0.0.1',
    ...(ground === undefined ? [] : [ground.apiAddress]),
  ]);
  await loadKinds();
  const faults: ((asked: Asked) => Status | 'reset' | undefined)[] = [];
  const kubelets = new Map<string, Kubelet>();

  function admit(kind: Kind, object: KubeObject): void {
    const { namespace } = object.metadata;
    if (
      kind.namespaced &&
      namespace !== undefined &&
      store.get(NAMESPACES, undefined, namespace) === undefined
    ) {
      throw notFound(NAMESPACES, namespace);
    }
    controllers.admit(kind, object);
  }

  const loop = createLoop(() => controllers.sync());
  const cluster: Cluster = { store, recorder, knobs: () => knobs, loop, admit };
  const controllers = createControllers(cluster, kubelets);
  const rest = createRest(store, { admit });
  const server = await startServer({
    store,
    rest,
    auth,
    certificates,
    port: options.port ?? 0,
    subresources: createSubresources({ store, rest, auth, kubelets: () => kubelets }),
    bookmarkMs: () => knobs.bookmarkMs,
    fault: (asked) => {
      for (const fault of faults) {
        const struck = fault(asked);
        if (struck !== undefined) return struck;
      }
      return undefined;
    },
  });
  const url = `https://127.0.0.1:${server.port}`;
  const kubeconfig = path.join(home, 'kubeconfig');
  await writeFile(kubeconfig, kubeconfigOf(url, certificates.ca, auth.adminToken), { mode: 0o600 });
  const stopFollowing = store.subscribe(() => loop.kick());

  for (const name of ['default', 'kube-system', 'kube-public', 'kube-node-lease']) {
    store.create(NAMESPACES, {
      apiVersion: 'v1',
      kind: 'Namespace',
      metadata: {
        name,
        labels: { 'kubernetes.io/metadata.name': name },
      } as unknown as KubeObject['metadata'],
      spec: { finalizers: ['kubernetes'] },
      status: { phase: 'Active' },
    });
  }

  const proxy = ground === undefined ? undefined : createServiceProxy(cluster, ground.network);
  const apiRelay = await ground?.network.listen(ground.apiAddress, 443, () => ({
    host: '127.0.0.1',
    port: server.port,
  }));

  function hosts(hostname: string, address: string): string {
    return [
      '127.0.0.1 localhost',
      '::1 localhost ip6-localhost',
      `${address} ${hostname}`,
      `${ground?.network.gateway ?? ''} host.sluice.internal`,
      `${ground?.apiAddress ?? ''} ${NAMES.slice(1).join(' ')}`,
      ...(proxy?.hosts() ?? []),
      '',
    ].join('\n');
  }

  async function addNode(spec: NodeSpec): Promise<void> {
    store.create(NODES, makeNode(spec));
    if (ground === undefined) return;
    const { yard, network, apiAddress } = ground;
    kubelets.set(
      spec.name,
      startKubelet(spec.name, {
        store,
        recorder,
        knobs: () => knobs,
        images: () => [...(options.images ?? []), ...DEFAULT_IMAGES],
        programs: path.join(yard.folder, 'programs'),
        yard: yard.folder,
        nodeAddress: network.gateway,
        ca: certificates.ca,
        tokenOf: auth.tokenOf,
        hosts: (pod, address) => hosts(pod.spec.hostname ?? pod.metadata.name, address),
        serviceEnv: () => ({
          KUBERNETES_SERVICE_HOST: apiAddress,
          KUBERNETES_SERVICE_PORT: '443',
          KUBERNETES_SERVICE_PORT_HTTPS: '443',
          KUBERNETES_PORT: `tcp://${apiAddress}:443`,
        }),
      }),
    );
  }

  if (ground !== undefined) await writePrograms(path.join(ground.yard.folder, 'programs'));
  for (const spec of options.nodes ?? [{ name: 'node-1', gpus: 1 }]) await addNode(spec);
  loop.kick();

  async function engineRequests(): Promise<unknown[]> {
    if (ground === undefined) return [];
    const machines = path.join(ground.yard.folder, 'machines');
    const folders = (await readdir(machines)).filter((name) => name.endsWith('.sim'));
    const files = await Promise.all(
      folders.map(async (folder) =>
        (await readdir(path.join(machines, folder))).map((file) =>
          path.join(machines, folder, file),
        ),
      ),
    );
    const texts = await Promise.all(
      files
        .flat()
        .filter((file) => file.endsWith('.jsonl'))
        .map(async (file) => readFile(file, 'utf8')),
    );
    // A kill may cut the last line of a log.
    return texts
      .flatMap((text) => text.split('\n').slice(0, -1))
      .map((line) => JSON.parse(line) as unknown)
      .filter(isRecord);
  }

  async function stop(): Promise<void> {
    stopFollowing();
    loop.stop();
    await Promise.all([...kubelets.values()].map(async (one) => one.close()));
    await proxy?.close();
    await apiRelay?.close();
    await server.close();
    await ground?.network.close();
    await ground?.yard.close();
    await rm(home, { recursive: true, force: true });
  }

  let stopped: Promise<void> | undefined;
  return {
    url,
    ca: certificates.ca,
    token: auth.adminToken,
    kubeconfig,
    control: createControl({
      cluster,
      kubelets,
      server,
      network: ground?.network,
      faults,
      addNode,
      engineRequests,
    }),
    set(changes) {
      Object.assign(knobs, changes);
      loop.kick();
    },
    async [Symbol.asyncDispose]() {
      stopped ??= stop();
      await stopped;
    },
  };
}
