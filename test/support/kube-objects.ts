import * as v from 'valibot';
import { eventSchema, nodeSchema, podSchema } from '../../src/resources/kubernetes/objects.ts';
import type { KubeEvent, KubeNode, Pod } from '../../src/resources/kubernetes/objects.ts';

type Parts = Record<string, unknown>;

/** A pod as an API server has it, on a node and running unless said otherwise. */
export function makePod(status: Parts, more: { metadata?: Parts; spec?: Parts } = {}): Pod {
  return v.parse(podSchema, {
    metadata: { name: 'engine-abc', uid: 'u1', ...more.metadata },
    spec: { nodeName: 'node-1', containers: [{ name: 'llm-engine' }], ...more.spec },
    status: { phase: 'Running', ...status },
  });
}

export function makeNode(name: string, labels: Record<string, string>, gpus: number): KubeNode {
  return v.parse(nodeSchema, {
    metadata: { name, labels: { 'kubernetes.io/arch': 'amd64', ...labels } },
    status: {
      allocatable: { cpu: '8', ...(gpus > 0 ? { 'nvidia.com/gpu': String(gpus) } : {}) },
      conditions: [{ type: 'Ready', status: 'True' }],
    },
  });
}

export function makeEvent(reason: string, message: string, at = 1, type = 'Warning'): KubeEvent {
  return v.parse(eventSchema, {
    metadata: { name: `${reason}-${at}` },
    involvedObject: { kind: 'Pod', name: 'engine-abc', uid: 'u1' },
    type,
    reason,
    message,
    lastTimestamp: new Date(1_795_000_000_000 + at * 1_000).toISOString(),
  });
}
