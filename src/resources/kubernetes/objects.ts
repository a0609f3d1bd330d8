import * as v from 'valibot';

const text = v.nullish(v.string(), '');
const labels = v.nullish(v.record(v.string(), v.string()), {});
const quantities = v.nullish(v.record(v.string(), v.union([v.string(), v.number()])), {});

const metadata = v.object({
  name: v.string(),
  namespace: text,
  uid: text,
  resourceVersion: text,
  creationTimestamp: text,
  deletionTimestamp: v.nullish(v.string(), null),
  labels,
  annotations: labels,
  ownerReferences: v.nullish(
    v.array(v.object({ kind: v.string(), name: v.string(), uid: text })),
    [],
  ),
});

const conditions = v.nullish(
  v.array(
    v.object({
      type: v.string(),
      status: v.string(),
      reason: text,
      message: text,
      lastTransitionTime: text,
    }),
  ),
  [],
);

const ended = v.object({
  exitCode: v.nullish(v.number(), 0),
  signal: v.nullish(v.number()),
  reason: text,
  message: text,
  finishedAt: text,
});
const state = v.nullish(
  v.object({
    waiting: v.nullish(v.object({ reason: text, message: text })),
    running: v.nullish(v.object({ startedAt: text })),
    terminated: v.nullish(ended),
  }),
  {},
);

const containerStatus = v.object({
  name: v.string(),
  ready: v.nullish(v.boolean(), false),
  restartCount: v.nullish(v.number(), 0),
  state,
  lastState: state,
});
export type ContainerStatus = v.InferOutput<typeof containerStatus>;

const container = v.object({
  name: v.string(),
  restartPolicy: text,
  resources: v.nullish(v.object({ requests: quantities, limits: quantities }), {}),
});

/** A pod, as far as it is read. */
export const podSchema = v.object({
  metadata,
  spec: v.object({
    nodeName: text,
    containers: v.nullish(v.array(container), []),
    initContainers: v.nullish(v.array(container), []),
  }),
  status: v.nullish(
    v.object({
      phase: text,
      reason: text,
      message: text,
      conditions,
      containerStatuses: v.nullish(v.array(containerStatus), []),
      initContainerStatuses: v.nullish(v.array(containerStatus), []),
    }),
    {},
  ),
});
export type Pod = v.InferOutput<typeof podSchema>;

export const deploymentSchema = v.object({
  metadata,
  spec: v.nullish(
    v.object({
      template: v.nullish(
        v.object({ spec: v.nullish(v.object({ nodeSelector: labels }), {}) }),
        {},
      ),
    }),
    {},
  ),
  status: v.nullish(v.object({ conditions }), {}),
});
export type Deployment = v.InferOutput<typeof deploymentSchema>;

export const serviceSchema = v.object({ metadata });
export type Service = v.InferOutput<typeof serviceSchema>;

export const nodeSchema = v.object({
  metadata,
  spec: v.nullish(
    v.object({
      unschedulable: v.nullish(v.boolean(), false),
      taints: v.nullish(
        v.array(v.object({ key: v.string(), value: text, effect: v.string() })),
        [],
      ),
    }),
    {},
  ),
  status: v.nullish(v.object({ allocatable: quantities, conditions }), {}),
});
export type KubeNode = v.InferOutput<typeof nodeSchema>;

export const eventSchema = v.object({
  metadata,
  involvedObject: v.object({ kind: text, name: text, uid: text }),
  type: text,
  reason: text,
  message: text,
  count: v.nullish(v.number(), 1),
  firstTimestamp: text,
  lastTimestamp: text,
  eventTime: text,
});
export type KubeEvent = v.InferOutput<typeof eventSchema>;

export const jobSchema = v.object({
  metadata,
  spec: v.nullish(
    v.object({
      suspend: v.nullish(v.boolean(), false),
      parallelism: v.nullish(v.number(), 1),
      completions: v.nullish(v.number(), 1),
    }),
    {},
  ),
  status: v.nullish(
    v.object({
      conditions,
      active: v.nullish(v.number(), 0),
      succeeded: v.nullish(v.number(), 0),
      failed: v.nullish(v.number(), 0),
      startTime: text,
      completionTime: text,
    }),
    {},
  ),
});
export type KubeJob = v.InferOutput<typeof jobSchema>;

/** ms since 1970; null where there is no time. */
export function timeOf(stamp: string): number | null {
  const ms = Date.parse(stamp);
  return Number.isNaN(ms) ? null : ms;
}

/** When an event was last seen. */
export function eventTime({ lastTimestamp, eventTime: at, firstTimestamp, metadata }: KubeEvent) {
  return (
    timeOf(lastTimestamp) ??
    timeOf(at) ??
    timeOf(firstTimestamp) ??
    timeOf(metadata.creationTimestamp) ??
    0
  );
}
