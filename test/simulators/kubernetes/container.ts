import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { chmod, mkdir, rm, writeFile } from 'node:fs/promises';
import { constants } from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { quote } from '../machines/cloud-init.ts';
import { CACHE, REPOSITORY } from './images.ts';
import type { ContainerLog } from './logs.ts';
import type { Mount } from './volumes.ts';

/** Everything that one run of a container needs. */
export interface ContainerPlan {
  folder: string;
  programs: string;
  argv: readonly string[];
  env: Readonly<Record<string, string>>;
  workingDir: string;
  mounts: readonly Mount[];
  hosts: string;
  readOnlyRoot: boolean;
  user: number | undefined;
  group: number | undefined;
  groups: readonly number[];
  /** Sees the processes of the whole pod, and they it. */
  sharesProcesses: boolean;
}

export interface Ended {
  exitCode: number;
  signal: number | undefined;
  message: string;
}

/** One run of one container. */
export interface RunningContainer {
  /** Its first process, numbered as this machine does. */
  pid: number;
  signal(name: NodeJS.Signals): void;
  readonly ended: Promise<Ended>;
}

/** The runtime could not make it run. */
export class RuntimeError extends Error {
  override name = 'RuntimeError';
}

const HERE = path.dirname(fileURLToPath(import.meta.url));
const DISK = '512m';
const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

function runLine(plan: ContainerPlan): string {
  const { user, group, groups, workingDir, argv, env } = plan;
  const who =
    user === undefined && group === undefined ? [] : [`--userspec=${user ?? 0}:${group ?? 0}`];
  const also = groups.length === 0 ? [] : [`--groups=${groups.join(',')}`];
  const pairs = Object.entries({ PATH, ...env }).map(([key, value]) => quote(`${key}=${value}`));
  const words = argv.map(quote).join(' ');
  return [
    'exec 2>&4 3>&- 4>&-',
    `exec chroot ${[...who, ...also].join(' ')} "$root" /usr/bin/env -i --chdir=${quote(workingDir)} ${pairs.join(' ')} ${words}`,
    '',
  ].join('\n');
}

async function writePlan(plan: ContainerPlan): Promise<void> {
  const { folder, mounts, programs, readOnlyRoot } = plan;
  const variables = {
    repository: REPOSITORY,
    node: process.execPath,
    cache: CACHE,
    programs,
    disk: DISK,
    read_only: readOnlyRoot ? 'yes' : 'no',
  };
  // A mount over /var/run would else go through its link, out of the container.
  const real = (to: string): string => to.replace(/^\/var\/run(\/|$)/, '/run$1');
  await mkdir(path.join(folder, 'root'), { recursive: true });
  await Promise.all([
    writeFile(
      path.join(folder, 'plan'),
      Object.entries(variables)
        .map(([key, value]) => `${key}=${quote(value)}\n`)
        .join(''),
    ),
    writeFile(
      path.join(folder, 'mounts'),
      mounts
        .map(({ from, to, readOnly }) => `${from}\t${real(to)}\t${readOnly ? 'ro' : 'rw'}\n`)
        .join(''),
    ),
    writeFile(path.join(folder, 'hosts'), plan.hosts),
    writeFile(path.join(folder, 'termination-log'), ''),
    writeFile(path.join(folder, 'run'), runLine(plan)),
  ]);
  // Whoever the container runs as; the mode of writeFile is cut by the umask.
  await chmod(path.join(folder, 'termination-log'), 0o666);
}

function childOf(pid: number): number | undefined {
  try {
    const [first] = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ');
    return first === undefined || first === '' ? undefined : Number(first);
  } catch {
    return undefined; // it has ended
  }
}

/** nsenter forks, and so does unshare where the container numbers its own processes. */
function firstProcess(outer: number, sharesProcesses: boolean): number {
  const entered = childOf(outer) ?? outer;
  return sharesProcesses ? entered : (childOf(entered) ?? entered);
}

/*
 * util-linux 2.38 fails to pass on that the first process of a process namespace was killed: unshare
 * then ends with 1 and says this. Only SIGKILL can have done it, in effect: process 1 is spared the rest.
 */
const KILLED = /unshare: (sigprocmask|child exit failed)/;

function outcome(
  code: number | null,
  signal: NodeJS.Signals | null,
  said: string,
): Omit<Ended, 'message'> {
  const number = KILLED.test(said) ? 9 : signal === null ? undefined : constants.signals[signal];
  if (number !== undefined) return { exitCode: 128 + number, signal: undefined };
  return { exitCode: code ?? 1, signal: undefined };
}

function launch({ folder, sharesProcesses }: ContainerPlan, pausePid: number): ChildProcess {
  const own = sharesProcesses ? '' : '--pid --fork --kill-child';
  const script = `exec 4>&2 2>&3; exec unshare --mount ${own} sh ${quote(path.join(HERE, 'container.sh'))} ${quote(folder)}`;
  const into = ['--target', String(pausePid), '--net', '--uts', '--ipc', '--pid'];
  return spawn('nsenter', [...into, '--', '/bin/sh', '-c', script], {
    stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
    env: { PATH },
  });
}

const START_MS = 60_000;

/** Starts a container in the namespaces of process `pausePid`; throws RuntimeError. */
export async function startContainer(
  plan: ContainerPlan,
  pausePid: number,
  log: ContainerLog,
): Promise<RunningContainer> {
  await rm(plan.folder, { recursive: true, force: true });
  await writePlan(plan);
  const child = launch(plan, pausePid);
  const { stdout, stderr } = child;
  const control = child.stdio[3] as NodeJS.ReadableStream; // a pipe, as asked for
  for (const stream of [stdout, stderr]) {
    stream?.setEncoding('utf8').on('data', (text: string) => log.write(text));
  }
  let said = '';
  const running = Promise.withResolvers<undefined>();
  control.setEncoding('utf8');
  control.on('data', (text: string) => {
    said += text;
    if (said.split('\n').includes('running')) running.resolve(undefined);
  });
  const ended = Promise.withResolvers<Ended>();
  child.once('error', running.reject);
  child.once('close', (code, signal) => {
    running.reject(new RuntimeError(said.trim()));
    log.end();
    let message = '';
    try {
      message = readFileSync(path.join(plan.folder, 'termination-log'), 'utf8');
    } catch {
      // the pod's folder is gone: so is what it said
    }
    ended.resolve({ ...outcome(code, signal, said), message });
  });
  const late = setTimeout(
    () => running.reject(new RuntimeError('context deadline exceeded')),
    START_MS,
  );
  try {
    await running.promise;
  } catch (error) {
    child.kill('SIGKILL');
    throw error;
  } finally {
    clearTimeout(late);
  }
  const pid = firstProcess(child.pid ?? 0, plan.sharesProcesses);
  let over = false;
  const result = ended.promise.then((value) => {
    over = true;
    return value;
  });
  return {
    pid,
    signal(name) {
      if (over) return;
      try {
        process.kill(pid, name);
      } catch {
        // ESRCH: it ends by itself just now
      }
    },
    ended: result,
  };
}
