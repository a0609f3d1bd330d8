import type { LogEntry } from '../vllm/request-log.ts';
import type { Cluster } from './cluster.ts';
import { QUEUE_LABEL } from './controllers.ts';
import type { Kubelet } from './kubelet.ts';
import { EVENTS, JOBS, NODES, PODS } from './kinds.ts';
import { isRecord, setCondition, toTime } from './objects.ts';
import type { Job, KubeObject, Node, Pod } from './objects.ts';
import type { ClusterNetwork } from './network.ts';
import type { NodeSpec } from './nodes.ts';
import { execIn } from './sandbox.ts';
import type { ApiServer, Asked } from './server.ts';
import type { Status } from './status.ts';

/** What an event says, shortened. */
export interface EventLine {
  type: string;
  reason: string;
  message: string;
  /** `pod/x` */
  about: string;
  count: number;
}

/** What can be done to a cluster that its API does not offer. Names are of namespace `default` unless one is given. */
export interface KubernetesControl {
  pods(namespace?: string): Pod[];
  jobs(namespace?: string): Job[];
  nodes(): Node[];
  events(about?: string): EventLine[];
  addNode(spec: NodeSpec): Promise<void>;
  /** Gone from the cluster, as when its machine was given back: its pods end as failed and are replaced. */
  deleteNode(name: string): Promise<void>;
  /** Its pods go on, and nobody hears of them. */
  loseNode(name: string): void;
  bringNodeBack(name: string): void;
  /** A signal to the first process of a container; with a reason (`OOMKilled`) its state says that. */
  kill(pod: string, container: string, signal?: NodeJS.Signals, reason?: string): void;
  /** The end of a pod for want of memory on its node. */
  evict(pod: string, message?: string): Promise<void>;
  /** Says that a pod has ended so, where no kubelet would (`pods: 'none'`). */
  endPod(pod: string, exitCode: number): void;
  /** Deleted by force, as by a preemption: SIGTERM and then SIGKILL, and its object goes. */
  preempt(pod: string): void;
  /** Runs a command in a container. */
  exec(
    pod: string,
    container: string,
    argv: readonly string[],
  ): Promise<{ code: number | null; output: string }>;
  /** What a container wrote, also after it ended, by lines. */
  logs(pod: string, container: string, previous?: boolean): string[];
  /** Kueue: lets a suspended Job run, or suspends it again. */
  admit(job: string, admitted?: boolean): void;
  /** The API server refuses connections, and those that are open end. */
  setApiAway(away: boolean): Promise<void>;
  /** Watches must list anew: what was before now is forgotten. */
  compact(): void;
  /** Every request since the start. */
  asked(): readonly Asked[];
  /** How often what was asked: `get jobs`, `watch pods`, `create jobs`. */
  counts(): Record<string, number>;
  /** Answers instead of the server; returns what ends it. */
  fault(fault: (asked: Asked) => Status | 'reset' | undefined): () => void;
  /** A server on this machine's loopback, by an address that pods reach, too. */
  publish(port: number): Promise<{ host: string; port: number }>;
  /** What engines in pods were asked, over all pods there were. */
  engineRequests(): Promise<LogEntry[]>;
}

export interface ControlOptions {
  cluster: Cluster;
  kubelets: Map<string, Kubelet>;
  server: ApiServer;
  network: ClusterNetwork | undefined;
  faults: ((asked: Asked) => Status | 'reset' | undefined)[];
  addNode(spec: NodeSpec): Promise<void>;
  engineRequests(): Promise<unknown[]>;
}

export function createControl(options: ControlOptions): KubernetesControl {
  const { cluster, kubelets, server, network, faults } = options;
  const { store, recorder, loop } = cluster;

  function podOf(name: string): Pod {
    const found = (store.list(PODS) as Pod[]).find(({ metadata }) => metadata.name === name);
    if (found === undefined) throw new Error(`there is no pod ${name}`);
    return found;
  }

  function kubeletOf(name: string): Kubelet {
    const found = kubelets.get(name);
    if (found === undefined) throw new Error(`there is no node ${name}`);
    return found;
  }

  function containerOf(pod: string, container: string) {
    const object = podOf(pod);
    const found = kubeletOf(object.spec.nodeName ?? '')
      .runner(object)
      ?.container(container);
    if (found === undefined) throw new Error(`there is no container ${container} in pod ${pod}`);
    return found;
  }

  function lineOf(event: KubeObject): EventLine {
    const about = isRecord(event['involvedObject']) ? event['involvedObject'] : {};
    return {
      type: String(event['type']),
      reason: String(event['reason']),
      message: String(event['message']),
      about: `${String(about['kind']).toLowerCase()}/${String(about['name'])}`,
      count: Number(event['count']),
    };
  }

  return {
    pods: (namespace = 'default') => store.list(PODS, namespace) as Pod[],
    jobs: (namespace = 'default') => store.list(JOBS, namespace) as Job[],
    nodes: () => store.list(NODES) as Node[],
    events: (about) =>
      store
        .list(EVENTS)
        .map(lineOf)
        .filter((line) => about === undefined || line.about === about),
    addNode: options.addNode,
    async deleteNode(name) {
      const kubelet = kubeletOf(name);
      kubelets.delete(name);
      store.remove(NODES, undefined, name);
      await kubelet.close();
    },
    loseNode(name) {
      kubeletOf(name).setLost(true);
      loop.kick();
    },
    bringNodeBack(name) {
      kubeletOf(name).setLost(false);
      loop.kick();
    },
    kill(pod, container, signal = 'SIGKILL', reason) {
      containerOf(pod, container).kill(signal, reason);
    },
    async evict(
      pod,
      message = 'The node was low on resource: memory. Threshold quantity: 100Mi, available: 52Mi.',
    ) {
      const object = podOf(pod);
      await kubeletOf(object.spec.nodeName ?? '').evict(object, message);
    },
    endPod(name, exitCode) {
      const { metadata } = podOf(name);
      const finishedAt = toTime(Date.now());
      store.update(PODS, metadata.namespace, name, (copy) => {
        const { status, spec } = copy as Pod;
        const reason = exitCode === 0 ? 'Completed' : 'Error';
        status.phase = exitCode === 0 ? 'Succeeded' : 'Failed';
        status.containerStatuses = spec.containers.map((container) => ({
          name: container.name,
          image: container.image ?? '',
          imageID: '',
          ready: false,
          restartCount: 0,
          state: { terminated: { exitCode, reason, startedAt: finishedAt, finishedAt } },
        }));
      });
    },
    preempt(pod) {
      const { metadata } = podOf(pod);
      store.update(PODS, metadata.namespace, metadata.name, (copy) => {
        const { status } = copy as Pod;
        copy.metadata.deletionTimestamp = new Date(Date.now() + 1000).toISOString();
        copy.metadata.deletionGracePeriodSeconds = 1;
        status.conditions = setCondition(
          status.conditions,
          {
            type: 'DisruptionTarget',
            status: 'True',
            reason: 'PreemptionByScheduler',
            message: 'default-scheduler: preempting to accommodate a higher priority pod',
          },
          Date.now(),
        );
      });
    },
    async exec(pod, container, argv) {
      const running = containerOf(pod, container).running();
      if (running === undefined)
        throw new Error(`container ${container} of pod ${pod} does not run`);
      return execIn(running.pid, argv);
    },
    logs: (pod, container, previous = false) =>
      (containerOf(pod, container).log(previous)?.lines() ?? []).map(({ text }) => text),
    admit(name, admitted = true) {
      const job = (store.list(JOBS) as Job[]).find(({ metadata }) => metadata.name === name);
      if (job === undefined) throw new Error(`there is no job ${name}`);
      const queue = job.metadata.labels?.[QUEUE_LABEL] ?? '';
      store.update(JOBS, job.metadata.namespace, name, (copy) => {
        (copy as Job).spec.suspend = !admitted;
      });
      const message = admitted
        ? `Admitted by clusterQueue ${queue}`
        : `Preempted to accommodate a workload in the ClusterQueue ${queue}`;
      recorder.record(job, 'Normal', admitted ? 'Started' : 'Stopped', message, {
        component: 'batch/job-kueue-controller',
      });
    },
    setApiAway: async (away) => server.setAway(away),
    compact: () => store.compact(),
    asked: () => server.asked,
    counts() {
      const counts: Record<string, number> = {};
      for (const { verb, resource } of server.asked) {
        const key = resource === '' ? 'discovery' : `${verb} ${resource}`;
        counts[key] = (counts[key] ?? 0) + 1;
      }
      return counts;
    },
    fault(fault) {
      faults.push(fault);
      return () => {
        const at = faults.indexOf(fault);
        if (at >= 0) faults.splice(at, 1);
      };
    },
    async publish(port) {
      if (network === undefined) return { host: '127.0.0.1', port };
      const relay = await network.listen(network.gateway, 0, () => ({ host: '127.0.0.1', port }));
      return { host: network.gateway, port: relay.port };
    },
    engineRequests: async () => (await options.engineRequests()) as LogEntry[], // as the simulator wrote it
  };
}
