import { CUDA_VERSIONS, DATA_CENTERS, GPU_TYPES } from './catalog.ts';
import type { GpuType } from './catalog.ts';
import { NO_CAPACITY, NO_FREE_GPU, Refusal } from './state.ts';
import type { Pod, PodExtra, RunPodState } from './state.ts';

/** A pod as either dialect asks for it. */
export interface PodRequest extends Omit<
  PodExtra,
  'cudaVersion' | 'hostId' | 'oldPort' | 'locked'
> {
  name: string;
  /** In order; v2 has exactly one. */
  gpuTypeIds: readonly string[];
  gpuCount: number;
  /** Empty: anywhere. */
  dataCenterIds: readonly string[];
  allowedCudaVersions: readonly string[];
  minCudaVersion: string | undefined;
  interruptible: boolean;
  locked: boolean;
  body: unknown;
  askedBy: string;
}

interface Place {
  gpu: GpuType;
  dataCenter: string;
  price: number;
  cudaVersion: string;
}

/** `12.11` is above `12.2`. */
function isAtLeast(version: string, floor: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  const [floorMajor = 0, floorMinor = 0] = floor.split('.').map(Number);
  return major > floorMajor || (major === floorMajor && minor >= floorMinor);
}

function cudaFor({ allowedCudaVersions, minCudaVersion }: PodRequest): string | undefined {
  return CUDA_VERSIONS.findLast((version) => {
    if (allowedCudaVersions.length > 0) return allowedCudaVersions.includes(version);
    return minCudaVersion === undefined || isAtLeast(version, minCudaVersion);
  });
}

/** USD an hour for one; undefined where this cloud does not rent it. */
function priceOf(gpu: GpuType, cloud: 'SECURE' | 'COMMUNITY'): number | undefined {
  return (cloud === 'SECURE' ? gpu.secure : gpu.community) ?? undefined;
}

function centersFor(state: RunPodState, request: PodRequest): string[] {
  const volume = request.network === null ? undefined : state.volumes.get(request.network.volumeId);
  if (request.network !== null && volume === undefined)
    throw new Refusal(404, 'network volume not found');
  return DATA_CENTERS.filter(({ id, country }) => {
    if (volume !== undefined && volume.dataCenter !== id) return false;
    if (request.countryCodes.length > 0 && !request.countryCodes.includes(country)) return false;
    return request.dataCenterIds.length === 0 || request.dataCenterIds.includes(id);
  }).map(({ id }) => id);
}

function place(state: RunPodState, request: PodRequest): Place {
  const cudaVersion = cudaFor(request);
  if (cudaVersion === undefined || state.fleet.refuses()) throw new Refusal(400, NO_CAPACITY);
  const centers = centersFor(state, request);
  const { forbidden_types: forbidden, interruptible_share: share } = state.knobs();
  for (const id of request.gpuTypeIds) {
    const gpu = GPU_TYPES.find((type) => type.id === id);
    const price = gpu === undefined ? undefined : priceOf(gpu, request.cloud);
    if (gpu === undefined || price === undefined || request.gpuCount > gpu.maxCount) continue;
    if (forbidden.includes(id)) {
      if (request.gpuTypeIds.length === 1) throw new Refusal(403, 'access denied');
      continue;
    }
    const dataCenter = centers.find((center) => state.fleet.stock(id, center) >= request.gpuCount);
    if (dataCenter === undefined) continue;
    const usd = price * request.gpuCount * (request.interruptible ? share : 1);
    return { gpu, dataCenter, price: Math.round(usd * 1000) / 1000, cudaVersion };
  }
  throw new Refusal(400, NO_CAPACITY);
}

function checkMoney({ fleet, knobs }: RunPodState, price: number): void {
  const { balance_usd: balance, spend_limit_usd: most, quota } = knobs();
  const alive = fleet.alive();
  let spending = price;
  for (const { usdPerHour } of alive) spending += usdPerHour;
  if (balance !== null && balance < spending) throw new Refusal(402, 'insufficient balance');
  // A limit of the account is told like missing capacity, as its users found out.
  const full = quota !== null && alive.length >= quota;
  if (full || (most !== null && spending > most)) throw new Refusal(400, NO_CAPACITY);
}

/** Finds a place and rents it; throws a Refusal. */
export function createPod(state: RunPodState, request: PodRequest): Pod {
  const { gpu, dataCenter, price, cudaVersion } = place(state, request);
  checkMoney(state, price);
  const { name, gpuCount, interruptible, body, askedBy, locked } = request;
  return state.fleet.create({
    id: state.draw(14),
    name,
    type: gpu.id,
    gpus: gpuCount,
    units: gpuCount,
    region: dataCenter,
    usdPerHour: price,
    interruptible,
    askedBy,
    request: body,
    extra: {
      image: request.image,
      args: request.args,
      entrypoint: request.entrypoint,
      cmd: request.cmd,
      disk: request.disk,
      ports: request.ports,
      env: request.env,
      registry: request.registry,
      cloud: request.cloud,
      network: request.network,
      persistent: request.persistent,
      startSsh: request.startSsh,
      countryCodes: request.countryCodes,
      cudaVersion,
      locked,
      hostId: state.draw(12),
      oldPort: null,
    },
  });
}

/** Rents a stopped pod's GPUs again; its host must have them. Throws a Refusal. */
export function startPod(state: RunPodState, pod: Pod): void {
  if (state.fleet.stock(pod.type, pod.region) < pod.units) throw new Refusal(400, NO_FREE_GPU);
  state.fleet.boot(pod);
}

export async function stopPod(state: RunPodState, pod: Pod): Promise<void> {
  if (pod.extra.locked) throw new Refusal(409, 'pod is locked');
  rememberPort(state, pod);
  await state.fleet.halt(pod, 'stopped');
}

export async function restartPod(state: RunPodState, pod: Pod): Promise<void> {
  rememberPort(state, pod);
  await state.fleet.halt(pod, 'stopped');
  state.fleet.boot(pod);
}

function rememberPort({ fleet, knobs }: RunPodState, pod: Pod): void {
  const port = fleet.endpoint(pod)?.port;
  const lasts = knobs().stale_port_ms;
  if (port !== undefined && lasts > 0) pod.extra.oldPort = { port, until: Date.now() + lasts };
}
