import { parseGpuName } from '../../domain/gpu-names.ts';
import type { Offer } from '../contract.ts';
import type { KubeNode, Pod } from './objects.ts';

/** How a cluster tells its GPUs. */
export interface GpuTerms {
  /** The resource that pods ask for, such as `nvidia.com/gpu`. */
  resource: string;
  /** The label of nodes that names the GPU, such as `nvidia.com/gpu.product`. */
  productLabel: string;
  /** Nodes are added for pods that wait, so that what is full may be had. */
  isAutoscaled: boolean;
}

/** Type of the offer that is no GPU; a template asks for it as `accelerator.type`. */
export const CPU = 'cpu';
/** GPUs on one node. */
const MOST_GPUS = 16;
/** MiB, of NVIDIA's GPU feature discovery. */
const MEMORY_LABEL = 'nvidia.com/gpu.memory';
const REGION_LABELS = ['topology.kubernetes.io/region', 'topology.kubernetes.io/zone'] as const;
const ARCHITECTURES: Readonly<Record<string, 'x86_64' | 'arm64'>> = {
  amd64: 'x86_64',
  arm64: 'arm64',
};

/** A number of Kubernetes' (`8`, `1k`, `500m`); extended resources are whole ones. */
export function quantity(value: string | number | undefined): number {
  if (value === undefined) return 0;
  const [, digits = '0', unit = ''] = /^([\d.]+)([A-Za-z]*)$/.exec(String(value)) ?? [];
  const factors: Record<string, number> = { m: 1e-3, k: 1e3, Ki: 1024, M: 1e6, Mi: 2 ** 20 };
  return Number(digits) * (factors[unit] ?? 1);
}

/**
 * What the scheduler reckons for a pod: its containers together with the sidecars, or the largest of what runs before
 * them with the sidecars that run by then, whichever is more.
 */
export function requestedBy({ spec }: Pick<Pod, 'spec'>, resource: string): number {
  const of = ({ resources }: Pod['spec']['containers'][number]) =>
    quantity(resources.requests?.[resource] ?? resources.limits?.[resource]);
  let sidecars = 0;
  let most = 0;
  for (const each of spec.initContainers) {
    if (each.restartPolicy === 'Always') sidecars += of(each);
    most = Math.max(most, sidecars + (each.restartPolicy === 'Always' ? 0 : of(each)));
  }
  const together = spec.containers.reduce((sum, each) => sum + of(each), sidecars);
  return Math.max(most, together);
}

interface NodeGpus {
  product: string;
  all: number;
  free: number;
  vramGb: number | null;
  regions: string[];
  architecture: Offer['architecture'];
}

function isUsable({ spec, status }: KubeNode): boolean {
  const ready = status.conditions.find(({ type }) => type === 'Ready');
  return !spec.unschedulable && ready?.status !== 'False' && ready?.status !== 'Unknown';
}

function gpusOf(node: KubeNode, pods: readonly Pod[], terms: GpuTerms): NodeGpus {
  const { labels, name } = node.metadata;
  const all = quantity(node.status.allocatable[terms.resource]);
  const used = pods
    .filter(({ spec, status }) => {
      const isOver = status.phase === 'Succeeded' || status.phase === 'Failed';
      return spec.nodeName === name && !isOver;
    })
    .reduce((sum, pod) => sum + requestedBy(pod, terms.resource), 0);
  const product = labels[terms.productLabel] ?? '';
  const memory = quantity(labels[MEMORY_LABEL]);
  return {
    product,
    all,
    free: Math.max(0, all - used),
    vramGb: memory > 0 ? Math.round(memory / 1024) : (parseGpuName(product)?.memoryGb ?? null),
    regions: REGION_LABELS.flatMap((label) => labels[label] ?? []),
    architecture: ARCHITECTURES[labels['kubernetes.io/arch'] ?? ''] ?? null,
  };
}

/**
 * What a cluster has: a kind of machine for each GPU and each number of them that fits on one of its nodes, by what nodes
 * can allocate minus what pods there request. Where nodes have no GPU label their kind is called by the resource.
 */
export function gpuOffers(
  nodes: readonly KubeNode[],
  pods: readonly Pod[],
  terms: GpuTerms,
  now: number,
): Offer[] {
  const usable = nodes.filter(isUsable);
  const found = usable.map((node) => gpusOf(node, pods, terms));
  const kinds = new Map<string, NodeGpus[]>();
  for (const each of found) {
    if (each.all < 1) continue;
    const product = each.product || terms.resource;
    kinds.set(product, [...(kinds.get(product) ?? []), each]);
  }
  const offers = [...kinds].flatMap(([product, on]) => offersOfKind(product, on, terms, now));
  if (usable.length > 0) offers.push(cpuOffer(found, now));
  return offers;
}

function offersOfKind(
  product: string,
  on: readonly NodeGpus[],
  { isAutoscaled }: GpuTerms,
  now: number,
): Offer[] {
  const most = Math.min(MOST_GPUS, Math.max(...on.map(({ all }) => all)));
  const vramGb = on.map((each) => each.vramGb).find((each) => each !== null) ?? null;
  return Array.from({ length: most }, (_, index) => {
    const count = index + 1;
    const able = on.filter(({ free }) => free >= count);
    const largest = Math.max(...on.map(({ free }) => free));
    const isFull = able.length === 0;
    const full = `no node has ${count} of them free, but ${largest} at most`;
    return {
      ...baseOffer(now),
      id: `${product}:${count}`,
      type: product,
      count,
      architecture: on[0]?.architecture ?? null,
      vramGb,
      stock: isFull ? (isAutoscaled ? 'unknown' : 'unavailable') : 'available',
      regions: [...new Set((isFull ? on : able).flatMap(({ regions }) => regions))],
      error: isFull && !isAutoscaled ? full : '',
    };
  });
}

function cpuOffer(nodes: readonly NodeGpus[], now: number): Offer {
  return {
    ...baseOffer(now),
    id: `${CPU}:1`,
    type: CPU,
    count: 1,
    architecture: nodes[0]?.architecture ?? null,
    vramGb: null,
    stock: 'available',
    regions: [...new Set(nodes.flatMap(({ regions }) => regions))],
    error: '',
  };
}

function baseOffer(now: number) {
  return {
    provider: 'kubernetes',
    kind: 'machine',
    pricePerHour: null,
    address: '',
    models: [] as string[],
    checkedAt: now,
  } as const;
}
