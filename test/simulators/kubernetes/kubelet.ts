import { NODES, PODS } from './kinds.ts';
import type { Recorder } from './events.ts';
import { hasCondition, setCondition } from './objects.ts';
import type { Node, Pod } from './objects.ts';
import { startPod } from './pod-runner.ts';
import type { NodeServices, PodRunner, StopReason } from './pod-runner.ts';
import type { Store } from './store.ts';

/** Runs the pods that are bound to one node. */
export interface Kubelet {
  node: string;
  runner(pod: Pod): PodRunner | undefined;
  runners(): PodRunner[];
  isLost(): boolean;
  /** Lost, its pods go on, and nobody hears of them. */
  setLost(lost: boolean): void;
  /** Ends a pod as for want of memory or disk. */
  evict(pod: Pod, message: string): Promise<void>;
  close(): Promise<void>;
}

export interface KubeletOptions extends Omit<
  NodeServices,
  'isCut' | 'record' | 'pulled' | 'allocatable'
> {
  recorder: Recorder;
  store: Store;
}

const EVICTION_GRACE_MS = 1000;

export function startKubelet(name: string, options: KubeletOptions): Kubelet {
  const { store, recorder } = options;
  const runners = new Map<string, PodRunner>();
  const ending = new Set<string>();
  let lost = false;
  let closed = false;

  const services: NodeServices = {
    ...options,
    pulled: new Set(),
    isCut: () => lost || closed,
    allocatable: () =>
      (store.get(NODES, undefined, name) as Node | undefined)?.status.allocatable ?? {},
    record: (pod, type, reason, message, fieldPath) =>
      recorder.record(pod, type, reason, message, { component: 'kubelet', host: name }, fieldPath),
  };

  function end(runner: PodRunner, why: StopReason): void {
    const key = `${runner.uid} ${why.graceMs}`;
    if (ending.has(key)) return;
    ending.add(key);
    void runner.stop(why);
  }

  /** The last word about a pod that was deleted: its object may go. */
  function release(pod: Pod): void {
    const found = store.get(PODS, pod.metadata.namespace, pod.metadata.name);
    if (lost || closed || found?.metadata.uid !== pod.metadata.uid) return;
    if (found.metadata.deletionTimestamp === undefined) return;
    store.update(PODS, pod.metadata.namespace, pod.metadata.name, ({ metadata }) => {
      metadata.deletionGracePeriodSeconds = 0;
    });
  }

  function start(pod: Pod): void {
    const runner = startPod(pod, services);
    runners.set(pod.metadata.uid, runner);
    void runner.done.then(() => release(pod));
  }

  function look(pod: Pod): void {
    const { uid, deletionTimestamp, deletionGracePeriodSeconds = 30 } = pod.metadata;
    const runner = runners.get(uid);
    const over = ['Succeeded', 'Failed'].includes(pod.status.phase ?? '');
    if (runner === undefined) {
      if (deletionTimestamp === undefined && !over) start(pod);
      else release(pod);
      return;
    }
    if (deletionTimestamp !== undefined) {
      end(runner, { graceMs: deletionGracePeriodSeconds * 1000 });
      void runner.done.then(() => release(pod));
    } else if (over) end(runner, { graceMs: 30_000 });
  }

  function sync(): void {
    if (lost || closed) return;
    const pods = store.list(PODS).filter((pod) => (pod as Pod).spec.nodeName === name) as Pod[];
    const uids = new Set(pods.map(({ metadata }) => metadata.uid));
    for (const pod of pods) look(pod);
    for (const [uid, runner] of runners) {
      if (!uids.has(uid)) end(runner, { graceMs: 1000 });
    }
  }

  const stop = store.subscribe(({ kind, object }) => {
    if (kind === PODS && (object as Pod).spec.nodeName === name) queueMicrotask(sync);
  });
  sync();

  return {
    node: name,
    runner: (pod) => runners.get(pod.metadata.uid),
    runners: () => [...runners.values()],
    isLost: () => lost,
    setLost(next) {
      lost = next;
      if (lost) return;
      sync();
      for (const runner of runners.values()) runner.publish();
    },
    async evict(pod, message) {
      const runner = runners.get(pod.metadata.uid);
      if (runner === undefined) return;
      recorder.record(pod, 'Warning', 'Evicted', message, { component: 'kubelet', host: name });
      store.update(PODS, pod.metadata.namespace, pod.metadata.name, (copy) => {
        const { status } = copy as Pod;
        if (hasCondition(status.conditions, 'DisruptionTarget')) return;
        status.conditions = setCondition(
          status.conditions,
          { type: 'DisruptionTarget', status: 'True', reason: 'TerminationByKubelet', message },
          Date.now(),
        );
      });
      await runner.stop({ graceMs: EVICTION_GRACE_MS, failed: { reason: 'Evicted', message } });
    },
    async close() {
      closed = true;
      stop();
      await Promise.all([...runners.values()].map(async (one) => one.stop({ graceMs: 0 })));
    },
  };
}
