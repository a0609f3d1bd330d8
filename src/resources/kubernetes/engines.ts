import { ENGINE_PORT } from '../../domain/engines/public-url.ts';
import { describeError, SluiceError } from '../../domain/errors.ts';
import type { HostedEngines, HostedLook, HostedWay } from '../lease-contract.ts';
import type { Cluster } from './cluster.ts';
import { instanceOf } from './deployment.ts';
import { ENGINE_CONTAINER } from './engine-container.ts';
import { timeOf } from './objects.ts';
import type { Pod } from './objects.ts';
import { logPath, parseId, pathOf } from './paths.ts';
import { describeEnd, eventsOf, lookAtPod } from './pods.ts';
import type { PodLook } from './pods.ts';

interface EngineOptions {
  cluster: Cluster;
  /** `service`: by the name of its Service; `proxy`: through the API server; `auto`: the first one from a pod of the cluster. */
  access: 'auto' | 'service' | 'proxy';
  /** What is missing of an engine's objects is made, such as a Service that nobody came to make. */
  mend(machine: string): Promise<'there' | 'gone'>;
}

/** The engines in front of which our Services are. */
export function createHostedEngines(options: EngineOptions): HostedEngines {
  const { cluster } = options;
  const mended = new Set<string>();

  async function podOf(machine: string): Promise<Pod | null> {
    const { namespace, name } = parseId(machine);
    const pods = await cluster.pods(namespace);
    return newestOf(
      [...pods.values()].filter(({ metadata }) => instanceOf(metadata.labels) === name),
    );
  }
  return {
    async look(machine) {
      const { namespace } = parseId(machine);
      // Once by each process: who made the Deployment may have died before it made the rest.
      if (!mended.has(machine)) {
        if ((await options.mend(machine)) === 'gone') return null;
        mended.add(machine);
      }
      const pod = await podOf(machine);
      if (pod !== null) {
        const events = eventsOf(pod, await cluster.events(namespace, 'Pod'));
        return hostedLook(lookAtPod(pod, events));
      }
      if ((await options.mend(machine)) === 'there') return NO_POD;
      mended.delete(machine);
      return null;
    },
    async lastWords(machine, lines) {
      const { namespace } = parseId(machine);
      const pod = await podOf(machine);
      if (pod === null) return '';
      const { restarts } = lookAtPod(pod);
      const options_ = { container: ENGINE_CONTAINER, lines };
      const ways = restarts > 0 ? [true, false] : [false];
      for (const previous of ways) {
        const text = await readLog(
          cluster,
          logPath(namespace, pod.metadata.name, { ...options_, previous }),
        );
        if (text.trim() !== '') return text;
      }
      return '';
    },
    way: async (machine) => wayTo(machine, options),
  };
}

const NO_POD: HostedLook = {
  is: 'waiting',
  reason: 'Its Deployment has no pod yet',
  restarts: 0,
  end: null,
  isHopeless: false,
};

/** A container that has not begun has no log, and says so with 400. */
async function readLog({ api }: Cluster, path: string): Promise<string> {
  try {
    return await api.text(path);
  } catch (error) {
    const isNone =
      error instanceof SluiceError &&
      (error.code === 'kubernetes.invalid' || error.code === 'kubernetes.absent');
    if (isNone) return '';
    return `(its log cannot be read: ${describeError(error)})`;
  }
}

function hostedLook({ is, reason, restarts, end, isHopeless, pod }: PodLook): HostedLook {
  const kinds = {
    unscheduled: 'waiting',
    waiting: 'waiting',
    running: 'running',
    crashed: 'crashed',
    failed: 'crashed',
    done: 'crashed',
    leaving: 'leaving',
  } as const;
  const said = reason === '' ? '' : `Pod ${pod}: ${reason}`;
  const ended = end === null ? null : describeEnd(end);
  return { is: kinds[is], reason: said, restarts, end: ended, isHopeless };
}

/** Of those of a Deployment the one that stays: the newest that is not on its way out. */
export function newestOf(pods: readonly Pod[]): Pod | null {
  const isLeaving = (pod: Pod) => (lookAtPod(pod).is === 'leaving' ? 1 : 0);
  const age = ({ metadata }: Pod) => timeOf(metadata.creationTimestamp) ?? 0;
  const sorted = pods.toSorted(
    (one, other) => isLeaving(one) - isLeaving(other) || age(other) - age(one),
  );
  return sorted[0] ?? null;
}

async function wayTo(machine: string, { cluster, access }: EngineOptions): Promise<HostedWay> {
  const { namespace, name } = parseId(machine);
  const { server, tls, authorization, isInCluster } = await cluster.api.access();
  if (access === 'service' || (access === 'auto' && isInCluster)) {
    const url = `http://${name}.${namespace}.svc:${ENGINE_PORT}`;
    return { url, tls: null, authorization: async () => null };
  }
  const service = `${pathOf('services', namespace, name)}:${ENGINE_PORT}/proxy`;
  return { url: `${server}${service}`, tls, authorization };
}
