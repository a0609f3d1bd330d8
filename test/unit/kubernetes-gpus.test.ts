import { describe, expect, test } from 'vitest';
import { chooseOffers } from '../../src/domain/choose-offer.ts';
import { gpuOffers, quantity, requestedBy } from '../../src/resources/kubernetes/gpus.ts';
import { makeNode, makePod } from '../support/kube-objects.ts';

const TERMS = {
  resource: 'nvidia.com/gpu',
  productLabel: 'nvidia.com/gpu.product',
  isAutoscaled: false,
};
const H100 = {
  'nvidia.com/gpu.product': 'NVIDIA-H100-80GB-HBM3',
  'nvidia.com/gpu.memory': '81559',
  'topology.kubernetes.io/region': 'eu-west',
  'topology.kubernetes.io/zone': 'eu-west-1a',
};

function onNode(nodeName: string, gpus: number, phase = 'Running') {
  const resources = { requests: { 'nvidia.com/gpu': gpus } };
  return makePod({ phase }, { spec: { nodeName, containers: [{ name: 'c', resources }] } });
}

function stockOf(offers: ReturnType<typeof gpuOffers>) {
  return Object.fromEntries(offers.map(({ id, stock }) => [id, stock]));
}

describe('what a cluster has', () => {
  test('allocatable minus requested, on one node: pods that are over take nothing', () => {
    const nodes = [makeNode('a', H100, 4), makeNode('b', H100, 2)];
    const pods = [onNode('a', 3), onNode('b', 1), onNode('b', 1, 'Succeeded')];
    expect(stockOf(gpuOffers(nodes, pods, TERMS, 0))).toEqual({
      'NVIDIA-H100-80GB-HBM3:1': 'available',
      'NVIDIA-H100-80GB-HBM3:2': 'unavailable',
      'NVIDIA-H100-80GB-HBM3:3': 'unavailable',
      'NVIDIA-H100-80GB-HBM3:4': 'unavailable',
      'cpu:1': 'available',
    });
  });

  test('what is full says how much is free; with KUBERNETES_AUTOSCALED it may be asked for', () => {
    const nodes = [makeNode('a', H100, 2)];
    const [one, two] = gpuOffers(nodes, [onNode('a', 1)], TERMS, 0);
    expect(one?.error).toBe('');
    expect(two?.error).toBe('no node has 2 of them free, but 1 at most');
    const grown = gpuOffers(nodes, [onNode('a', 2)], { ...TERMS, isAutoscaled: true }, 0);
    expect(stockOf(grown)).toMatchObject({ 'NVIDIA-H100-80GB-HBM3:2': 'unknown' });
    expect(grown[0]?.error).toBe('');
  });

  test('nodes that take no pods have nothing', () => {
    const cordoned = makeNode('a', H100, 4);
    const lost = makeNode('b', H100, 4);
    const nodes = [
      { ...cordoned, spec: { ...cordoned.spec, unschedulable: true } },
      {
        ...lost,
        status: {
          ...lost.status,
          conditions: [
            { type: 'Ready', status: 'Unknown', reason: '', message: '', lastTransitionTime: '' },
          ],
        },
      },
    ];
    expect(gpuOffers(nodes, [], TERMS, 0)).toEqual([]);
  });

  test('a template that asks for an H100 finds it by the label, with memory, region and architecture', () => {
    const offers = gpuOffers([makeNode('a', H100, 1)], [], TERMS, 7);
    const wish = {
      gpuType: 'H100',
      count: 1,
      vramGb: 79,
      interconnect: '' as const,
      regions: ['eu-west-1a'],
      interruptible: false,
      maxPricePerHour: null,
      needsPrice: false,
      providers: ['kubernetes'],
    };
    const { candidates } = chooseOffers(offers, wish, { policy: 'simple', speeds: new Map() });
    expect(candidates).toEqual([
      expect.objectContaining({
        id: 'NVIDIA-H100-80GB-HBM3:1',
        vramGb: 80,
        regions: ['eu-west', 'eu-west-1a'],
        architecture: 'x86_64',
        checkedAt: 7,
      }),
    ]);
  });

  test('nodes without a label are told by the resource, of any maker', () => {
    const terms = { ...TERMS, resource: 'amd.com/gpu', productLabel: 'amd.com/gpu.product-name' };
    const node = makeNode('a', {}, 0);
    const amd = { ...node, status: { ...node.status, allocatable: { 'amd.com/gpu': '1' } } };
    expect(gpuOffers([amd], [], terms, 0).map(({ type }) => type)).toEqual(['amd.com/gpu', 'cpu']);
  });
});

test('what a pod asks for counts as the scheduler counts it', () => {
  const gpu = (count: number) => ({ requests: { 'nvidia.com/gpu': String(count) } });
  const containers = [{ name: 'a', resources: gpu(1) }];
  const sidecar = { name: 's', restartPolicy: 'Always', resources: gpu(2) };
  const before = { name: 'i', resources: gpu(4) };
  const of = (initContainers: object[]) =>
    requestedBy(makePod({}, { spec: { containers, initContainers } }), 'nvidia.com/gpu');
  expect(of([])).toBe(1);
  expect(of([sidecar])).toBe(3);
  expect(of([before])).toBe(4);
  expect(of([sidecar, before])).toBe(6);
  const limits = { limits: { 'nvidia.com/gpu': '2' } };
  const limited = makePod({}, { spec: { containers: [{ name: 'a', resources: limits }] } });
  expect(requestedBy(limited, 'nvidia.com/gpu')).toBe(2);
});

test('quantities', () => {
  expect(['8', '1k', '500m', '', undefined].map(quantity)).toEqual([8, 1_000, 0.5, 0, 0]);
});
