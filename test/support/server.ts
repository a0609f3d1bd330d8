import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, realpath, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { tiedCommand } from '../../src/main/redis-program.ts';
import { until } from './until.ts';
import type { ProcessEnd } from './vllm-process.ts';

const LAUNCHER = fileURLToPath(new URL('../../src/main/sluice', import.meta.url));
const CLI = fileURLToPath(new URL('../../src/main/cli.ts', import.meta.url));

/** Every process that these helpers started, so that a test file can show that none is left. */
const started = new Map<number, string>();

export interface Cli {
  pid: number;
  child: ChildProcess;
  exited: Promise<ProcessEnd>;
  /** What it wrote so far. */
  stdout(): string;
  stderr(): string;
  /** Sends a signal and waits for the end. */
  kill(signal: NodeJS.Signals): Promise<ProcessEnd>;
  [Symbol.asyncDispose](): Promise<void>;
}

export type Environment = Readonly<Record<string, string>>;

/** The flags with which the launcher starts Node. */
function nodeFlags(): string[] {
  const [, flags] = /^flags='(.+)'$/m.exec(readFileSync(LAUNCHER, 'utf8')) ?? [];
  if (flags === undefined) throw new Error(`no flags of Node in ${LAUNCHER}`);
  return flags.split(' ');
}

/**
 * Spawns src/main/cli.ts with these arguments and no setting but those of `env`. It ends with this process, however
 * this process ends, where the kernel can see to that.
 */
export function spawnCli(args: readonly string[], env: Environment = {}): Cli {
  const command = [...nodeFlags(), CLI, ...args];
  const tied = tiedCommand(process.execPath, command, 'KILL');
  const child = spawn(
    tied.tie === 'kernel' ? tied.command : process.execPath,
    tied.tie === 'kernel' ? tied.args : command,
    {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: {
        PATH: process.env['PATH'] ?? '',
        TMPDIR: tmpdir(),
        MALLOC_ARENA_MAX: '1',
        MALLOC_MMAP_THRESHOLD_: '2097152',
        // Dozens of starts share the cost of stripping types.
        NODE_COMPILE_CACHE: join(import.meta.dirname, '../../node_modules/.cache/test-cli'),
        ...env,
      },
    },
  );
  const pid = child.pid ?? 0;
  started.set(pid, ['sluice', ...args].join(' '));
  let [stdout, stderr] = ['', ''];
  child.stdout?.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr?.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  // `close`, not `exit`: only then is everything read that it wrote.
  const exited = once(child, 'close').then(([code, signal]): ProcessEnd => ({
    code: code as number | null,
    signal: signal as ProcessEnd['signal'],
  }));
  async function kill(signal: NodeJS.Signals): Promise<ProcessEnd> {
    child.kill(signal);
    return exited;
  }
  return {
    pid,
    child,
    exited,
    stdout: () => stdout,
    stderr: () => stderr,
    kill,
    async [Symbol.asyncDispose]() {
      if (child.exitCode === null && child.signalCode === null) await kill('SIGKILL');
    },
  };
}

export interface CliResult extends ProcessEnd {
  stdout: string;
  stderr: string;
}

/** Runs a command to its end; one that has not ended in time is killed and shows as `SIGKILL`. */
export async function runCli(
  args: readonly string[],
  env: Environment = {},
  { timeoutMs = 60_000 } = {},
): Promise<CliResult> {
  await using cli = spawnCli(args, env);
  const timer = setTimeout(() => cli.child.kill('SIGKILL'), timeoutMs);
  const end = await cli.exited;
  clearTimeout(timer);
  return { ...end, stdout: cli.stdout(), stderr: cli.stderr() };
}

/** A line of the server's log. */
export interface LogLine {
  level: string;
  msg: string;
  time: string;
  [field: string]: unknown;
}

export interface SluiceOptions {
  dataDir: string;
  engines?: readonly string[];
  redisUrl?: string;
  roles?: readonly string[];
  queues?: readonly string[];
  env?: Environment;
  /** How long it may take to be up. */
  timeoutMs?: number;
}

/** A running `sluice start`. */
export interface Sluice extends AsyncDisposable {
  /** Where its API answers; empty without that role. */
  url: string;
  pid: number;
  exited: Promise<ProcessEnd>;
  logs(): LogLine[];
  /** Waits for a log line with this message. */
  untilLogged(message: string, timeoutMs?: number): Promise<LogLine>;
  /** SIGTERM; resolves with how it ended and after how many ms. */
  stop(): Promise<ProcessEnd & { ms: number }>;
  /** SIGKILL. */
  kill(): Promise<ProcessEnd>;
}

/** The environment of a server; whatever `env` says goes before. */
function serverEnvironment(options: SluiceOptions): Environment {
  return {
    DATA_DIR: options.dataDir,
    HTTP_ADDR: '127.0.0.1:0',
    LOG_LEVEL: 'info',
    ...(options.engines === undefined ? {} : { ENGINE_URLS: options.engines.join(',') }),
    ...(options.redisUrl === undefined ? {} : { REDIS_URL: options.redisUrl }),
    ...(options.roles === undefined ? {} : { ROLES: options.roles.join(',') }),
    ...(options.queues === undefined ? {} : { QUEUES: options.queues.join(',') }),
    ...options.env,
  };
}

/** Starts `sluice start` as a child and resolves when it is up; one that ends before is an error with its output. */
export async function startSluice(options: SluiceOptions): Promise<Sluice> {
  const cli = spawnCli(['start'], serverEnvironment(options));
  const lines: LogLine[] = [];
  let read = 0;
  function logs(): LogLine[] {
    const end = cli.stderr().lastIndexOf('\n') + 1;
    const fresh = cli.stderr().slice(read, end).split('\n').filter(Boolean);
    read = end;
    lines.push(...fresh.map(readLine));
    return lines;
  }
  let ended = false;
  void cli.exited.then(() => (ended = true));
  async function untilLogged(message: string, timeoutMs = 60_000): Promise<LogLine> {
    const find = () => logs().find(({ msg }) => msg === message);
    try {
      return await until(() => find() ?? (ended ? Promise.reject(new Error('it ended')) : false), {
        timeoutMs,
        what: 'it',
      });
    } catch (error) {
      const wrote = `${cli.stdout()}${cli.stderr()}`;
      throw new Error(`no log line '${message}': ${String(error)}; it wrote:\n${wrote}`, {
        cause: error,
      });
    }
  }
  try {
    const up = await untilLogged('Sluice is up', options.timeoutMs);
    return {
      url: typeof up['url'] === 'string' ? up['url'] : '',
      pid: cli.pid,
      exited: cli.exited,
      logs,
      untilLogged,
      async stop() {
        const begun = performance.now();
        const end = await cli.kill('SIGTERM');
        return { ...end, ms: performance.now() - begun };
      },
      kill: () => cli.kill('SIGKILL'),
      [Symbol.asyncDispose]: () => cli[Symbol.asyncDispose](),
    };
  } catch (error) {
    await cli[Symbol.asyncDispose]();
    throw error;
  }
}

function readLine(text: string): LogLine {
  try {
    return JSON.parse(text) as LogLine; // written by the server's own logger
  } catch {
    return { level: 'none', msg: text, time: '' }; // a last word that is no log line
  }
}

/** A folder of the test's own. */
export interface TestFolder extends AsyncDisposable {
  path: string;
  /** Processes whose command line names the folder: its embedded Redis and that one's keeper. */
  processes(): { pid: number; command: string }[];
  /** Resolves when no process uses it any more. */
  untilUnused(timeoutMs?: number): Promise<void>;
}

/**
 * Makes a folder for DATA_DIR and files. Disposing waits until no process uses it, which is an error after a while,
 * and removes it: so a Redis or keeper that outlives its users fails the test that left it.
 */
export async function makeFolder(): Promise<TestFolder> {
  const path = await realpath(await mkdtemp(join(tmpdir(), 'sluice-e2e-')));
  function processes(): { pid: number; command: string }[] {
    return listProcesses().filter(({ command }) => command.includes(path));
  }
  async function untilUnused(timeoutMs = 30_000): Promise<void> {
    await until(() => processes().length === 0, { timeoutMs, what: `the end of users of ${path}` });
  }
  return {
    path,
    processes,
    untilUnused,
    async [Symbol.asyncDispose]() {
      await untilUnused();
      await rm(path, { recursive: true, force: true, maxRetries: 3 });
    },
  };
}

function listProcesses(): { pid: number; command: string }[] {
  if (!existsSync('/proc/self/cmdline')) return []; // only Linux shows them so
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map((name) => ({ pid: Number(name), command: commandLine(name) }));
}

function commandLine(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
  } catch {
    return ''; // ended meanwhile
  }
}

/** Throws if a process that these helpers started is alive. For the end of a test file. */
export function requireNothingLeft(): void {
  const left = [...started].filter(([pid]) => isAlive(pid));
  if (left.length > 0) throw new Error(`still alive: ${JSON.stringify(left)}`);
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false; // ESRCH: gone
  }
}
