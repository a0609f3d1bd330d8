import { chmod, mkdir } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { PODS } from './kinds.ts';
import { setCondition, toTime } from './objects.ts';
import type { Container, Pod, PodStatus } from './objects.ts';
import { createPodContainer } from './pod-container.ts';
import type { PodContainer, Surroundings } from './pod-container.ts';
import { startSandbox } from './sandbox.ts';
import type { Sandbox } from './sandbox.ts';
import { createVolumes, MountError } from './volumes.ts';

/** What a node gives each pod that it runs. */
export interface NodeServices extends Omit<
  Surroundings,
  'pod' | 'sandbox' | 'places' | 'event' | 'changed' | 'stopping'
> {
  yard: string;
  nodeAddress: string;
  ca: string;
  tokenOf(namespace: string, name: string): string;
  /** A node that is lost can neither tell nor hear anything. */
  isCut(): boolean;
  record: Surroundings['event'] extends (...args: infer Args) => void
    ? (pod: Pod, ...args: Args) => void
    : never;
}

/** Why a pod is ended before it is done. */
export interface StopReason {
  graceMs: number;
  /** The phase becomes Failed with it. */
  failed?: { reason: string; message: string };
}

/** One pod on its node. */
export interface PodRunner {
  uid: string;
  stop(why: StopReason): Promise<void>;
  /** Writes what it knows, if anybody can hear it. */
  publish(): void;
  container(name: string): PodContainer | undefined;
  containers(): readonly PodContainer[];
  address(): string | undefined;
  readonly done: Promise<void>;
}

type Phase = 'Pending' | 'Running' | 'Succeeded' | 'Failed';

const roleOf = ({ restartPolicy }: Container) => (restartPolicy === 'Always' ? 'sidecar' : 'init');

type PodCondition = NonNullable<PodStatus['conditions']>[number];

function plain({ type, status, lastTransitionTime }: PodCondition): PodCondition {
  return { type, status, ...(lastTransitionTime === undefined ? {} : { lastTransitionTime }) };
}

export function startPod(first: Pod, node: NodeServices): PodRunner {
  const { namespace = 'default', name, uid } = first.metadata;
  const stopping = new AbortController();
  let known = first;
  let sandbox: Sandbox | undefined;
  let places: ReadonlyMap<string, string> = new Map();
  let phase: Phase = 'Pending';
  let failure: StopReason['failed'];
  let graceMs = (first.spec.terminationGracePeriodSeconds ?? 30) * 1000;
  let initialized = false;
  const startTime = toTime(Date.now());

  function current(): Pod | undefined {
    const found = node.store.get(PODS, namespace, name);
    return found?.metadata.uid === uid ? (found as Pod) : undefined;
  }

  const around: Surroundings = {
    ...node,
    pod: () => known,
    sandbox() {
      if (sandbox === undefined) throw new Error('the sandbox is gone');
      return sandbox;
    },
    places: () => places,
    event(...args) {
      if (!node.isCut()) node.record(known, ...args);
    },
    changed: () => publish(),
    stopping: stopping.signal,
  };
  const inits = (first.spec.initContainers ?? []).map((one) =>
    createPodContainer(one, roleOf(one), around),
  );
  const mains = first.spec.containers.map((one) => createPodContainer(one, 'main', around));
  const sidecars = inits.filter(({ role }) => role === 'sidecar');
  const loops: Promise<void>[] = [];

  function statusOf(before: PodStatus): PodStatus {
    const now = Date.now();
    const mainStatuses = mains.map((one) => one.status());
    const initStatuses = inits.map((one) => one.status());
    const over = phase === 'Succeeded' || phase === 'Failed';
    const unready = [...mains, ...sidecars]
      .filter((one) => !one.status().ready)
      .map(({ spec }) => spec.name);
    const isReady = unready.length === 0 && phase === 'Running';
    const why = over
      ? { reason: phase === 'Succeeded' ? 'PodCompleted' : 'PodFailed' }
      : {
          reason: 'ContainersNotReady',
          message: `containers with unready status: [${unready.join(' ')}]`,
        };
    let conditions = before.conditions ?? [];
    const set = (type: string, ok: boolean, more: object = {}): void => {
      conditions = setCondition(
        conditions,
        { type, status: ok ? 'True' : 'False', ...(ok ? {} : more) },
        now,
      );
      // Reason and message are of what is not so.
      if (ok) conditions = conditions.map((one) => (one.type === type ? plain(one) : one));
    };
    set('PodReadyToStartContainers', sandbox !== undefined && !over);
    set('Initialized', initialized, {
      reason: 'ContainersNotInitialized',
      message: `containers with incomplete status: [${inits.map(({ spec }) => spec.name).join(' ')}]`,
    });
    if (initialized && phase === 'Succeeded') {
      conditions = setCondition(
        conditions,
        { type: 'Initialized', status: 'True', reason: 'PodCompleted' },
        now,
      );
    }
    set('Ready', isReady, why);
    set('ContainersReady', isReady, why);
    return {
      ...before,
      phase,
      conditions,
      hostIP: node.nodeAddress,
      hostIPs: [{ ip: node.nodeAddress }],
      startTime,
      ...(sandbox === undefined
        ? {}
        : { podIP: sandbox.address, podIPs: [{ ip: sandbox.address }] }),
      ...(failure === undefined ? {} : failure),
      ...(initStatuses.length === 0 ? {} : { initContainerStatuses: initStatuses }),
      containerStatuses: mainStatuses,
    };
  }

  function publish(): void {
    if (node.isCut() || current() === undefined) return;
    known = node.store.update(PODS, namespace, name, (copy) => {
      const pod = copy as Pod;
      // Whoever marked it as gone from outside (a lost node that came back) is right.
      const ended =
        ['Succeeded', 'Failed'].includes(pod.status.phase ?? '') &&
        !['Succeeded', 'Failed'].includes(phase);
      if (!ended) pod.status = statusOf(pod.status);
    }) as Pod;
  }

  /** Retries until the volumes are there. */
  async function mount(): Promise<boolean> {
    const volumes = createVolumes(known, {
      store: node.store,
      ca: node.ca,
      tokenOf: node.tokenOf,
      folder: path.join(node.yard, 'machines', `${uid}.volumes`),
    });
    for (;;) {
      if (stopping.signal.aborted) return false;
      try {
        places = await volumes.mountAll();
        return true;
      } catch (error) {
        if (!(error instanceof MountError)) throw error;
        around.event('Warning', 'FailedMount', error.message);
        await pause(node.knobs().pullBackoffMs);
      }
    }
  }

  async function pause(ms: number): Promise<void> {
    try {
      await sleep(ms, undefined, { signal: stopping.signal });
    } catch {
      // it is to end: the caller looks
    }
  }

  /** Whether a container that ended so runs again. */
  function restarts(container: PodContainer, exitCode: number): boolean {
    if (stopping.signal.aborted) return false;
    if (container.role === 'sidecar') return true;
    const policy = known.spec.restartPolicy;
    if (container.role === 'init') return exitCode !== 0 && policy !== 'Never';
    return policy === 'Always' || (policy === 'OnFailure' && exitCode !== 0);
  }

  /** Runs a container as often as it takes; the exit code of its last run, undefined if it never ran. */
  async function keep(
    container: PodContainer,
    isWanted: () => boolean,
  ): Promise<number | undefined> {
    let code: number | undefined;
    for (let tries = 0; isWanted() && !stopping.signal.aborted; tries += 1) {
      const ended = await container.run();
      if (ended === undefined) break;
      code = ended.exitCode;
      if (!isWanted() || !restarts(container, code)) break;
      // The first restart comes at once, as the kubelet's.
      if (tries > 0 || container.role === 'main') await container.backOff();
    }
    container.finish();
    return code;
  }

  let sidecarsWanted = true;

  async function initialize(): Promise<boolean> {
    for (const container of inits) {
      if (stopping.signal.aborted) return false;
      if (container.role === 'sidecar') {
        loops.push(keep(container, () => sidecarsWanted).then(() => undefined));
        await container.started();
      } else {
        const code = await keep(container, () => true);
        if (code !== 0) return false;
      }
    }
    return !stopping.signal.aborted;
  }

  /** In reverse order, each after the one before has ended. */
  async function stopSidecars(): Promise<void> {
    sidecarsWanted = false;
    for (const container of sidecars.toReversed()) await container.stop(graceMs);
    stopping.abort();
    await Promise.all(loops);
  }

  async function live(): Promise<Phase> {
    sandbox = await startSandbox(node.yard, uid, (known.spec.hostname ?? name).slice(0, 63));
    const sim = path.join(node.yard, 'machines', `${uid}.sim`);
    await mkdir(sim, { recursive: true });
    await chmod(sim, 0o777);
    publish();
    const ready = await initialize();
    if (!ready) {
      await stopSidecars();
      return 'Failed';
    }
    initialized = true;
    phase = 'Running';
    publish();
    const codes = await Promise.all(mains.map(async (one) => keep(one, () => true)));
    await stopSidecars();
    return codes.every((code) => code === 0) ? 'Succeeded' : 'Failed';
  }

  function watchDeadline(): NodeJS.Timeout | undefined {
    const seconds = known.spec.activeDeadlineSeconds;
    if (seconds === undefined) return undefined;
    const failed = {
      reason: 'DeadlineExceeded',
      message: 'Pod was active on the node longer than the specified deadline',
    };
    return setTimeout(() => void stop({ graceMs, failed }), seconds * 1000);
  }

  async function run(): Promise<void> {
    const deadline = watchDeadline();
    let final: Phase = 'Failed';
    try {
      if (await mount()) final = await live();
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      around.event('Warning', 'FailedCreatePodSandBox', `Failed to create pod sandbox: ${message}`);
      failure ??= { reason: 'FailedCreatePodSandBox', message };
    }
    clearTimeout(deadline);
    phase = failure === undefined ? final : 'Failed';
    await sandbox?.stop();
    publish();
  }

  async function stop(why: StopReason): Promise<void> {
    graceMs = Math.min(graceMs, why.graceMs);
    failure ??= why.failed;
    stopping.abort();
    const grace = graceMs;
    await Promise.all(mains.map(async (one) => one.stop(grace)));
    await Promise.all(
      inits.filter(({ role }) => role === 'init').map(async (one) => one.stop(grace)),
    );
    for (const one of inits) one.finish();
    await done;
  }

  const done = run();
  return {
    uid,
    stop,
    publish,
    container: (wanted) => [...inits, ...mains].find(({ spec }) => spec.name === wanted),
    containers: () => [...inits, ...mains],
    address: () => sandbox?.address,
    done,
  };
}
