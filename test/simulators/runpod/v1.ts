import { json } from '../cloud/server.ts';
import type { Call, Reply } from '../cloud/server.ts';
import { createPod, restartPod, startPod, stopPod } from './placing.ts';
import type { PodRequest } from './placing.ts';
import { checkV1 } from './schemas.ts';
import { NO_CAPACITY, noContent, parseBody, Refusal } from './state.ts';
import type { Pod, RunPodState, Volume } from './state.ts';
import { askedByOf } from './v2.ts';
import { showV1 } from './view.ts';

/** A body that `checkV1.createPod` has passed. */
interface CreateBody {
  name?: string;
  imageName?: string;
  computeType?: 'GPU' | 'CPU';
  gpuTypeIds?: string[];
  gpuTypePriority?: 'availability' | 'custom';
  gpuCount?: number;
  dataCenterIds?: string[];
  countryCodes?: string[];
  allowedCudaVersions?: string[];
  cloudType?: 'SECURE' | 'COMMUNITY';
  containerDiskInGb?: number | null;
  volumeInGb?: number | null;
  volumeMountPath?: string;
  networkVolumeId?: string;
  containerRegistryAuthId?: string;
  dockerEntrypoint?: string[];
  dockerStartCmd?: string[];
  env?: Record<string, string>;
  ports?: string[];
  interruptible?: boolean;
  locked?: boolean;
}

function checked(call: Call, check: (value: unknown) => string[]): object {
  const body = parseBody(call);
  const errors = check(body);
  if (errors.length > 0 || typeof body !== 'object' || body === null) {
    throw new Refusal(400, errors.join('; ') || 'invalid input');
  }
  return body;
}

/** A network volume takes the place of the pod's own. */
function storageOf(body: CreateBody): Pick<PodRequest, 'network' | 'persistent'> {
  const path = body.volumeMountPath ?? '/workspace';
  const size = body.volumeInGb ?? 20;
  const volumeId = body.networkVolumeId;
  if (volumeId !== undefined) return { network: { volumeId, path }, persistent: null };
  return { network: null, persistent: size > 0 ? { size, path } : null };
}

/** The document's defaults. */
function toRequest(body: CreateBody, askedBy: string): PodRequest {
  return {
    ...storageOf(body),
    name: body.name ?? 'my pod',
    gpuTypeIds: body.gpuTypeIds ?? [],
    gpuCount: body.gpuCount ?? 1,
    allowedCudaVersions: body.allowedCudaVersions ?? [],
    minCudaVersion: undefined,
    dataCenterIds: body.dataCenterIds ?? [],
    countryCodes: body.countryCodes ?? [],
    image: body.imageName ?? '',
    args: '',
    entrypoint: body.dockerEntrypoint ?? [],
    cmd: body.dockerStartCmd ?? [],
    disk: body.containerDiskInGb ?? 50,
    ports: body.ports ?? ['8888/http', '22/tcp'],
    env: body.env ?? {},
    registry: body.containerRegistryAuthId ?? null,
    cloud: body.cloudType ?? 'SECURE',
    startSsh: true,
    interruptible: body.interruptible ?? false,
    locked: body.locked ?? false,
    body,
    askedBy,
  };
}

/** Mistakes of the user came back as 500, missing capacity among them. */
function create(state: RunPodState, call: Call): Reply {
  const body = checked(call, checkV1.createPod) as CreateBody; // the check has seen its fields
  if (body.imageName === undefined) throw new Refusal(400, 'imageName is required');
  try {
    const request = toRequest(body, askedByOf(call));
    return json(201, showV1(state, createPod(state, request), false));
  } catch (error) {
    if (error instanceof Refusal && error.message === NO_CAPACITY) {
      throw new Refusal(500, `create pod: ${NO_CAPACITY}`);
    }
    throw error;
  }
}

function list(state: RunPodState, { query }: Call): Reply {
  const machine = query.get('includeMachine') === 'true';
  const shown = state.fleet.listed().map((pod) => [pod, showV1(state, pod, machine)] as const);
  const wanted = (key: string, value: unknown): boolean =>
    !query.has(key) || query.get(key) === value;
  const among = (key: string, value: string): boolean =>
    !query.has(key) || query.getAll(key).includes(value);
  const found = shown.filter(
    ([pod, view]) =>
      wanted('name', pod.name) &&
      wanted('id', pod.id) &&
      wanted('desiredStatus', view['desiredStatus']) &&
      wanted('imageName', pod.extra.image) &&
      wanted('networkVolumeId', pod.extra.network?.volumeId ?? '') &&
      among('gpuTypeId', pod.type) &&
      among('dataCenterId', pod.region),
  );
  return json(
    200,
    found.map(([, view]) => view),
  );
}

function findPod({ fleet }: RunPodState, id: string): Pod {
  const pod = fleet.find(id);
  if (pod === undefined) throw new Refusal(404, 'pod not found');
  return pod;
}

async function act(state: RunPodState, pod: Pod, action: string): Promise<Reply> {
  if (action === 'start') startPod(state, pod);
  else if (action === 'stop') await stopPod(state, pod);
  else if (action === 'restart' || action === 'reset') await restartPod(state, pod);
  else throw new Refusal(404, 'not found');
  return json(200, showV1(state, pod, false));
}

async function onePod(
  state: RunPodState,
  call: Call,
  id: string,
  action: string | undefined,
): Promise<Reply> {
  const pod = findPod(state, id);
  if (action !== undefined && call.method === 'POST') return act(state, pod, action);
  if (action !== undefined) throw new Refusal(405, 'method not allowed');
  if (call.method === 'GET') {
    return json(200, showV1(state, pod, call.query.get('includeMachine') === 'true'));
  }
  if (call.method !== 'DELETE') throw new Refusal(405, 'method not allowed');
  if (pod.phase === 'gone') throw new Refusal(404, 'pod not found');
  state.fleet.terminate(pod, call.lost);
  return noContent;
}

function showVolume({ id, name, size, dataCenter }: Volume): object {
  return { id, name, size, dataCenterId: dataCenter };
}

function volumes(state: RunPodState, call: Call): Reply {
  if (call.method === 'GET') return json(200, [...state.volumes.values()].map(showVolume));
  // The check has seen its fields.
  const body = checked(call, checkV1.createVolume) as {
    name: string;
    size: number;
    dataCenterId: string;
  };
  const { name, size, dataCenterId: dataCenter } = body;
  const volume: Volume = { id: state.draw(10), name, size, dataCenter, type: 'STANDARD' };
  state.volumes.set(volume.id, volume);
  return json(201, showVolume(volume));
}

/** Answers a request of v1, or throws a Refusal. */
export async function answerV1(state: RunPodState, call: Call): Promise<Reply> {
  const path = call.path.slice('/v1'.length);
  if (path === '/pods' && call.method === 'GET') return list(state, call);
  if (path === '/pods' && call.method === 'POST') return create(state, call);
  if (path === '/networkvolumes') return volumes(state, call);
  const [, id, action] = /^\/pods\/([^/]+)(?:\/([a-z]+))?$/.exec(path) ?? [];
  if (id === undefined) throw new Refusal(404, 'not found');
  return onePod(state, call, id, action);
}
