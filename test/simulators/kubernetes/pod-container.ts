import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { containerEnv, ConfigError, expand } from './environment.ts';
import type { EventType } from './events.ts';
import type { ImageProgram } from './images.ts';
import { RuntimeError, startContainer } from './container.ts';
import type { Ended, RunningContainer } from './container.ts';
import type { KubernetesKnobs } from './knobs.ts';
import { createLog } from './logs.ts';
import type { ContainerLog } from './logs.ts';
import { toTime } from './objects.ts';
import type { Container, ContainerStatus, Pod } from './objects.ts';
import { followProbe } from './probes.ts';
import { execIn } from './sandbox.ts';
import type { Sandbox } from './sandbox.ts';
import type { Store } from './store.ts';
import { mountsOf } from './volumes.ts';

export type Role = 'init' | 'sidecar' | 'main';

/** What a container needs of its pod and node. */
export interface Surroundings {
  store: Store;
  knobs(): KubernetesKnobs;
  images(): readonly ImageProgram[];
  programs: string;
  pulled: Set<string>;
  allocatable(): Record<string, string>;
  /** Of every container, beside its own: KUBERNETES_SERVICE_HOST … */
  serviceEnv(pod: Pod): Record<string, string>;
  hosts(pod: Pod, address: string): string;
  /** The pod as the node knows it. */
  pod(): Pod;
  sandbox(): Sandbox;
  places(): ReadonlyMap<string, string>;
  event(type: EventType, reason: string, message: string, fieldPath?: string): void;
  /** Something about the container has changed. */
  changed(): void;
  /** Aborted when the pod is to end: nothing starts any more. */
  stopping: AbortSignal;
}

type State = NonNullable<ContainerStatus['state']>;

/** One container of a pod over all its runs. */
export interface PodContainer {
  spec: Container;
  role: Role;
  status(): ContainerStatus;
  /** Runs once, to its end; undefined when the pod ends before it began. */
  run(): Promise<Ended | undefined>;
  /** Waits as CrashLoopBackOff before it runs again. */
  backOff(): Promise<void>;
  /** Resolves when its startup probe has passed, or it runs and has none. */
  started(): Promise<void>;
  /** SIGTERM, and SIGKILL after the grace; resolves when it has ended. */
  stop(graceMs: number): Promise<void>;
  /** A kill from outside; the state says `reason`. */
  kill(signal: NodeJS.Signals, reason?: string): void;
  log(previous: boolean): ContainerLog | undefined;
  running(): RunningContainer | undefined;
  /** It will not run (again): what waits for it goes on. */
  finish(): void;
}

const MOST_DOUBLINGS = 5;
const QUIET_S = 600;

export function createPodContainer(
  spec: Container,
  role: Role,
  around: Surroundings,
): PodContainer {
  const { stopping, event } = around;
  const list = role === 'main' ? 'containers' : 'initContainers';
  const fieldPath = `spec.${list}{${spec.name}}`;
  const waitsForInit = (around.pod().spec.initContainers ?? []).length > 0;
  let state: State = {
    waiting: { reason: waitsForInit ? 'PodInitializing' : 'ContainerCreating' },
  };
  let lastState: State = {};
  let restartCount = 0;
  let runs = 0;
  let crashes = 0;
  let ready = false;
  let isStarted = false;
  let current: RunningContainer | undefined;
  let logs: ContainerLog[] = [];
  let killReason: string | undefined;
  /** The grace of a stop that was asked for, maybe while it was being started. */
  let ending: number | undefined;
  let containerID: string | undefined;
  const begun = Promise.withResolvers<undefined>();

  function become(next: State): void {
    state = next;
    around.changed();
  }

  const wait = async (ms: number): Promise<void> => {
    try {
      await sleep(ms, undefined, { signal: stopping });
    } catch {
      // the pod is to end: what waits looks at that
    }
  };

  async function pull(): Promise<ImageProgram | undefined> {
    const { image = '' } = spec;
    let delay = around.knobs().pullBackoffMs;
    for (;;) {
      if (stopping.aborted) return undefined;
      const { missingImages, pullMs } = around.knobs();
      const program = around.images().find(({ match }) => match.test(image));
      const missing = program === undefined || missingImages.some((match) => match.test(image));
      if (!missing && around.pulled.has(image) && spec.imagePullPolicy !== 'Always') {
        event(
          'Normal',
          'Pulled',
          `Container image "${image}" already present on machine`,
          fieldPath,
        );
        return program;
      }
      if (spec.imagePullPolicy === 'Never' && !around.pulled.has(image) && missing) {
        event(
          'Warning',
          'ErrImageNeverPull',
          `Container image "${image}" is not present with pull policy of Never`,
          fieldPath,
        );
        event('Warning', 'Failed', 'Error: ErrImageNeverPull', fieldPath);
        become({
          waiting: {
            reason: 'ErrImageNeverPull',
            message: `Container image "${image}" is not present with pull policy of Never`,
          },
        });
        await wait(delay);
        continue;
      }
      event('Normal', 'Pulling', `Pulling image "${image}"`, fieldPath);
      await wait(pullMs);
      if (!missing) {
        around.pulled.add(image);
        event(
          'Normal',
          'Pulled',
          `Successfully pulled image "${image}" in ${pullMs}ms (${pullMs}ms including waiting). Image size: 123456789 bytes.`,
          fieldPath,
        );
        return program;
      }
      const why = `failed to pull and unpack image "${image}": failed to resolve reference "${image}": pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed`;
      event('Warning', 'Failed', `Failed to pull image "${image}": ${why}`, fieldPath);
      event('Warning', 'Failed', 'Error: ErrImagePull', fieldPath);
      become({ waiting: { reason: 'ErrImagePull', message: why } });
      await wait(delay / 4);
      event('Normal', 'BackOff', `Back-off pulling image "${image}"`, fieldPath);
      event('Warning', 'Failed', 'Error: ImagePullBackOff', fieldPath);
      become({
        waiting: {
          reason: 'ImagePullBackOff',
          message: `Back-off pulling image "${image}": ErrImagePull: ${why}`,
        },
      });
      await wait(delay);
      delay = Math.min(delay * 2, around.knobs().pullBackoffMs * 2 ** MOST_DOUBLINGS);
    }
  }

  async function environment(program: ImageProgram): Promise<Record<string, string> | undefined> {
    for (;;) {
      if (stopping.aborted) return undefined;
      try {
        refuseRoot(program);
        return containerEnv(around.store, around.pod(), spec, around.allocatable());
      } catch (error) {
        if (!(error instanceof ConfigError)) throw error;
        event('Warning', 'Failed', `Error: ${error.message}`, fieldPath);
        become({ waiting: { reason: 'CreateContainerConfigError', message: error.message } });
        await wait(around.knobs().pullBackoffMs);
      }
    }
  }

  /** As the kubelet does before it makes a container. */
  function refuseRoot(program: ImageProgram): void {
    const pod = around.pod().spec.securityContext ?? {};
    const own = spec.securityContext ?? {};
    const user = own.runAsUser ?? pod.runAsUser;
    if ((own.runAsNonRoot ?? pod.runAsNonRoot) !== true || (user ?? program.user ?? 0) !== 0)
      return;
    const { metadata } = around.pod();
    const where = `pod: "${metadata.name}_${metadata.namespace}(${metadata.uid})", container: ${spec.name}`;
    throw new ConfigError(
      user === undefined
        ? `container has runAsNonRoot and image will run as root (${where})`
        : `container's runAsUser breaks non-root policy (${where})`,
    );
  }

  function identity(program: ImageProgram): {
    user: number | undefined;
    group: number | undefined;
    groups: number[];
  } {
    const pod = around.pod().spec.securityContext ?? {};
    const own = spec.securityContext ?? {};
    const { fsGroup, supplementalGroups = [] } = pod;
    const user = own.runAsUser ?? pod.runAsUser ?? program.user;
    return {
      user,
      // /etc/passwd of container.sh knows one user beside root.
      group: own.runAsGroup ?? pod.runAsGroup ?? (user === 1000 ? user : 0),
      groups: [...supplementalGroups, ...(fsGroup === undefined ? [] : [fsGroup])],
    };
  }

  async function launch(
    program: ImageProgram,
    env: Record<string, string>,
    log: ContainerLog,
  ): Promise<RunningContainer> {
    const pod = around.pod();
    const sandbox = around.sandbox();
    const all = {
      ...program.env,
      HOSTNAME: pod.spec.hostname ?? pod.metadata.name,
      ...around.serviceEnv(pod),
      ...env,
    };
    const filled: Container = {
      ...spec,
      ...(spec.command === undefined
        ? {}
        : { command: spec.command.map((word) => expand(word, all)) }),
      ...(spec.args === undefined ? {} : { args: spec.args.map((word) => expand(word, all)) }),
    };
    const mounts = await mountsOf(spec, around.places());
    const sim = path.join(path.dirname(sandbox.folder), `${path.basename(sandbox.folder)}.sim`);
    return startContainer(
      {
        folder: path.join(sandbox.folder, 'containers', `${spec.name}-${runs}`),
        programs: around.programs,
        argv: program.argv(filled),
        env: { SIM_ENGINE: JSON.stringify(around.knobs().engine), ...all },
        workingDir: spec.workingDir ?? program.workingDir ?? '/',
        mounts: [...mounts, { from: sim, to: '/sim', readOnly: false }],
        hosts: around.hosts(pod, sandbox.address),
        readOnlyRoot: spec.securityContext?.readOnlyRootFilesystem ?? false,
        sharesProcesses: pod.spec.shareProcessNamespace ?? false,
        ...identity(program),
      },
      sandbox.pid,
      log,
    );
  }

  function probe(running: RunningContainer): { stop(): void } {
    const target = { address: around.sandbox().address, pid: running.pid, container: spec };
    const scale = around.knobs().probeScale;
    const following: { stop(): void }[] = [];
    const follow = (
      kind: 'Startup' | 'Readiness' | 'Liveness',
      wanted: Container['livenessProbe'],
      verdict: (ok: boolean) => void,
    ): void => {
      if (wanted === undefined) return;
      const failed = (message: string): void =>
        event('Warning', 'Unhealthy', `${kind} probe failed: ${message}`, fieldPath);
      following.push(followProbe(wanted, target, scale, { verdict, failed }));
    };
    const restart = (kind: string): void => {
      event(
        'Normal',
        'Killing',
        `Container ${spec.name} failed ${kind} probe, will be restarted`,
        fieldPath,
      );
      void terminate((spec.livenessProbe?.terminationGracePeriodSeconds ?? graceOf()) * 1000);
    };
    const go = (): void => {
      isStarted = true;
      begun.resolve(undefined);
      ready = spec.readinessProbe === undefined;
      follow('Readiness', spec.readinessProbe, (ok) => {
        ready = ok;
        around.changed();
      });
      follow('Liveness', spec.livenessProbe, (ok) => {
        if (!ok) restart('liveness');
      });
      around.changed();
    };
    if (spec.startupProbe === undefined) go();
    else {
      follow('Startup', spec.startupProbe, (ok) => {
        following[0]?.stop();
        if (ok) go();
        else restart('startup');
      });
    }
    return {
      stop() {
        for (const one of following) one.stop();
      },
    };
  }

  const graceOf = (): number => around.pod().spec.terminationGracePeriodSeconds ?? 30;

  async function terminate(graceMs: number): Promise<void> {
    const running = current;
    if (running === undefined) return;
    const began = Date.now();
    const hook = spec.lifecycle?.preStop;
    if (hook?.exec?.command !== undefined) {
      await Promise.race([execIn(running.pid, hook.exec.command), sleep(graceMs), running.ended]);
    } else if (hook?.sleep !== undefined) {
      await Promise.race([sleep(Math.min(hook.sleep.seconds * 1000, graceMs)), running.ended]);
    }
    running.signal('SIGTERM');
    const left = Math.max(0, graceMs - (Date.now() - began));
    const timer = setTimeout(() => running.signal('SIGKILL'), left);
    await running.ended;
    clearTimeout(timer);
  }

  function finished({ exitCode, message }: Ended, startedAt: number): State {
    const reason = killReason ?? (exitCode === 0 ? 'Completed' : 'Error');
    killReason = undefined;
    return {
      terminated: {
        exitCode,
        reason,
        ...(message === '' ? {} : { message }),
        startedAt: toTime(startedAt),
        finishedAt: toTime(Date.now()),
        ...(containerID === undefined ? {} : { containerID }),
      },
    };
  }

  async function run(): Promise<Ended | undefined> {
    const program = await pull();
    const env = program === undefined ? undefined : await environment(program);
    if (program === undefined || env === undefined || stopping.aborted || ending !== undefined) {
      return undefined;
    }
    const log = createLog();
    logs = [...logs.slice(-1), log];
    if (runs > 0) restartCount += 1;
    runs += 1;
    containerID = `containerd://${crypto.randomUUID().replaceAll('-', '')}${crypto.randomUUID().replaceAll('-', '')}`;
    const startedAt = Date.now();
    event('Normal', 'Created', `Created container: ${spec.name}`, fieldPath);
    if (state.terminated !== undefined) lastState = state;
    let ended: Ended;
    try {
      current = await launch(program, env, log);
      if (ending !== undefined) void terminate(ending);
      event('Normal', 'Started', `Started container ${spec.name}`, fieldPath);
      become({ running: { startedAt: toTime(startedAt) } });
      const probes = probe(current);
      ended = await current.ended;
      probes.stop();
    } catch (error) {
      if (!(error instanceof RuntimeError)) throw error;
      const message = `failed to create containerd task: failed to create shim task: OCI runtime create failed: ${error.message}`;
      event('Warning', 'Failed', `Error: ${message}`, fieldPath);
      log.end();
      ended = { exitCode: 128, signal: undefined, message };
      killReason = 'StartError';
    }
    current = undefined;
    ready = false;
    isStarted = false;
    if (Date.now() - startedAt > QUIET_S * 1000) crashes = 0;
    become(finished(ended, startedAt));
    return ended;
  }

  return {
    spec,
    role,
    run,
    status() {
      const isDone = role === 'init' && state.terminated?.exitCode === 0;
      return {
        name: spec.name,
        image: spec.image ?? '',
        imageID:
          current === undefined && runs === 0 ? '' : `${spec.image ?? ''}@sha256:${'0'.repeat(64)}`,
        ...(containerID === undefined ? {} : { containerID }),
        state,
        lastState,
        ready: role === 'init' ? isDone : ready,
        restartCount,
        started: role === 'init' ? false : isStarted,
      };
    },
    async backOff() {
      const { metadata } = around.pod();
      const { crashLoopMs } = around.knobs();
      const delay = crashLoopMs * 2 ** Math.min(crashes, MOST_DOUBLINGS);
      crashes += 1;
      const where = `${spec.name} in pod ${metadata.name}_${metadata.namespace}(${metadata.uid})`;
      event('Warning', 'BackOff', `Back-off restarting failed container ${where}`, fieldPath);
      if (state.terminated !== undefined) lastState = state;
      become({
        waiting: {
          reason: 'CrashLoopBackOff',
          message: `back-off ${delay / 1000}s restarting failed container=${spec.name} pod=${metadata.name}_${metadata.namespace}(${metadata.uid})`,
        },
      });
      await wait(delay);
    },
    started: async () => {
      await begun.promise;
    },
    async stop(graceMs) {
      ending = Math.min(graceMs, ending ?? graceMs);
      if (current === undefined) return;
      event('Normal', 'Killing', `Stopping container ${spec.name}`, fieldPath);
      await terminate(graceMs);
    },
    kill(signal, reason) {
      if (reason !== undefined) killReason = reason;
      current?.signal(signal);
    },
    log(previous) {
      if (previous) return logs.length > 1 ? logs[0] : undefined;
      return logs.at(-1);
    },
    running: () => current,
    finish() {
      begun.resolve(undefined);
    },
  };
}
