import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, openSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

import { boundLog, sizeOf, tailOf } from './redis-folder.ts';
import type { Fsync, RedisFolder } from './redis-folder.ts';
import type { RedisStatus } from './redis-folder.ts';
import { tiedCommand } from './redis-program.ts';
import type { TiedCommand } from './redis-program.ts';

/** What it takes to run one redis-server; the caller holds the folder's lock. */
export interface SupervisorOptions {
  folder: RedisFolder;
  program: string;
  fsync: Fsync;
  report: (status: RedisStatus) => void;
  log: (message: string) => void;
}

/** A redis-server that is started again whenever it dies. */
export interface Supervisor {
  /** Resolves once the server has ended; loses no write. */
  stop(): Promise<void>;
}

interface Run {
  child: ChildProcess;
  tie: TiedCommand['tie'];
  ended: Promise<string>;
  /** Size of the log before this start, so that a failure quotes its own lines only. */
  logStart: number;
}

const QUICK_DEATH_MS = 1_000;
const QUICK_DEATHS_TO_FAIL = 5;
const BACKOFF_MS = [0, 50, 100, 200, 400];
const FAILED_BACKOFF_MS = 2_000;
const STOP_GRACE_MS = 700;
const OLD_SERVER_GRACE_MS = 1_500;
const SOCKET_LOOK_MS = 500;
const LOOKS_TO_END = 3;

/** Starts redis-server and keeps it up until `stop`. */
export function superviseRedis(options: SupervisorOptions): Supervisor {
  const stopping = new AbortController();
  let current: Run | null = null;

  async function keepUp(): Promise<void> {
    await retireOldServer(options, stopping.signal);
    let quickDeaths = 0;
    while (!stopping.signal.aborted) {
      const startedAt = performance.now();
      current = await startServer(options);
      const end = await watchServer(current, options);
      // Between the old server's end and now `stop` may have been called, which expects it.
      if (stopping.signal.aborted) return;
      options.log(`redis-server ended: ${end}`);
      quickDeaths = performance.now() - startedAt < QUICK_DEATH_MS ? quickDeaths + 1 : 0;
      if (quickDeaths >= QUICK_DEATHS_TO_FAIL) {
        options.report({ state: 'failed', reason: await describeFailure(options, current, end) });
      } else {
        options.report({ state: 'starting' });
      }
      await pause(BACKOFF_MS[quickDeaths] ?? FAILED_BACKOFF_MS, stopping.signal);
    }
  }

  const done = keepUp();
  return {
    async stop() {
      stopping.abort();
      const run = current;
      if (run && run.child.exitCode === null && run.child.signalCode === null) {
        await endServer(run, options);
      }
      await done;
    },
  };
}

async function startServer({ folder, program, fsync, log }: SupervisorOptions): Promise<Run> {
  await boundLog(folder.redisLog);
  const logStart = await sizeOf(folder.redisLog);
  const { command, args, tie } = tiedCommand(program, serverArguments(folder, fsync), 'TERM');
  const output = openSync(folder.redisLog, 'a', 0o600);
  const child = spawn(command, args, {
    stdio: [tie === 'pipe' ? 'pipe' : 'ignore', output, output],
    cwd: folder.folder,
  });
  closeSync(output);
  // With the kernel's tie the child becomes redis-server itself. It writes this file too, but a
  // keeper that takes over has to find even a server that has not come so far.
  if (tie === 'kernel' && child.pid !== undefined) writeFileSync(folder.pidFile, `${child.pid}\n`);
  log(`started ${program} as process ${child.pid} (${tie} tie)`);
  return { child, tie, ended: describeEnd(child), logStart };
}

function serverArguments(folder: RedisFolder, fsync: Fsync): string[] {
  const settings = {
    port: '0',
    unixsocket: folder.socket,
    unixsocketperm: '600',
    dir: folder.folder,
    pidfile: folder.pidFile,
    logfile: folder.redisLog,
    daemonize: 'no',
    // Redis is the system of record: a full memory refuses writes rather than forget a job.
    'maxmemory-policy': 'noeviction',
    appendonly: 'yes',
    appendfsync: fsync,
    'aof-load-truncated': 'yes',
    'auto-aof-rewrite-percentage': '100',
    'auto-aof-rewrite-min-size': '64mb',
    save: '',
    // A shard's record with its bitmap stays compact: half the memory for jobs of millions of lines.
    'hash-max-listpack-value': '512',
  };
  return Object.entries(settings).flatMap(([name, value]) => [`--${name}`, value]);
}

async function describeEnd(child: ChildProcess): Promise<string> {
  try {
    const [code, signal] = await once(child, 'exit');
    // The guard's watcher reads this pipe until it is closed.
    child.stdin?.destroy();
    return signal === null ? `exit code ${String(code)}` : `signal ${String(signal)}`;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

async function watchServer(run: Run, options: SupervisorOptions) {
  const { folder, fsync, report } = options;
  const dead = new AbortController();
  const ended = run.ended.finally(() => dead.abort());
  void keepReachable(run, options, dead.signal);
  while (!dead.signal.aborted) {
    const reply = await ping(folder.socket);
    if (reply.startsWith('+PONG')) {
      report({ state: 'up', pid: run.child.pid ?? 0, fsync });
      break;
    }
    // -LOADING: a long append-only file is read in before the first answer.
    await pause(reply === '' ? 5 : 50, dead.signal);
  }
  return ended;
}

/**
 * Ends a server whose socket is gone, so that it is started again: a server before it that ended late, in a folder that
 * was made anew, removes the name of the next one's socket, and nobody could ever reach that.
 */
async function keepReachable(
  run: Run,
  options: SupervisorOptions,
  dead: AbortSignal,
): Promise<void> {
  let missing = 0;
  while (!dead.aborted && missing < LOOKS_TO_END) {
    await pause(SOCKET_LOOK_MS, dead);
    missing = existsSync(options.folder.socket) ? 0 : missing + 1;
  }
  if (dead.aborted) return;
  options.log('the socket of redis-server is gone: starting it again');
  await endServer(run, options);
}

async function describeFailure({ folder }: SupervisorOptions, run: Run, end: string) {
  const lines = await tailOf(folder.redisLog, run.logStart);
  return `redis-server does not stay up (${end}); ${folder.redisLog} ends with:\n${lines}`;
}

async function endServer(run: Run, { folder, log }: SupervisorOptions): Promise<void> {
  if (run.tie === 'pipe') run.child.stdin?.destroy();
  else run.child.kill('SIGTERM');
  const timeout = new AbortController();
  // It rejects only when it is called off, below.
  const late = delay(STOP_GRACE_MS, 'late', { signal: timeout.signal }).catch(() => 'in time');
  const outcome = await Promise.race([run.ended, late]);
  timeout.abort();
  if (outcome !== 'late') return;
  // Nothing is lost: what Redis has acknowledged is in the file, only its process is in the way.
  log('redis-server does not end: killing it');
  const pid = await readPid(folder);
  if (pid !== null) signalProcess(pid, 'SIGKILL');
  await run.ended;
}

/**
 * Waits until the server of a keeper that was killed has ended (its tie has told it to): two
 * servers over one append-only file would destroy it, and the old one removes the socket last.
 */
async function retireOldServer({ folder, log }: SupervisorOptions, signal: AbortSignal) {
  const startedAt = performance.now();
  for (;;) {
    const pid = await readPid(folder);
    if (pid === null || signal.aborted || !(await isServerOf(pid, folder))) return;
    if (performance.now() - startedAt > OLD_SERVER_GRACE_MS) {
      log(`killing process ${pid}, a redis-server left behind`);
      signalProcess(pid, 'SIGKILL');
    }
    await pause(10, signal);
  }
}

async function readPid(folder: RedisFolder): Promise<number | null> {
  const text = await readFile(folder.pidFile, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return '';
    throw error;
  });
  const pid = Number(text);
  return Number.isInteger(pid) && pid > 0 ? pid : null;
}

// A process id may have been given to another program since; the command line tells. Before it
// sets its title, redis-server (or its guard) shows its arguments, which name the socket as well.
async function isServerOf(pid: number, folder: RedisFolder): Promise<boolean> {
  if (process.platform === 'linux') {
    const line = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => ''); // it has ended
    return names(line, folder.socket);
  }
  const ps = spawn('ps', ['-ww', '-o', 'args=', '-p', String(pid)], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  let line = '';
  for await (const chunk of ps.stdout.setEncoding('utf8')) line += String(chunk);
  return names(line, folder.socket);
}

// As an argument or as `unixsocket:PATH` in the title, never as the end of a longer path.
function names(line: string, path: string): boolean {
  return ['\0', ' ', ':'].some((before) => line.includes(before + path));
}

function signalProcess(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    // ESRCH: it ended by itself in the meantime.
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

/** First bytes of the reply to PING, or an empty string if nobody listens. */
function ping(socketPath: string): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect(socketPath, () => socket.write('PING\r\n'));
    socket.setTimeout(1_000, () => socket.destroy());
    socket.once('data', (data) => {
      resolve(data.toString('latin1'));
      socket.destroy();
    });
    socket.once('error', () => socket.destroy()); // refused while it starts: asked again
    socket.once('close', () => resolve(''));
  });
}

async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await delay(ms, undefined, { signal }).catch((error: unknown) => {
    if (!signal.aborted) throw error;
  });
}
