import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, openSync, readFileSync } from 'node:fs';
import { renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { DockerError, parseRunArgs } from './docker-args.ts';
import type { RunArgs } from './docker-args.ts';
import {
  containers,
  exitCodeOf,
  find,
  folderOf,
  HOME,
  inspected,
  isAlive,
  knobs,
  listed,
  need,
} from './docker-state.ts';
import { render, stop } from './docker-state.ts';
import type { Container } from './docker-state.ts';

const USER_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/*
 * `docker` of a simulated machine: run, ps, inspect, logs, stop, kill, rm, pull, wait, info. A container
 * is a process of the machine itself; what its image would run is an engine or a shell command.
 */

// --- Running -----------------------------------------------------------------------------------

function readEnvFile(file: string): Record<string, string> {
  if (!existsSync(file)) throw new DockerError(`docker: open ${file}: no such file or directory`);
  const lines = readFileSync(file, 'utf8').split('\n');
  const pairs = lines
    .filter((line) => line !== '' && !line.startsWith('#'))
    .map((line) => {
      const at = line.indexOf('=');
      return [line.slice(0, at), line.slice(at + 1)] as const;
    });
  return Object.fromEntries(pairs);
}

async function pull(image: string, quiet: boolean): Promise<void> {
  const seen = path.join(HOME, 'images', encodeURIComponent(image));
  if (existsSync(seen)) return;
  const { registry_down: down, image_pull_ms: pullMs } = knobs();
  const tag = image.includes(':') ? image : `${image}:latest`;
  if (!quiet) console.error(`Unable to find image '${tag}' locally`);
  if (down) {
    throw new DockerError(
      'docker: Error response from daemon: Get "https://registry-1.docker.io/v2/": net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)',
    );
  }
  await sleep(pullMs);
  mkdirSync(path.dirname(seen), { recursive: true });
  writeFileSync(seen, tag);
  console.error(`Status: Downloaded newer image for ${tag}`);
}

/** What the image starts, from its entrypoint and the words after it. */
function commandOf({ image, entrypoint, command }: RunArgs): string[] {
  if (entrypoint !== undefined && entrypoint !== '') return [entrypoint, ...command];
  if (image.includes('sglang')) return command;
  if (/vllm/.test(image)) return ['vllm', 'serve', ...command];
  return command;
}

function valueOf(command: readonly string[], flag: string): string | undefined {
  const at = command.lastIndexOf(`--${flag}`);
  if (at >= 0) return command[at + 1];
  return command.findLast((word) => word.startsWith(`--${flag}=`))?.slice(flag.length + 3);
}

/**
 * The command as it runs on the machine itself: what the container binds to 0.0.0.0 appears where its
 * port is mapped to, and what it binds to its own 127.0.0.1 appears nowhere, as behind docker's bridge.
 */
function onMachine(run: RunArgs): string[] {
  const command = commandOf(run);
  if (run.network === 'host' || !/vllm|sglang/.test(command.join(' '))) return command;
  const port = Number(
    valueOf(command, 'port') ?? (command.join(' ').includes('sglang') ? 30_000 : 8000),
  );
  const mapping = run.ports.find(({ containerPort }) => containerPort === port);
  const host = valueOf(command, 'host');
  const reachable = host === undefined || host === '0.0.0.0';
  if (mapping === undefined || !reachable) return ['unshare', '--net', ...command];
  return [...command, '--host', mapping.host, '--port', String(mapping.hostPort)];
}

function check(run: RunArgs, name: string): void {
  const other = find(name);
  if (other !== undefined && other.name === name) {
    throw new DockerError(
      `docker: Error response from daemon: Conflict. The container name "/${name}" is already in use by container "${other.id}". You have to remove (or rename) that container to be able to reuse that name.`,
    );
  }
  if (run.gpus && !knobs().nvidia_runtime && !existsSync('/etc/docker/nvidia')) {
    throw new DockerError(
      'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]].',
    );
  }
}

/** `-v FROM:TO[:ro]`: TO becomes a link to FROM, for there is one file system for all containers. */
function mountVolumes(volumes: readonly string[]): void {
  for (const volume of volumes) {
    const [from, to] = volume.split(':');
    if (from === undefined || to === undefined || !from.startsWith('/')) continue;
    mkdirSync(from, { recursive: true });
    if (existsSync(to)) continue;
    mkdirSync(path.dirname(to), { recursive: true });
    symlinkSync(from, to);
  }
}

async function run(words: readonly string[]): Promise<number> {
  const args = parseRunArgs(words);
  const id = randomBytes(32).toString('hex');
  const name = args.name ?? `sim_${id.slice(0, 8)}`;
  check(args, name);
  const env: Record<string, string> = {
    PATH: USER_PATH,
    HOME: '/root',
    HOSTNAME: id.slice(0, 12),
  };
  for (const file of args.envFiles) Object.assign(env, readEnvFile(file));
  Object.assign(env, args.env);
  await pull(args.image, false);
  check(args, name);
  mountVolumes(args.volumes);
  const command = onMachine(args);
  if (!args.detached) {
    return spawnSync(command[0] ?? '', command.slice(1), { env, stdio: 'inherit' }).status ?? 127;
  }
  const folder = folderOf(id);
  mkdirSync(folder, { recursive: true });
  const log = openSync(path.join(folder, 'log'), 'a');
  // The group gets the signals, and the wrapper has to outlive the command to note its code.
  const wrapper = 'trap : TERM; "$@"; code=$?; echo $code >"$0.next"; mv "$0.next" "$0"';
  const child = spawn('/bin/sh', ['-c', wrapper, path.join(folder, 'exit'), ...command], {
    detached: true,
    env,
    stdio: ['ignore', log, log],
  });
  const now = new Date().toISOString();
  const ports = args.ports.map((p) => `${p.host}:${p.hostPort}->${p.containerPort}/tcp`).join(', ');
  const container: Container = {
    id,
    name,
    image: args.image,
    args: command,
    labels: args.labels,
    created: now,
    started: now,
    ports,
    pid: child.pid ?? 0,
    remove: args.remove,
  };
  writeFileSync(path.join(folder, 'config.next'), JSON.stringify(container));
  renameSync(path.join(folder, 'config.next'), path.join(folder, 'config.json'));
  child.unref();
  console.log(id);
  return 0;
}

// --- Commands ----------------------------------------------------------------------------------

interface Flags {
  /** By name; a switch that is there has the value `true`. */
  values: Map<string, string[]>;
  words: string[];
}

const TAKES_VALUE = new Set([
  '--format',
  '-f',
  '--filter',
  '--tail',
  '-n',
  '--since',
  '--until',
  '-t',
  '--time',
  '--signal',
  '-s',
  '--type',
]);

function flagsOf(args: readonly string[], switches: readonly string[] = []): Flags {
  const found: Flags = { values: new Map(), words: [] };
  const rest = [...args];
  for (let word = rest.shift(); word !== undefined; word = rest.shift()) {
    const at = word.indexOf('=');
    const name = word.startsWith('--') && at > 0 ? word.slice(0, at) : word;
    if (!word.startsWith('-')) found.words.push(word);
    else if (name !== word)
      found.values.set(name, [...(found.values.get(name) ?? []), word.slice(at + 1)]);
    else if (TAKES_VALUE.has(word) && !switches.includes(word)) {
      found.values.set(word, [...(found.values.get(word) ?? []), rest.shift() ?? '']);
    } else found.values.set(word, ['true']);
  }
  return found;
}

function ps(args: readonly string[]): number {
  const { values } = flagsOf(args);
  const has = (...names: string[]): boolean => names.some((name) => values.has(name));
  const filters = [...(values.get('--filter') ?? []), ...(values.get('-f') ?? [])];
  const shown = containers().filter((container) => {
    if (!has('-a', '--all', '-aq', '-qa') && !isAlive(container.pid)) return false;
    return filters.every((filter) => {
      const [key, ...rest] = filter.split('=');
      const wanted = rest.join('=');
      if (key === 'name')
        return (
          new RegExp(wanted).test(`/${container.name}`) || new RegExp(wanted).test(container.name)
        );
      if (key === 'status') return listed(container)['State'] === wanted;
      if (key === 'label') {
        const [label, value] = wanted.split('=');
        return (
          label !== undefined &&
          (value === undefined ? label in container.labels : container.labels[label] === value)
        );
      }
      if (key === 'id') return container.id.startsWith(wanted);
      throw new DockerError(`Error response from daemon: invalid filter '${key ?? ''}'`, 1);
    });
  });
  const format = values.get('--format')?.at(-1);
  const quiet = has('-q', '--quiet', '-aq', '-qa');
  if (!quiet && format === undefined)
    console.log('CONTAINER ID   IMAGE   COMMAND   CREATED   STATUS   PORTS   NAMES');
  for (const container of shown) {
    const row = listed(container);
    if (quiet) console.log(has('--no-trunc') ? container.id : row['ID']);
    else if (format === undefined)
      console.log(
        `${row['ID']}   ${row['Image']}   ${row['Command']}   ${row['Status']}   ${row['Ports']}   ${row['Names']}`,
      );
    else console.log(render(format, row));
  }
  return 0;
}

function inspect(args: readonly string[]): number {
  const { values, words } = flagsOf(args);
  const format = values.get('--format')?.at(-1) ?? values.get('-f')?.at(-1);
  const found = words.map((word) => {
    const container = find(word);
    if (container !== undefined) return inspected(container);
    if (format === undefined) console.log('[]');
    throw new DockerError(`Error: No such object: ${word}`, 1);
  });
  if (format === undefined) console.log(JSON.stringify(found, null, 4));
  else for (const one of found) console.log(render(format, one));
  return 0;
}

async function logs(args: readonly string[]): Promise<number> {
  const { values, words } = flagsOf(args, ['-f', '-t']);
  const container = need(words[0] ?? '');
  const file = path.join(folderOf(container.id), 'log');
  const tail = values.get('--tail')?.at(-1) ?? values.get('-n')?.at(-1) ?? 'all';
  const text = readFileSync(file, 'utf8');
  const lines = text.split('\n');
  const kept = tail === 'all' ? lines : lines.slice(-(Number(tail) + 1));
  process.stdout.write(kept.join('\n'));
  if (!values.has('-f') && !values.has('--follow')) return 0;
  let offset = Buffer.byteLength(text);
  for (;;) {
    const alive = isAlive(container.pid);
    const now = readFileSync(file);
    if (now.length > offset) process.stdout.write(now.subarray(offset));
    offset = now.length;
    if (!alive) return 0;
    await sleep(50);
  }
}

async function each(
  args: readonly string[],
  act: (container: Container) => Promise<void>,
): Promise<number> {
  let code = 0;
  for (const word of flagsOf(args).words) {
    try {
      await act(need(word));
      console.log(word);
    } catch (error) {
      if (!(error instanceof DockerError)) throw error;
      console.error(error.message);
      code = 1;
    }
  }
  return code;
}

async function remove(args: readonly string[]): Promise<number> {
  const force = args.some((word) => word === '--force' || /^-[a-z]*f/.test(word));
  return each(args, async (container) => {
    if (isAlive(container.pid)) {
      if (!force) {
        throw new DockerError(
          `Error response from daemon: cannot remove container "/${container.name}": container is running: stop the container before removing or force remove`,
        );
      }
      await stop(container, 0);
    }
    rmSync(folderOf(container.id), { recursive: true });
  });
}

function image(args: readonly string[]): number {
  const [verb, ...rest] = args;
  const name = flagsOf(rest).words[0] ?? '';
  if (verb === 'inspect' && existsSync(path.join(HOME, 'images', encodeURIComponent(name)))) {
    console.log(JSON.stringify([{ Id: 'sha256:0', RepoTags: [name] }]));
    return 0;
  }
  throw new DockerError(`Error response from daemon: No such image: ${name}`, 1);
}

const INFO = {
  ServerVersion: '28.1.1',
  Runtimes: { 'io.containerd.runc.v2': {}, runc: {} } as Record<string, object>,
  DefaultRuntime: 'runc',
};

function info(args: readonly string[]): number {
  const runtimes =
    knobs().nvidia_runtime || existsSync('/etc/docker/nvidia')
      ? { nvidia: {}, ...INFO.Runtimes }
      : INFO.Runtimes;
  const format =
    flagsOf(args).values.get('--format')?.at(-1) ?? flagsOf(args).values.get('-f')?.at(-1);
  if (format !== undefined) console.log(render(format, { ...INFO, Runtimes: runtimes }));
  else
    console.log(
      `Server:\n Server Version: ${INFO.ServerVersion}\n Runtimes: ${Object.keys(runtimes).join(' ')}\n Default Runtime: runc`,
    );
  return 0;
}

async function wait(args: readonly string[]): Promise<number> {
  for (const word of args) {
    const container = need(word);
    while (isAlive(container.pid)) await sleep(50);
    console.log(exitCodeOf(container));
  }
  return 0;
}

const COMMANDS: Record<string, (args: string[]) => number | Promise<number>> = {
  run,
  ps,
  inspect,
  logs,
  info,
  image,
  wait,
  rm: remove,
  stop: async (args) => {
    const { values } = flagsOf(args);
    const seconds = Number(values.get('-t')?.at(-1) ?? values.get('--time')?.at(-1) ?? 10);
    const names = args.filter((word, at) => !word.startsWith('-') && args[at - 1] !== '-t');
    return each(names, async (container) => stop(container, seconds * 1000));
  },
  kill: async (args) => each(args, async (container) => stop(container, 0)),
  pull: async (args) => {
    await pull(flagsOf(args).words[0] ?? '', true);
    return 0;
  },
  version: () => {
    console.log(INFO.ServerVersion);
    return 0;
  },
};

async function main(): Promise<number> {
  const [verb = '', ...rest] = process.argv.slice(2);
  const args = verb === 'container' ? rest.slice(1) : rest;
  const command = COMMANDS[verb === 'container' ? (rest[0] ?? '') : verb];
  if (process.getuid?.() !== 0) {
    console.error(
      'permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: Get "http://%2Fvar%2Frun%2Fdocker.sock/v1.49/info": dial unix /var/run/docker.sock: connect: permission denied',
    );
    return 1;
  }
  if (command === undefined)
    throw new DockerError(`docker: '${verb}' is not a docker command.\nSee 'docker --help'`, 1);
  return command(args);
}

try {
  process.exitCode = await main();
} catch (error) {
  if (!(error instanceof DockerError)) throw error;
  console.error(error.message);
  process.exitCode = error.exitCode;
}
