import type { KubeObject, Node } from './objects.ts';
import { toTime } from './objects.ts';

/** A node of the cluster and what it has. */
export interface NodeSpec {
  name: string;
  cpu?: string;
  memory?: string;
  gpus?: number;
  /** As NVIDIA's feature discovery names it: nvidia.com/gpu.product, and nvidia.com/gpu.memory in MiB. */
  gpuProduct?: string;
  gpuMemoryMib?: number;
  labels?: Record<string, string>;
  taints?: { key: string; value?: string; effect: string }[];
}

const VERSION = 'v1.34.1';

const HEALTHY = [
  [
    'MemoryPressure',
    'False',
    'KubeletHasSufficientMemory',
    'kubelet has sufficient memory available',
  ],
  ['DiskPressure', 'False', 'KubeletHasNoDiskPressure', 'kubelet has no disk pressure'],
  ['PIDPressure', 'False', 'KubeletHasSufficientPID', 'kubelet has sufficient PID available'],
  ['Ready', 'True', 'KubeletReady', 'kubelet is posting ready status'],
] as const;

/** A node object that is ready. */
export function makeNode(spec: NodeSpec): Node {
  const {
    name,
    cpu = '8',
    memory = '32Gi',
    gpus = 0,
    gpuProduct = 'NVIDIA-H100-80GB-HBM3',
    gpuMemoryMib = 81_559,
  } = spec;
  const now = toTime(Date.now());
  const amounts = {
    cpu,
    memory,
    'ephemeral-storage': '100Gi',
    pods: '110',
    ...(gpus > 0 ? { 'nvidia.com/gpu': String(gpus) } : {}),
  };
  const labels = {
    'kubernetes.io/hostname': name,
    'kubernetes.io/arch': 'amd64',
    'kubernetes.io/os': 'linux',
    ...(gpus > 0
      ? {
          'nvidia.com/gpu.present': 'true',
          'nvidia.com/gpu.product': gpuProduct,
          'nvidia.com/gpu.count': String(gpus),
          'nvidia.com/gpu.memory': String(gpuMemoryMib),
        }
      : {}),
    ...spec.labels,
  };
  return {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name, labels } as unknown as KubeObject['metadata'], // the rest is the store's to give
    spec: spec.taints === undefined ? {} : { taints: spec.taints },
    status: {
      capacity: amounts,
      allocatable: amounts,
      conditions: HEALTHY.map(([type, status, reason, message]) => ({
        type,
        status,
        reason,
        message,
        lastHeartbeatTime: now,
        lastTransitionTime: now,
      })),
      addresses: [
        { type: 'InternalIP', address: '10.213.0.1' },
        { type: 'Hostname', address: name },
      ],
      nodeInfo: {
        architecture: 'amd64',
        bootID: crypto.randomUUID(),
        containerRuntimeVersion: 'containerd://2.1.4',
        kernelVersion: '6.8.0',
        kubeProxyVersion: VERSION,
        kubeletVersion: VERSION,
        machineID: crypto.randomUUID(),
        operatingSystem: 'linux',
        osImage: 'Debian GNU/Linux 12 (bookworm)',
        systemUUID: crypto.randomUUID(),
      },
    },
  };
}
