import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { DockerError } from './docker-args.ts';
import type { MachineKnobs } from './knobs.ts';

/* The containers of a simulated machine: where they are kept, what is shown of them, how they end. */

export const HOME = '/var/lib/docker';

/** As it is kept on disk. */
export interface Container {
  id: string;
  name: string;
  image: string;
  args: string[];
  labels: Record<string, string>;
  created: string;
  started: string;
  ports: string;
  /** Process of the wrapper that leads the container's process group. */
  pid: number;
  remove: boolean;
}

/** The machine's knobs, as they were when it booted. */
export function knobs(): MachineKnobs {
  return JSON.parse(readFileSync('/sim/machine.json', 'utf8')) as MachineKnobs; // written by machine.ts
}

export function folderOf(id: string): string {
  return path.join(HOME, 'containers', id);
}

function load(id: string): Container {
  return JSON.parse(readFileSync(path.join(folderOf(id), 'config.json'), 'utf8')) as Container;
}

/** Whether the process runs: a zombie does not. */
export function isAlive(pid: number): boolean {
  try {
    // A zombie answers signals until process 1 has collected it.
    return !/^\d+ \(.*\) Z/.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return false; // gone
  }
}

/** 137, as after SIGKILL, where the wrapper was killed too. */
export function exitCodeOf({ id }: Container): number {
  const file = path.join(folderOf(id), 'exit');
  return existsSync(file) ? Number(readFileSync(file, 'utf8')) : 137;
}

/** All, the newest first. */
export function containers(): Container[] {
  const folder = path.join(HOME, 'containers');
  if (!existsSync(folder)) return [];
  const found = readdirSync(folder)
    .filter((id) => existsSync(path.join(folder, id, 'config.json')))
    .map(load);
  return found.toSorted((one, two) => two.created.localeCompare(one.created));
}

/** By name or by the beginning of the id. */
export function find(word: string): Container | undefined {
  return containers().find(({ id, name }) => name === word || id.startsWith(word));
}

/** Throws DockerError where there is none. */
export function need(word: string): Container {
  const container = find(word);
  if (container === undefined)
    throw new DockerError(`Error response from daemon: No such container: ${word}`, 1);
  return container;
}

// --- What a template sees ----------------------------------------------------------------------

/** What `docker inspect` shows. */
export function inspected(container: Container): Record<string, unknown> {
  const running = isAlive(container.pid);
  const code = running ? 0 : exitCodeOf(container);
  return {
    Id: container.id,
    Created: container.created,
    Name: `/${container.name}`,
    Image: `sha256:${container.id}`,
    Args: container.args,
    State: {
      Status: running ? 'running' : 'exited',
      Running: running,
      Paused: false,
      Restarting: false,
      OOMKilled: false,
      Dead: false,
      Pid: running ? container.pid : 0,
      ExitCode: code,
      Error: '',
      StartedAt: container.started,
      FinishedAt: running ? '0001-01-01T00:00:00Z' : new Date().toISOString(),
    },
    RestartCount: 0,
    Config: { Image: container.image, Labels: container.labels, Cmd: container.args },
    HostConfig: { AutoRemove: container.remove },
  };
}

/** A row of `docker ps`. */
export function listed(container: Container): Record<string, string> {
  const running = isAlive(container.pid);
  return {
    ID: container.id.slice(0, 12),
    Names: container.name,
    Image: container.image,
    Command: `"${container.args.join(' ').slice(0, 20)}"`,
    CreatedAt: container.created,
    RunningFor: 'About a minute ago',
    State: running ? 'running' : 'exited',
    Status: running ? 'Up About a minute' : `Exited (${exitCodeOf(container)}) About a minute ago`,
    Ports: running ? container.ports : '',
    Labels: Object.entries(container.labels)
      .map(([key, value]) => `${key}=${value}`)
      .join(','),
  };
}

function lookUp(value: unknown, dotted: string): unknown {
  let at: unknown = value;
  for (const key of dotted.split('.').filter(Boolean)) {
    at = (at as Record<string, unknown> | undefined)?.[key];
  }
  return at;
}

/** Go templates as far as `{{.A.B}}` and `{{json .A}}` go; `json` alone prints the object. */
export function render(format: string | undefined, value: Record<string, unknown>): string {
  if (format === undefined || format === 'json') return JSON.stringify(value);
  return format
    .replace(/^table /, '')
    .replaceAll(/\{\{\s*(json\s+)?\.([\w.]*)\s*\}\}/g, (_, json, dotted: string) => {
      const found = lookUp(value, dotted);
      if (found === undefined) {
        throw new DockerError(
          `template parsing error: template: :1:2: executing "" at <.${dotted}>: map has no entry for key`,
          1,
        );
      }
      return json === undefined && typeof found === 'string' ? found : JSON.stringify(found);
    });
}

function signal(container: Container, name: NodeJS.Signals): void {
  try {
    process.kill(-container.pid, name);
  } catch {
    // ESRCH: it has ended by itself
  }
}

async function gone({ pid }: Container, ms: number): Promise<boolean> {
  const deadline = Date.now() + ms;
  while (isAlive(pid) && Date.now() < deadline) await sleep(20);
  return !isAlive(pid);
}

/** SIGTERM, and SIGKILL to what still runs after `graceMs`. */
export async function stop(container: Container, graceMs: number): Promise<void> {
  if (graceMs > 0) signal(container, 'SIGTERM');
  if (!(await gone(container, graceMs))) {
    signal(container, 'SIGKILL');
    await gone(container, 5000);
  }
}
