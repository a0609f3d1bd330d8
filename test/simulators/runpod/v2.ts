import type { ServerResponse } from 'node:http';
import { json } from '../cloud/server.ts';
import type { Call, Reply } from '../cloud/server.ts';
import { CUDA_VERSIONS, DATA_CENTERS, GPU_TYPES } from './catalog.ts';
import type { GpuType } from './catalog.ts';
import { createPod, restartPod, startPod, stopPod } from './placing.ts';
import type { PodRequest } from './placing.ts';
import { checkV2 } from './schemas.ts';
import { NO_CAPACITY, noContent, parseBody, Refusal } from './state.ts';
import type { Pod, PodExtra, RunPodState, Volume } from './state.ts';
import { showV2 } from './view.ts';

type Check = (value: unknown) => string[];

/** A body that a check has passed; only then may its fields be taken for what the schema says. */
function checked(call: Call, check: Check): object {
  const body = parseBody(call);
  const errors = check(body);
  if (errors.length > 0) throw new Refusal(422, 'Request validation failed.', errors);
  return body as object; // every schema here is one of an object
}

interface MountsBody {
  persistent?: { size: number; path: string };
  network?: { volumeId: string; path: string }[];
}

interface GpuBody {
  id: string;
  count?: number;
  allowedCudaVersions?: string[];
  minCudaVersion?: string;
}

/** A body that `checkV2.createPod` has passed. */
interface CreateBody {
  name: string;
  image?: string;
  templateId?: string;
  gpu?: GpuBody;
  cpu?: object;
  cloud?: 'SECURE' | 'COMMUNITY';
  dataCenterIds?: string[];
  disk?: number;
  ports?: string[];
  env?: Record<string, string>;
  entrypoint?: string[];
  cmd?: string[];
  args?: string;
  mounts?: MountsBody;
  registry?: string | null;
  startSsh?: boolean;
}

function crossChecked(body: CreateBody): GpuBody {
  const { gpu, cpu, mounts } = body;
  if (body.templateId !== undefined) throw new Refusal(404, 'template not found');
  if ((gpu === undefined) === (cpu === undefined)) {
    throw new Refusal(400, 'exactly one of gpu or cpu must be set');
  }
  if (gpu === undefined) throw new Refusal(400, NO_CAPACITY); // nobody rents CPU pods here
  if (gpu.minCudaVersion !== undefined && (gpu.allowedCudaVersions ?? []).length > 0) {
    throw new Refusal(400, 'allowedCudaVersions and minCudaVersion are mutually exclusive');
  }
  if (mounts?.persistent !== undefined && mounts.network !== undefined) {
    throw new Refusal(400, 'mounts.persistent and mounts.network are mutually exclusive');
  }
  if (mounts?.network !== undefined && mounts.network.length === 0) {
    throw new Refusal(400, 'mounts.network must not be empty');
  }
  // The document's default is 1; live, every create without it failed in these words.
  if (gpu.count === undefined) throw new Refusal(400, NO_CAPACITY);
  return gpu;
}

function toRequest(body: CreateBody, askedBy: string): PodRequest {
  const gpu = crossChecked(body);
  return {
    name: body.name,
    gpuTypeIds: [gpu.id],
    gpuCount: gpu.count ?? 1,
    allowedCudaVersions: gpu.allowedCudaVersions ?? [],
    minCudaVersion: gpu.minCudaVersion,
    dataCenterIds: body.dataCenterIds ?? [],
    countryCodes: [],
    image: body.image ?? '',
    args: body.args ?? '',
    entrypoint: body.entrypoint ?? [],
    cmd: body.cmd ?? [],
    disk: body.disk ?? 20,
    ports: body.ports ?? [],
    env: body.env ?? {},
    registry: body.registry ?? null,
    cloud: body.cloud ?? 'SECURE',
    network: body.mounts?.network?.[0] ?? null,
    persistent: body.mounts?.persistent ?? null,
    startSsh: body.startSsh ?? false,
    interruptible: false,
    locked: false,
    body,
    askedBy,
  };
}

function findPod({ fleet }: RunPodState, id: string): Pod {
  const pod = fleet.find(id);
  if (pod === undefined) throw new Refusal(404, 'pod not found');
  return pod;
}

function listPods(state: RunPodState, { query }: Call): Reply {
  const shown = state.fleet
    .listed()
    .toReversed()
    .map((pod) => showV2(state, pod));
  const { page_limit: most } = state.knobs();
  if (most === null) return json(200, { pods: shown });
  const from = Number(query.get('cursor') ?? 0);
  const size = Math.min(most, Number(query.get('limit') ?? most));
  const more = from + size < shown.length;
  const pagination = { nextCursor: more ? String(from + size) : null, hasNextPage: more };
  return json(200, { pods: shown.slice(from, from + size), pagination });
}

const PATCHED = [
  'image',
  'args',
  'disk',
  'ports',
  'env',
  'registry',
  'entrypoint',
  'cmd',
  'locked',
] as const;

function updatePod(state: RunPodState, pod: Pod, call: Call): Reply {
  const { name, ...body } = checked(call, checkV2.updatePod) as Partial<PodExtra> & {
    name?: string;
  };
  if (name !== undefined) pod.name = name;
  for (const key of PATCHED) if (key in body) Object.assign(pod.extra, { [key]: body[key] });
  return json(200, showV2(state, pod));
}

async function actOnPod(state: RunPodState, pod: Pod, call: Call): Promise<Reply> {
  const { action } = checked(call, checkV2.action) as { action: string };
  if (action === 'terminate') return deletePod(state, pod, call);
  const stopped = pod.phase === 'stopped' || pod.phase === 'preempted';
  if (action === 'start') {
    if (!stopped) throw new Refusal(409, 'pod is not stopped');
    startPod(state, pod);
  } else if (stopped) {
    throw new Refusal(409, 'pod is not running');
  } else if (action === 'stop') {
    await stopPod(state, pod);
  } else {
    await restartPod(state, pod);
  }
  return json(200, showV2(state, pod));
}

function deletePod(state: RunPodState, pod: Pod, call: Call): Reply {
  if (pod.phase === 'gone') throw new Refusal(404, 'pod not found');
  if (pod.extra.locked) throw new Refusal(409, 'pod is locked');
  state.fleet.terminate(pod, call.lost);
  return noContent;
}

/** Server-sent events: `tail` lines, then each new one until the client goes. */
function podLogs(pod: Pod, { query }: Call): Reply {
  const system = query.get('source') === 'system';
  const tail = Math.min(5000, Number(query.get('tail') ?? 100));
  let next = 0;

  function lines(): string[] {
    if (system)
      return [`pull image ${pod.extra.image}`, ...(pod.upAt === null ? [] : ['start container'])];
    return (pod.machine?.log() ?? '').split('\n').slice(0, -1);
  }

  function stream(res: ServerResponse): void {
    next = Math.max(0, lines().length - tail);
    const push = (): void => {
      for (const line of lines().slice(next)) {
        next += 1;
        const ts = new Date().toISOString();
        const data = JSON.stringify({ ts, source: system ? 'system' : 'container', line });
        res.write(`id: ${ts}/${String(next).padStart(12, '0')}\ndata: ${data}\n\n`);
      }
    };
    push();
    const timer = setInterval(push, 100);
    res.once('close', () => clearInterval(timer));
    res.flushHeaders();
  }

  return { status: 200, headers: { 'content-type': 'text/event-stream' }, payload: '', stream };
}

// --- Catalog -----------------------------------------------------------------------------------

function level(stock: number): string {
  if (stock <= 0) return 'NONE';
  if (stock < 4) return 'LOW';
  return stock < 16 ? 'MEDIUM' : 'HIGH';
}

function stockIn({ fleet }: RunPodState, gpu: GpuType, center: string, count: number): string {
  const stock = fleet.stock(gpu.id, center);
  return stock < count ? 'NONE' : level(stock);
}

function availabilityOf(state: RunPodState, gpu: GpuType, { query }: Call): object {
  const countries = query.get('countryCodes')?.split(',') ?? [];
  const count = Number(query.get('count') ?? 1);
  const offered = DATA_CENTERS.filter(
    ({ country }) => countries.length === 0 || countries.includes(country),
  );
  const centers = offered
    .map(({ id, name }) => ({ id, name, availability: stockIn(state, gpu, id, count) }))
    .filter(({ availability }) => availability !== 'NONE');
  const order = ['HIGH', 'MEDIUM', 'LOW'];
  const best =
    order.find((one) => centers.some(({ availability }) => availability === one)) ?? 'NONE';
  return {
    availability: best,
    ...(centers.length === 0 ? {} : { dataCenters: centers }),
    ...(gpu.manufacturer === 'AMD'
      ? {}
      : {
          cudaVersions: CUDA_VERSIONS.map((version) => ({ version, available: best !== 'NONE' })),
        }),
  };
}

function showGpu(state: RunPodState, gpu: GpuType, call: Call): object {
  const include = call.query.get('include')?.split(',') ?? [];
  if (include.some((one) => one !== 'AVAILABILITY')) {
    throw new Refusal(422, 'Request validation failed.', [
      "$.include: value must be one of 'AVAILABILITY'",
    ]);
  }
  if (include.length > 0 && call.query.get('product') === null) {
    throw new Refusal(400, 'product is required when include=AVAILABILITY');
  }
  return {
    id: gpu.id,
    name: gpu.name,
    pool: gpu.pool,
    manufacturer: gpu.manufacturer,
    memory: gpu.memory,
    secure: gpu.secure !== null,
    community: gpu.community !== null,
    price: { secure: gpu.secure ?? 0, community: gpu.community ?? 0 },
    maxCount: {
      secure: gpu.secure === null ? 0 : gpu.maxCount,
      community: gpu.community === null ? 0 : gpu.maxCount,
    },
    ...(include.length === 0 ? {} : availabilityOf(state, gpu, call)),
  };
}

function listGpus(state: RunPodState, call: Call): Reply {
  const cloud = call.query.get('cloud');
  const offered = GPU_TYPES.filter(
    (gpu) =>
      (cloud !== 'SECURE' || gpu.secure !== null) &&
      (cloud !== 'COMMUNITY' || gpu.community !== null),
  );
  return json(200, { gpus: offered.map((gpu) => showGpu(state, gpu, call)) });
}

function oneGpu(state: RunPodState, id: string, call: Call): Reply {
  const gpu = GPU_TYPES.find((type) => type.id === id);
  if (gpu === undefined) throw new Refusal(404, 'gpu type not found');
  return json(200, showGpu(state, gpu, call));
}

function listCenters(state: RunPodState, { query }: Call): Reply {
  const regions = query.get('regions')?.split(',') ?? [];
  const stock = query.get('include')?.split(',').includes('GPU_AVAILABILITY') === true;
  const centers = DATA_CENTERS.filter(
    ({ region }) => regions.length === 0 || regions.includes(region),
  );
  return json(200, {
    dataCenters: centers.map(({ id, name, region }) => ({
      id,
      name,
      region,
      globalNetwork: false,
      networkVolumeTypes: ['STANDARD'],
      compliance: [],
      ...(stock
        ? {
            gpuAvailability: GPU_TYPES.map((gpu) => ({
              id: gpu.id,
              name: gpu.name,
              availability: stockIn(state, gpu, id, 1),
            })),
          }
        : {}),
    })),
  });
}

// --- Volumes and keys --------------------------------------------------------------------------

function createVolume(state: RunPodState, call: Call): Reply {
  const body = checked(call, checkV2.createVolume) as Omit<Volume, 'id'>;
  if (!DATA_CENTERS.some(({ id }) => id === body.dataCenter))
    throw new Refusal(400, 'data center not found');
  const volume: Volume = { ...body, id: state.draw(10), type: body.type ?? 'STANDARD' };
  state.volumes.set(volume.id, volume);
  return json(201, volume);
}

function findVolume({ volumes }: RunPodState, id: string): Volume {
  const volume = volumes.get(id);
  if (volume === undefined) throw new Refusal(404, 'network volume not found');
  return volume;
}

async function deleteVolume(state: RunPodState, id: string): Promise<Reply> {
  findVolume(state, id);
  if (state.fleet.alive().some(({ extra }) => extra.network?.volumeId === id)) {
    throw new Refusal(409, 'network volume is attached to a pod');
  }
  state.volumes.delete(id);
  await state.yard?.dropVolume(id);
  return noContent;
}

function setKeys(state: RunPodState, call: Call): Reply {
  const { keys } = checked(call, checkV2.sshKeys) as { keys: string[] };
  state.sshKeys.splice(0, state.sshKeys.length, ...keys);
  return json(200, { keys });
}

type Handler = (state: RunPodState, call: Call, id: string) => Reply | Promise<Reply>;

const ROUTES: Record<string, Record<string, Handler>> = {
  '/v2/pods': {
    GET: listPods,
    POST: (state, call) => {
      const body = checked(call, checkV2.createPod) as CreateBody;
      return json(201, showV2(state, createPod(state, toRequest(body, askedByOf(call)))));
    },
  },
  '/v2/pods/{id}': {
    GET: (state, _, id) => json(200, showV2(state, findPod(state, id))),
    PATCH: (state, call, id) => updatePod(state, findPod(state, id), call),
    DELETE: (state, call, id) => deletePod(state, findPod(state, id), call),
  },
  '/v2/pods/{id}/action': { POST: (state, call, id) => actOnPod(state, findPod(state, id), call) },
  '/v2/pods/{id}/logs': { GET: (state, call, id) => podLogs(findPod(state, id), call) },
  '/v2/account/ssh-keys': { GET: ({ sshKeys }) => json(200, { keys: sshKeys }), PUT: setKeys },
  '/v2/catalog/gpus': { GET: listGpus },
  '/v2/catalog/gpus/{id}': { GET: (state, call, id) => oneGpu(state, id, call) },
  '/v2/catalog/datacenters': { GET: listCenters },
  '/v2/network-volumes': {
    GET: ({ volumes }) => json(200, { networkVolumes: [...volumes.values()] }),
    POST: createVolume,
  },
  '/v2/network-volumes/{id}': {
    GET: (state, _, id) => json(200, findVolume(state, id)),
    PATCH: (state, call, id) =>
      json(200, Object.assign(findVolume(state, id), checked(call, checkV2.updateVolume))),
    DELETE: (state, _, id) => deleteVolume(state, id),
  },
};

/** The ledger's name for a caller. */
export function askedByOf({ headers }: Call): string {
  return headers['user-agent'] ?? '';
}

/** `/v2/pods/abc/action` is `/v2/pods/{id}/action` for `abc`. */
function matchRoute(path: string): [methods: Record<string, Handler> | undefined, id: string] {
  const whole = ROUTES[path];
  if (whole !== undefined) return [whole, ''];
  const match = /^(\/v2\/(?:pods|catalog\/gpus|network-volumes))\/([^/]+)(\/.*)?$/.exec(path);
  return [
    ROUTES[`${match?.[1] ?? ''}/{id}${match?.[3] ?? ''}`],
    decodeURIComponent(match?.[2] ?? ''),
  ];
}

/** Answers a request of v2, or throws a Refusal. */
export async function answerV2(state: RunPodState, call: Call): Promise<Reply> {
  const [methods, id] = matchRoute(call.path);
  if (methods === undefined) throw new Refusal(404, 'resource not found');
  const handler = methods[call.method];
  if (handler !== undefined) return handler(state, call, id);
  const allow = Object.keys(methods).join(', ');
  throw new Refusal(405, 'The requested method is not allowed for this path.', [], { allow });
}
