import { GPU_TYPES } from './catalog.ts';
import type { Pod, RunPodState } from './state.ts';

const STATUSES = {
  booting: 'PROVISIONING',
  up: 'RUNNING',
  stopped: 'EXITED',
  preempted: 'EXITED',
  ending: 'RUNNING',
  gone: 'TERMINATED',
} as const;

const ACTIONS: Record<string, readonly string[]> = {
  PROVISIONING: ['start', 'terminate'],
  STARTING: ['stop', 'restart', 'terminate'],
  RUNNING: ['stop', 'restart', 'terminate'],
  EXITED: ['start', 'terminate'],
  ERROR: ['start', 'terminate'],
  TERMINATED: [],
};

/** What v2 calls the pod's status. */
function statusOf({ knobs }: RunPodState, pod: Pod): string {
  if (pod.shownStatus !== null) return pod.shownStatus;
  const { status_style: style } = knobs();
  if (pod.phase === 'booting') return style === 'measured' ? 'RUNNING' : 'PROVISIONING';
  const unreachable = pod.addressAt === null || Date.now() < pod.addressAt;
  if (pod.phase === 'up' && style === 'spec' && unreachable) return 'STARTING';
  return STATUSES[pod.phase];
}

/** The public end of `22/tcp`, once there is one: a container that has exited never gets it. */
function sshPort({ fleet }: RunPodState, pod: Pod): { host: string; port: number } | undefined {
  if (!pod.extra.ports.includes('22/tcp')) return undefined;
  if (pod.machine?.containerRuns() === false) return undefined;
  const end = fleet.endpoint(pod);
  const old = pod.extra.oldPort;
  if (end === undefined || old === null || Date.now() > old.until) return end;
  return { host: end.host, port: old.port };
}

function isUp(state: RunPodState, pod: Pod): boolean {
  return state.fleet.endpoint(pod) !== undefined && pod.machine?.containerRuns() !== false;
}

function runtimeOf(state: RunPodState, pod: Pod): object | null {
  if (!isUp(state, pod)) return null;
  const ssh = sshPort(state, pod);
  const web = pod.extra.ports.filter((port) => port.endsWith('/http'));
  return {
    uptime: Math.floor((Date.now() - (pod.upAt ?? Date.now())) / 1000),
    cpu: { util: 0 },
    memory: { util: 0 },
    gpus: Array.from({ length: pod.gpus }, () => ({ util: 0, memoryUtil: 0 })),
    ports: [
      ...(ssh === undefined ? [] : [{ ip: ssh.host, private: 22, public: ssh.port, type: 'tcp' }]),
      // What the proxy connects to: no address for anybody else.
      ...web.map((port) => ({
        ip: '100.65.14.155',
        private: Number.parseInt(port, 10),
        public: 60_821,
        type: 'http',
      })),
    ],
  };
}

function sshOf(state: RunPodState, pod: Pod): object {
  const username = `${pod.id}-64411eb2`;
  const direct = sshPort(state, pod);
  return {
    proxy: { host: 'ssh.runpod.io', port: 22, username, command: `ssh ${username}@ssh.runpod.io` },
    direct:
      direct === undefined
        ? null
        : { ...direct, username: 'root', command: `ssh root@${direct.host} -p ${direct.port}` },
  };
}

function mountsOf({ extra }: Pod): object {
  if (extra.network !== null) return { network: [extra.network] };
  return extra.persistent === null ? {} : { persistent: extra.persistent };
}

/** The Pod of v2's document. */
export function showV2(state: RunPodState, pod: Pod): Record<string, unknown> {
  const { extra } = pod;
  const status = statusOf(state, pod);
  return {
    id: pod.id,
    name: pod.name,
    status,
    actions: ACTIONS[status] ?? [],
    image: extra.image,
    args: extra.args,
    entrypoint: extra.entrypoint,
    cmd: extra.cmd,
    disk: extra.disk,
    mounts: mountsOf(pod),
    ports: extra.ports,
    env: extra.env,
    registry: extra.registry,
    gpu: { id: pod.type, count: pod.gpus },
    cloud: extra.cloud,
    dataCenterId: pod.region,
    cudaVersion: extra.cudaVersion,
    ssh: sshOf(state, pod),
    template: null,
    // The document says 0 when it is stopped; a stopped pod was seen to keep its price.
    cost: pod.usdPerHour,
    locked: extra.locked,
    globalNetworking: { enabled: false },
    runtime: runtimeOf(state, pod),
    createdAt: new Date(pod.createdAt).toISOString(),
    startedAt: pod.upAt === null ? null : new Date(pod.upAt).toISOString(),
  };
}

/** `2026-08-20 06:16:19.436 +0000 UTC`: what v1 really sends for a date. */
function goTime(ms: number): string {
  return `${new Date(ms).toISOString().replace('T', ' ').replace('Z', '')} +0000 UTC`;
}

const DESIRED: Record<string, string> = {
  EXITED: 'EXITED',
  TERMINATED: 'TERMINATED',
  ERROR: 'EXITED',
};

/** The Pod of v1 as it really answered: `imageName`, an empty `machine`, no `gpu`. */
export function showV1(
  state: RunPodState,
  pod: Pod,
  includeMachine: boolean,
): Record<string, unknown> {
  const { extra } = pod;
  const ssh = sshPort(state, pod);
  const gpu = GPU_TYPES.find(({ id }) => id === pod.type);
  return {
    id: pod.id,
    name: pod.name,
    imageName: extra.image,
    desiredStatus: DESIRED[statusOf(state, pod)] ?? 'RUNNING',
    publicIp: ssh?.host ?? '',
    portMappings: ssh === undefined ? null : { 22: ssh.port },
    ports: extra.ports,
    env: extra.env,
    dockerEntrypoint: extra.entrypoint,
    dockerStartCmd: extra.cmd,
    containerDiskInGb: extra.disk,
    volumeInGb: extra.persistent?.size ?? 0,
    volumeMountPath: extra.network?.path ?? extra.persistent?.path ?? '/workspace',
    networkVolume: extra.network === null ? null : { id: extra.network.volumeId },
    gpuCount: pod.gpus,
    interruptible: pod.interruptible,
    locked: extra.locked,
    costPerHr: pod.usdPerHour,
    adjustedCostPerHr: pod.usdPerHour,
    machineId: extra.hostId,
    machine: includeMachine
      ? { dataCenterId: pod.region, gpuTypeId: pod.type, gpuDisplayName: gpu?.name ?? '' }
      : {},
    templateId: '',
    lastStartedAt: pod.upAt === null ? '' : goTime(pod.upAt),
    lastStatusChange: `Rented by User: ${new Date(pod.createdAt).toUTCString()}`,
    createdAt: goTime(pod.createdAt),
  };
}
