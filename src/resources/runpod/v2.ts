import * as v from 'valibot';
import { transient } from '../../domain/errors.ts';
import type { MachineState } from '../../domain/lease.ts';
import { BOOTSTRAP, bootstrapEnv, ENTRYPOINT, VOLUME_PATH } from './bootstrap.ts';
import { BOOT_DEADLINE_MS, LIST_LAG_MS, readAs, readTime, withoutOurs } from './dialect.ts';
import type { Dialect, PodOrder } from './dialect.ts';

/** Those who page say `limit` and `cursor`; where an account has no pages, both are ignored with 200. */
const PAGE = 1000;

const page = v.object({
  pods: v.array(v.unknown()),
  pagination: v.nullish(
    v.object({ nextCursor: v.nullish(v.string()), hasNextPage: v.optional(v.boolean()) }),
  ),
});

const endpoint = v.object({
  host: v.pipe(v.string(), v.nonEmpty()),
  port: v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(65_535)),
  username: v.string(),
});

/** Of the specification's required fields those that are read; `gpu` is in every pod that is not a CPU pod. */
const pod = v.object({
  id: v.pipe(v.string(), v.nonEmpty()),
  name: v.string(),
  status: v.string(),
  gpu: v.object({ id: v.string(), count: v.optional(v.number(), 1) }),
  ssh: v.object({ direct: v.nullable(endpoint) }),
  cost: v.nullable(v.number()),
  dataCenterId: v.nullable(v.string()),
  createdAt: v.string(),
});

const volumes = v.object({
  networkVolumes: v.array(v.object({ id: v.string(), name: v.string(), dataCenter: v.string() })),
});

/** A stopped pod keeps its disk, which costs: it is on its way out, and not gone. */
const STATES: Record<string, MachineState> = {
  PROVISIONING: 'booting',
  STARTING: 'booting',
  RUNNING: 'running',
  EXITED: 'stopping',
  ERROR: 'stopping',
  TERMINATED: 'gone',
};

/** RUNNING was seen from creation on, long before the image was pulled: an address is what tells. */
function stateOf(status: string, hasAddress: boolean): MachineState {
  const state = STATES[status] ?? 'booting';
  return state === 'running' && !hasAddress ? 'booting' : state;
}

function orderBody({ wish, gpuType, dataCenters, cloudType, volume, ports }: PodOrder): object {
  return {
    name: wish.name,
    image: wish.image,
    // Without a count every create was refused in the words of missing capacity.
    gpu: { id: gpuType, count: wish.gpuCount },
    cloud: cloudType,
    ...(dataCenters.length === 0 ? {} : { dataCenterIds: dataCenters }),
    disk: wish.diskGb,
    ports,
    env: bootstrapEnv(wish),
    entrypoint: ENTRYPOINT,
    cmd: [BOOTSTRAP],
    ...(volume === null
      ? {}
      : { mounts: { network: [{ volumeId: volume.id, path: VOLUME_PATH }] } }),
  };
}

/** REST v2: no interruptible pods, no list of GPU types, no tags, no key against repeats. */
export const V2: Dialect = {
  capabilities: {
    interruptible: false,
    modelCache: 'network_volume',
    modelCachePath: VOLUME_PATH,
    engineForm: 'process',
    bootDeadlineMs: BOOT_DEADLINE_MS,
    listLagMs: LIST_LAG_MS,
  },
  listPath(cursor) {
    const more = cursor === null ? '' : `&cursor=${encodeURIComponent(cursor)}`;
    return `/pods?limit=${PAGE}${more}`;
  },
  lookPath: (id) => `/pods/${encodeURIComponent(id)}`,
  readPage(answer) {
    const { pods, pagination } = readAs(page, 'a list of pods', answer);
    const next = pagination?.nextCursor ?? null;
    const more = pagination?.hasNextPage ?? next !== null;
    if (!more) return { pods, next: null };
    if (next !== null && next !== '') return { pods, next };
    throw transient(
      'lease.unavailable',
      'RunPod has more pods than it lists, and does not say how to go on.',
    );
  },
  readMachine(answer) {
    const { id, name, status, gpu, ssh, cost, dataCenterId, createdAt } = readAs(
      pod,
      'a pod',
      answer,
    );
    const { direct } = ssh;
    const state = stateOf(status, direct !== null);
    const reachable = state === 'running' || state === 'booting';
    return {
      id,
      name,
      state,
      ssh:
        direct === null || !reachable
          ? null
          : { host: direct.host, port: direct.port, user: direct.username },
      region: dataCenterId ?? '',
      gpuType: gpu.id,
      gpuCount: gpu.count,
      pricePerHour: cost,
      createdAt: readTime(createdAt),
      reason: state === 'running' ? '' : status,
      raw: withoutOurs(answer),
    };
  },
  orderBody,
  volumesPath: '/network-volumes',
  readVolumes: (answer) => readAs(volumes, 'a list of network volumes', answer).networkVolumes,
};
