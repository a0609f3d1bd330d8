import type { JobContainer, KubernetesJob } from './kubernetes-job.ts';

/** How the worker's engine is reached and when it is ready. */
export interface EngineDoor {
  /** Base URL of the engine. */
  url: string;
  /** Answers 200 when it is ready. */
  readyPath: string;
}

const DEFAULT = { url: 'http://localhost:8000', readyPath: '/health' };

/** The container of the engine; null where the Job has none of that name. */
function findEngine({ spec }: KubernetesJob, name: string): JobContainer | null {
  const { containers, initContainers } = spec.template.spec;
  return [...containers, ...initContainers].find((each) => each.name === name) ?? null;
}

/**
 * Whether the engine ends by itself once the worker has: a native sidecar does, a plain second container has to be
 * ended. Of a Job that is not known nobody can tell.
 */
export function endsByItself(job: KubernetesJob | null, name: string): boolean {
  const sidecars = job?.spec.template.spec.initContainers ?? [];
  return sidecars.some((each) => each.name === name && each.restartPolicy === 'Always');
}

/** The door that LLM_READY_ENDPOINT names, else the one that the engine's own probes knock at. */
export function engineDoor(
  endpoint: string | undefined,
  job: KubernetesJob | null,
  name: string,
): EngineDoor {
  if (endpoint !== undefined) {
    const { origin, pathname } = new URL(endpoint);
    return { url: origin, readyPath: pathname === '/' ? DEFAULT.readyPath : pathname };
  }
  const engine = job === null ? null : findEngine(job, name);
  return (engine === null ? null : probedDoor(engine)) ?? DEFAULT;
}

/** Where the probes of a container knock; null where it has none that speaks HTTP. */
function probedDoor(engine: JobContainer): EngineDoor | null {
  const { readinessProbe, livenessProbe, startupProbe } = engine;
  const gets = [readinessProbe, livenessProbe, startupProbe].map((probe) => probe?.httpGet);
  const get = gets.find((each) => each !== undefined);
  if (get === undefined) return null;
  const scheme = (get.scheme ?? 'HTTP').toLowerCase();
  const path = get.path ?? DEFAULT.readyPath;
  return {
    // The kubelet knocks at the pod's address, where we are at home.
    url: `${scheme}://${get.host ?? 'localhost'}:${portOf(get.port, engine)}`,
    readyPath: path.startsWith('/') ? path : `/${path}`,
  };
}

/** A probe may name one of the container's ports. */
function portOf(port: number | string, { ports }: JobContainer): number | string {
  if (typeof port === 'number' || /^\d+$/.test(port)) return port;
  return ports.find((each) => each.name === port)?.containerPort ?? 8_000;
}
