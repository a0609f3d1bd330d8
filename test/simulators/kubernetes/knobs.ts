import type { EngineKnobs } from './engine-knobs.ts';

/**
 * What may differ. Times are short, so that tests do not wait; what a real cluster takes is said
 * beside each.
 */
export interface KubernetesKnobs {
  /** Watches that asked for bookmarks get one so often (real: a minute). */
  bookmarkMs: number;
  /** A node that says nothing is not ready after this (real: 40 s) … */
  nodeGraceMs: number;
  /** … and its pods are evicted after this (real: tolerationSeconds of the pod, 300 s). */
  evictAfterMs: number;
  /** First wait before a failed Job's next pod, doubled each time (real: 10 s, at most 6 min). */
  jobBackoffMs: number;
  /** First wait before a container that ended starts again, doubled each time (real: 10 s, at most 5 min). */
  crashLoopMs: number;
  /** First wait before a pull is tried again, doubled each time (real: 10 s, at most 5 min). */
  pullBackoffMs: number;
  /** How long a pull takes; images are pulled once a node. */
  pullMs: number;
  /** Stretches or shortens every period, delay and time-out of probes. */
  probeScale: number;
  /** Images that cannot be pulled, beside those that nobody maps. */
  missingImages: RegExp[];
  /** Jobs with the label kueue.x-k8s.io/queue-name are suspended until `admit` is called. */
  kueue: boolean;
  /** What engines that start from now on do. */
  engine: EngineKnobs;
}

export const DEFAULT_KNOBS: KubernetesKnobs = {
  bookmarkMs: 5_000,
  nodeGraceMs: 1_000,
  evictAfterMs: 1_000,
  jobBackoffMs: 200,
  crashLoopMs: 500,
  pullBackoffMs: 500,
  pullMs: 0,
  probeScale: 1,
  missingImages: [],
  kueue: false,
  engine: {},
};
