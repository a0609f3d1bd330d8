/*
 * The words after `docker run` (docs.docker.com/reference/cli/docker/container/run), as far as an
 * engine is started with them. An unknown flag is refused as the real command does it.
 */

export interface PortMapping {
  /** Address of the machine; 0.0.0.0 when none was named. */
  host: string;
  hostPort: number;
  containerPort: number;
}

export interface RunArgs {
  image: string;
  /** What follows the image. */
  command: string[];
  name: string | undefined;
  detached: boolean;
  remove: boolean;
  network: string;
  ports: PortMapping[];
  env: Record<string, string>;
  envFiles: string[];
  volumes: string[];
  entrypoint: string | undefined;
  labels: Record<string, string>;
  gpus: boolean;
}

/** The message that docker prints; 125 is its own exit code for a run that never began. */
export class DockerError extends Error {
  override name = 'DockerError';
  exitCode: number;

  constructor(message: string, exitCode = 125) {
    super(message);
    this.exitCode = exitCode;
  }
}

const WITH_VALUE = new Set(
  `name gpus ipc shm-size publish volume env env-file restart network net entrypoint label ulimit pull
  user workdir hostname memory cpus runtime log-driver log-opt mount cap-add security-opt device
  stop-timeout platform cidfile add-host tmpfs pid uts cpuset-cpus memory-swap oom-score-adj`
    .trim()
    .split(/\s+/),
);
const SWITCHES = new Set([
  'detach',
  'rm',
  'init',
  'interactive',
  'tty',
  'privileged',
  'read-only',
  'quiet',
]);
const SHORT: Record<string, string> = {
  d: 'detach',
  e: 'env',
  h: 'hostname',
  i: 'interactive',
  l: 'label',
  m: 'memory',
  p: 'publish',
  q: 'quiet',
  t: 'tty',
  u: 'user',
  v: 'volume',
  w: 'workdir',
};

function toMapping(text: string): PortMapping {
  const parts = text.replace(/\/(tcp|udp)$/, '').split(':');
  const containerPort = Number(parts.at(-1));
  const hostPort = Number(parts.at(-2) ?? parts.at(-1));
  if (!Number.isInteger(containerPort) || !Number.isInteger(hostPort)) {
    throw new DockerError(
      `docker: invalid publish opts format (should be name=value but got '${text}')`,
    );
  }
  return {
    host: parts.length > 2 ? parts.slice(0, -2).join(':') : '0.0.0.0',
    hostPort,
    containerPort,
  };
}

function toPair(text: string): [string, string] {
  const at = text.indexOf('=');
  return at < 0 ? [text, process.env[text] ?? ''] : [text.slice(0, at), text.slice(at + 1)];
}

type Options = Map<string, string[]>;

/** `-it`, `-p 1:1`, `-p1:1`, `--name x` and `--name=x`. */
function expand(word: string): { names: string[]; value: string | undefined } {
  if (word.startsWith('--')) {
    const at = word.indexOf('=');
    return at < 0
      ? { names: [word.slice(2)], value: undefined }
      : { names: [word.slice(2, at)], value: word.slice(at + 1) };
  }
  const names: string[] = [];
  for (const [at, letter] of Array.from(word.slice(1)).entries()) {
    const name = SHORT[letter];
    if (name === undefined) throw new DockerError(`unknown shorthand flag: '${letter}' in ${word}`);
    names.push(name);
    const rest = word.slice(at + 2).replace(/^=/, '');
    if (WITH_VALUE.has(name) && rest !== '') return { names, value: rest };
  }
  return { names, value: undefined };
}

function readOptions(args: string[]): Options {
  const options: Options = new Map();
  while (args[0]?.startsWith('-') === true) {
    const word = args.shift() ?? '';
    if (word === '--') break;
    const { names, value } = expand(word);
    for (const name of names) {
      if (!WITH_VALUE.has(name) && !SWITCHES.has(name)) {
        throw new DockerError(
          `unknown flag: --${name}\n\nUsage:  docker run [OPTIONS] IMAGE [COMMAND] [ARG...]`,
        );
      }
      const taken = SWITCHES.has(name) ? (value ?? 'true') : (value ?? args.shift());
      if (taken === undefined) throw new DockerError(`flag needs an argument: --${name}`);
      options.set(name, [...(options.get(name) ?? []), taken]);
    }
  }
  return options;
}

/** Reads what follows `docker run`; throws DockerError. */
export function parseRunArgs(words: readonly string[]): RunArgs {
  const args = [...words];
  const options = readOptions(args);
  const image = args.shift();
  if (image === undefined)
    throw new DockerError("docker: 'docker run' requires at least 1 argument");
  const all = (name: string): string[] => options.get(name) ?? [];
  const last = (name: string): string | undefined => all(name).at(-1);
  const restart = last('restart');
  if (last('rm') === 'true' && restart !== undefined && restart !== 'no') {
    throw new DockerError('docker: conflicting options: cannot specify both --restart and --rm');
  }
  return {
    image,
    command: args,
    name: last('name'),
    detached: last('detach') === 'true',
    remove: last('rm') === 'true',
    network: last('network') ?? last('net') ?? 'bridge',
    ports: all('publish').map(toMapping),
    env: Object.fromEntries(all('env').map(toPair)),
    envFiles: all('env-file'),
    volumes: all('volume'),
    entrypoint: last('entrypoint'),
    labels: Object.fromEntries(all('label').map(toPair)),
    gpus: last('gpus') !== undefined,
  };
}
