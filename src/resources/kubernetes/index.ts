import { invalidInput, SluiceError, transient, permanent } from '../../domain/errors.ts';
import type { Offer } from '../contract.ts';
import type {
  AccountCheck,
  LeaseAccount,
  LeaseCapabilities,
  Machine,
  MachineWish,
} from '../lease-contract.ts';
import type { Cluster } from './cluster.ts';
import { ENGINE, renderDeployment, renderService } from './deployment.ts';
import type { EngineTerms, GpuChoice } from './engine-container.ts';
import { createHostedEngines } from './engines.ts';
import { CPU, gpuOffers } from './gpus.ts';
import type { GpuTerms } from './gpus.ts';
import { listEngines, readEngine } from './inventory.ts';
import { deploymentSchema, nodeSchema, podSchema } from './objects.ts';
import { idOf, parseId, pathOf } from './paths.ts';
import { checkCluster } from './rights.ts';
import { isAbsent, listAll } from './watched.ts';
import * as v from 'valibot';

export interface KubernetesOptions extends GpuTerms, Pick<EngineTerms, 'objectStore'> {
  cluster: Cluster;
  /** How engines are reached from this process. */
  access: 'auto' | 'service' | 'proxy';
  /** By when a node has to have taken an engine's pod, ms. */
  scheduleMs: number;
  /** Whole batches are run in Jobs, too. */
  runsJobs: boolean;
  now: () => number;
}

const CATALOG_KEPT_MS = 2_000;
const LIST_LAG_MS = 10_000;
/** A connection that takes longer than what is left until then is not waited for. */
const LEAST_SEND_MS = 50;

/**
 * Leases engines of a cluster: a machine is a Deployment of one pod with a Service in front of it. Its id is
 * `<namespace>/<name>`, and the name is unique there, so that who asks twice gets the same one.
 */
export function createKubernetes(options: KubernetesOptions): LeaseAccount {
  const { cluster, now } = options;
  const { api } = cluster;
  let kept: { at: number; offers: Promise<Offer[]> } | null = null;

  async function readCatalog(): Promise<Offer[]> {
    const [nodes, pods] = await Promise.all([
      listAll(api, '/api/v1/nodes', {}, nodeSchema),
      listAll(api, '/api/v1/pods', {}, podSchema),
    ]);
    return gpuOffers(nodes.items, pods.items, options, now());
  }

  return {
    provider: 'kubernetes',
    capabilities: capabilitiesOf(options),
    engines: createHostedEngines({
      cluster,
      access: options.access,
      mend: async (machine) => told(mend(machine, cluster)),
    }),
    async catalog() {
      if (kept === null || now() - kept.at > CATALOG_KEPT_MS) {
        const offers = told(readCatalog());
        kept = { at: now(), offers };
        // What failed is asked anew by the next one.
        offers.catch(() => (kept = null));
      }
      return kept.offers;
    },
    async create(wish) {
      // What it takes is not to be had any more.
      kept = null;
      return create(wish, options).finally(() => (kept = null));
    },
    describe: async (id) => told(readEngine(id, cluster)),
    destroy: async (id) => told(destroy(id, cluster)),
    list: async (stamp) => told(listEngines(stamp, cluster)),
    checkLogin: async () => null,
    checkModelCache: async (claim) => told(checkClaim(claim, cluster)),
    checks: async () => checks(options, readCatalog),
    close: async () => cluster.close(),
  };
}

/** Where the cluster itself cannot be used nothing else is looked at. */
async function checks(
  { cluster, access, resource, runsJobs }: KubernetesOptions,
  readCatalog: () => Promise<Offer[]>,
): Promise<AccountCheck[]> {
  const isInCluster = await cluster.api.access().then(
    (found) => found.isInCluster,
    () => false,
  );
  const isProxied = access === 'proxy' || (access === 'auto' && !isInCluster);
  const found = await checkCluster(cluster, { isProxied, runsJobs });
  if (found.some(({ state }) => state === 'fail')) return found;
  const offers = await told(readCatalog());
  const gpus = offers.filter(({ type }) => type !== CPU);
  if (gpus.length > 0) return found;
  const message = `no node of the cluster has GPUs (${resource}): install the device plugin of their maker, or mend KUBERNETES_GPU_RESOURCE`;
  return [...found, { state: 'warn', message }];
}

function capabilitiesOf({ scheduleMs }: KubernetesOptions): LeaseCapabilities {
  return {
    interruptible: false,
    modelCache: 'network_volume',
    modelCachePath: '',
    engineForm: 'hosted',
    bootDeadlineMs: scheduleMs,
    // A list that others have asked for may be older than the machine.
    listLagMs: LIST_LAG_MS,
    areListsProof: true,
  };
}

/** Says what went wrong as a `LeaseManager` does. */
async function told<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw leaseError(error);
  }
}

function leaseError(error: unknown, creates = false): unknown {
  const doubtful = creates ? 'lease.unknown' : 'lease.unavailable';
  if (error instanceof v.ValiError) {
    const message = `Kubernetes answers with something else than its API has: ${error.message}`;
    return transient(doubtful, message, { cause: error });
  }
  if (!(error instanceof SluiceError) || !error.code.startsWith('kubernetes.')) return error;
  const { code, message, retryAfterMs, kind } = error;
  const details = { cause: error.cause, ...(retryAfterMs === null ? {} : { retryAfterMs }) };
  if (code === 'kubernetes.unclear') return transient(doubtful, message, details);
  if (code === 'kubernetes.quota')
    return new SluiceError('NoCapacity', 'lease.no_capacity', message);
  if (kind === 'Transient') return transient('lease.unavailable', message, details);
  if (kind === 'Permanent') return permanent('lease.unauthorized', message, details);
  // Nothing is in a namespace that does not exist.
  if (kind === 'NotFound') return permanent('lease.namespace_missing', message, details);
  return invalidInput('lease.refused', message, details);
}

async function create(wish: MachineWish, options: KubernetesOptions): Promise<Machine> {
  const { cluster, now } = options;
  const { engine, name } = wish;
  if (engine === undefined) {
    throw invalidInput('lease.no_engine', 'Kubernetes runs engines, and the wish names none.');
  }
  try {
    const [first = ''] = await cluster.namespaces();
    const namespace = wish.namespace ?? first;
    const gpu = gpuOf(wish);
    const terms = { ...options, modelCache: wish.modelCache };
    const body = renderDeployment({ name, namespace, engine, gpu }, terms);
    if (now() > wish.sendBefore - LEAST_SEND_MS) {
      throw transient('lease.unavailable', 'It was too late to ask Kubernetes for the engine.');
    }
    const uid = await createOrAdopt(body, namespace, name, cluster);
    await createService(namespace, name, uid, cluster);
    const made = await readEngine(idOf(namespace, name), cluster);
    return made ?? bare(idOf(namespace, name), name, gpu, now());
  } catch (error) {
    throw leaseError(error, true);
  }
}

/** Made this very moment, and taken away by somebody already. */
function bare(id: string, name: string, gpu: GpuChoice, now: number): Machine {
  return {
    id,
    name,
    state: 'booting',
    ssh: null,
    region: '',
    gpuType: gpu.product,
    gpuCount: gpu.count,
    pricePerHour: null,
    createdAt: now,
    reason: '',
    raw: null,
  };
}

function gpuOf({ offer, gpuCount, regions }: MachineWish): GpuChoice {
  return { product: offer.replace(/:\d+$/, ''), count: gpuCount, regions };
}

/** 409 is an answer: whoever asked first, it is the same Deployment. */
async function createOrAdopt(
  body: object,
  namespace: string,
  name: string,
  { api }: Cluster,
): Promise<string> {
  try {
    const made = await api.ask({ method: 'POST', path: pathOf('deployments', namespace), body });
    return v.parse(deploymentSchema, made).metadata.uid;
  } catch (error) {
    if (!(error instanceof SluiceError) || error.code !== 'kubernetes.conflict') throw error;
    const found = await api.ask({ method: 'GET', path: pathOf('deployments', namespace, name) });
    const { metadata } = v.parse(deploymentSchema, found);
    const isOurs = Object.entries(ENGINE).every(([key, value]) => metadata.labels[key] === value);
    if (isOurs) return metadata.uid;
    throw invalidInput(
      'lease.name_taken',
      `The Deployment ${name} in ${namespace} is not one of Sluice's: delete or rename it.`,
    );
  }
}

async function createService(
  namespace: string,
  name: string,
  uid: string,
  { api }: Cluster,
): Promise<void> {
  const body = renderService({ name, namespace }, uid);
  try {
    await api.ask({ method: 'POST', path: pathOf('services', namespace), body });
  } catch (error) {
    if (!(error instanceof SluiceError) || error.code !== 'kubernetes.conflict') throw error;
  }
}

/** Gives a Deployment the Service that whoever made it did not come to make. */
async function mend(machine: string, cluster: Cluster): Promise<'there' | 'gone'> {
  const { namespace, name } = parseId(machine);
  try {
    const path = pathOf('deployments', namespace, name);
    const found = v.parse(deploymentSchema, await cluster.api.ask({ method: 'GET', path }));
    const { uid, deletionTimestamp } = found.metadata;
    if (deletionTimestamp !== null) return 'gone';
    await createService(namespace, name, uid, cluster);
    return 'there';
  } catch (error) {
    if (isAbsent(error)) return 'gone';
    throw error;
  }
}

/** Its pods and its Service go with the Deployment, and are looked for until they are gone. */
async function destroy(id: string, { api }: Cluster): Promise<'gone' | 'going'> {
  const { namespace, name } = parseId(id);
  const body = { kind: 'DeleteOptions', apiVersion: 'v1', propagationPolicy: 'Background' };
  let isGone = true;
  // A Service that lost its Deployment is nobody's else to delete.
  for (const kind of ['deployments', 'services'] as const) {
    try {
      await api.ask({ method: 'DELETE', path: pathOf(kind, namespace, name), body });
      isGone = false;
    } catch (error) {
      if (!isAbsent(error)) throw error;
    }
  }
  return isGone ? 'gone' : 'going';
}

async function checkClaim(claim: string, { api, namespaces }: Cluster): Promise<string> {
  const all = await namespaces();
  for (const namespace of all) {
    const path = `/api/v1/namespaces/${namespace}/persistentvolumeclaims/${claim}`;
    await api.ask({ method: 'GET', path });
  }
  return `the claim ${claim} keeps model weights (${all.join(', ')})`;
}
