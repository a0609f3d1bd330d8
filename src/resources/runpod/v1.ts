import * as v from 'valibot';
import type { MachineState } from '../../domain/lease.ts';
import type { Machine } from '../lease-contract.ts';
import { BOOTSTRAP, bootstrapEnv, ENTRYPOINT, VOLUME_PATH } from './bootstrap.ts';
import { BOOT_DEADLINE_MS, LIST_LAG_MS, readAs, readTime, withoutOurs } from './dialect.ts';
import type { Dialect, PodOrder } from './dialect.ts';

const text = v.nullish(v.string(), '');

/**
 * v1's specification requires no field at all, and its answers have others than it says: `gpuCount` beside or instead of
 * `gpu`, `machine` empty unless it is asked for. Both forms are read; name, status and price must be there.
 */
const pod = v.object({
  id: v.pipe(v.string(), v.nonEmpty()),
  name: v.string(),
  desiredStatus: v.string(),
  publicIp: text,
  portMappings: v.nullish(v.record(v.string(), v.number())),
  costPerHr: v.nullable(v.pipe(v.union([v.number(), v.string()]), v.transform(Number), v.number())),
  gpuCount: v.nullish(v.number()),
  gpu: v.nullish(v.object({ id: text, count: v.nullish(v.number()) })),
  machine: v.nullish(v.object({ dataCenterId: text, gpuTypeId: text })),
  createdAt: text,
  lastStatusChange: text,
});

const volumes = v.array(v.object({ id: v.string(), name: v.string(), dataCenterId: v.string() }));

const STATES: Record<string, MachineState> = {
  RUNNING: 'running',
  EXITED: 'stopping',
  TERMINATED: 'gone',
};

interface Place {
  host: string;
  port: number | undefined;
}

/** It shows what is desired, so that RUNNING is true from creation on: an address is what tells. */
function stateOf(status: string, { host, port }: Place): MachineState {
  const state = STATES[status] ?? 'booting';
  return state === 'running' && (host === '' || port === undefined) ? 'booting' : state;
}

/** What was left out was said in another field, or by nobody. */
function gpuOf({ gpuCount, gpu, machine }: v.InferOutput<typeof pod>) {
  const type = machine?.gpuTypeId ?? '';
  return { gpuType: type === '' ? (gpu?.id ?? '') : type, gpuCount: gpuCount ?? gpu?.count ?? 0 };
}

function readMachine(answer: unknown): Machine {
  const found = readAs(pod, 'a pod', answer);
  const { id, name, desiredStatus, lastStatusChange, costPerHr, createdAt, machine } = found;
  const place = { host: found.publicIp, port: found.portMappings?.['22'] };
  const state = stateOf(desiredStatus, place);
  const reason = [desiredStatus, lastStatusChange].filter((one) => one !== '').join(': ');
  return {
    id,
    name,
    state,
    ssh:
      state === 'running' && place.port !== undefined
        ? { host: place.host, port: place.port, user: 'root' }
        : null,
    region: machine?.dataCenterId ?? '',
    ...gpuOf(found),
    pricePerHour: costPerHr,
    createdAt: readTime(createdAt),
    reason: state === 'running' ? '' : reason,
    raw: withoutOurs(answer),
  };
}

function orderBody({ wish, gpuType, dataCenters, cloudType, volume, ports }: PodOrder): object {
  return {
    name: wish.name,
    imageName: wish.image,
    computeType: 'GPU',
    cloudType,
    // It takes several; one at a time is what tells which of them was refused.
    gpuTypeIds: [gpuType],
    gpuCount: wish.gpuCount,
    ...(dataCenters.length === 0
      ? {}
      : { dataCenterIds: dataCenters, dataCenterPriority: 'availability' }),
    containerDiskInGb: wish.diskGb,
    // Its default is 20 GB that nobody needs and everybody pays.
    volumeInGb: 0,
    interruptible: wish.interruptible,
    ports,
    ...(cloudType === 'COMMUNITY' ? { supportPublicIp: true } : {}),
    env: bootstrapEnv(wish),
    dockerEntrypoint: ENTRYPOINT,
    dockerStartCmd: [BOOTSTRAP],
    ...(volume === null ? {} : { networkVolumeId: volume.id, volumeMountPath: VOLUME_PATH }),
  };
}

/** REST v1, which knows interruptible pods and has neither catalog nor pages. */
export const V1: Dialect = {
  capabilities: {
    interruptible: true,
    modelCache: 'network_volume',
    modelCachePath: VOLUME_PATH,
    engineForm: 'process',
    bootDeadlineMs: BOOT_DEADLINE_MS,
    listLagMs: LIST_LAG_MS,
  },
  listPath: () => '/pods?includeMachine=true',
  lookPath: (id) => `/pods/${encodeURIComponent(id)}?includeMachine=true`,
  readPage: (answer) => ({
    pods: readAs(v.array(v.unknown()), 'a list of pods', answer),
    next: null,
  }),
  readMachine,
  orderBody,
  volumesPath: '/networkvolumes',
  readVolumes: (answer) =>
    readAs(volumes, 'a list of network volumes', answer).map(({ id, name, dataCenterId }) => ({
      id,
      name,
      dataCenter: dataCenterId,
    })),
};
