import { spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { connect } from 'node:net';
import type { Socket } from 'node:net';
import { join, resolve as resolvePath } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';

import { permanent, toError, transient } from '../domain/errors.ts';
import { boundLog, prepareRedisFolder, sizeOf, tailOf } from './redis-folder.ts';
import type { Fsync, RedisFolder, RedisStatus } from './redis-folder.ts';
import { findRedisProgram, REDIS_MISSING } from './redis-program.ts';

/** This process's share of the Redis that belongs to a DATA_DIR. */
export interface EmbeddedRedis {
  /** For clients, people and logs: `redis+unix:///path/redis.sock`. */
  url: string;
  /** Absolute path of Redis's unix socket (`path` in ioredis); it stays the same for the run. */
  socket: string;
  /** Gives the share up; the last one given up stops Redis a second later. May be repeated. */
  close(): Promise<void>;
  /**
   * Calls `listener` when Redis dies again and again, or no keeper can be started any more. Both
   * go on being tried, so a mended disk is enough; a call is one report, not an end.
   */
  onFailure(listener: (error: Error) => void): void;
}

/** `fsync` is what a new server starts with; one that runs for others keeps its own. */
export interface EmbeddedRedisOptions {
  dataDir: string;
  fsync: Fsync;
  log: (fields: object, message: string) => void;
}

const REACH_TIMEOUT_MS = 20_000;
const RESTART_KEEPER_MS = 3_000;
const RETRY_MS = 1_000;

/**
 * Joins the embedded Redis of `dataDir`, started if nobody uses it yet, and resolves when it has
 * loaded its data and answers. It is kept up while this process lives and is stopped within two
 * seconds of its last user, however that ended. Throws one clear line if DATA_DIR cannot be
 * written, if no Redis is installed, and with Redis's own last words if it does not start.
 */
export async function openEmbeddedRedis(options: EmbeddedRedisOptions): Promise<EmbeddedRedis> {
  const folder = await prepareRedisFolder(options.dataDir);
  const share = holdShare(folder, options);
  try {
    await share.up;
  } catch (error) {
    await share.close();
    throw error;
  }
  return {
    url: pathToFileURL(folder.socket).href.replace('file:', 'redis+unix:'),
    socket: folder.socket,
    close: share.close,
    onFailure: share.onFailure,
  };
}

interface Share {
  /** Resolves at the first `up`, rejects if a failure comes first. */
  up: Promise<void>;
  close(): Promise<void>;
  onFailure(listener: (error: Error) => void): void;
}

function holdShare(folder: RedisFolder, options: EmbeddedRedisOptions): Share {
  const { promise: up, resolve, reject } = Promise.withResolvers<void>();
  const listeners: Array<(error: Error) => void> = [];
  const closing = new AbortController();

  function fail(error: Error): void {
    reject(error);
    for (const listener of listeners) listener(error);
  }

  function learn(status: RedisStatus): void {
    if (status.state === 'failed') {
      options.log({ reason: status.reason }, 'embedded Redis does not stay up');
      fail(permanent('redis.failed', status.reason));
    } else if (status.state === 'starting') {
      options.log({ dataDir: options.dataDir }, 'embedded Redis is starting');
    } else {
      noteFsync(status.fsync, options);
      options.log({ socket: folder.socket, pid: status.pid }, 'embedded Redis is up');
      resolve();
    }
  }

  async function hold(): Promise<void> {
    while (!closing.signal.aborted) {
      try {
        const keeper = await reachKeeper(folder, options, closing.signal);
        await readStatuses(keeper, learn, closing.signal);
      } catch (error) {
        if (closing.signal.aborted) return;
        fail(toError(error));
        await delay(RETRY_MS, undefined, { signal: closing.signal }).catch(() => null); // closing
      }
    }
  }

  const held = hold();
  return {
    up,
    async close() {
      closing.abort();
      await held;
    },
    onFailure: (listener) => void listeners.push(listener),
  };
}

function noteFsync(running: Fsync, { fsync, log }: EmbeddedRedisOptions): void {
  if (running === fsync) return;
  log({ running, wanted: fsync }, 'embedded Redis runs with the appendfsync of its first user');
}

/** A connection to the folder's keeper, which is started if there is none. */
async function reachKeeper(
  folder: RedisFolder,
  options: EmbeddedRedisOptions,
  signal: AbortSignal,
): Promise<Socket> {
  const deadline = performance.now() + REACH_TIMEOUT_MS;
  let nextStart = 0;
  let failure: Error | null = null;
  for (;;) {
    const socket = await connectTo(folder.keeperSocket);
    if (socket) return socket;
    signal.throwIfAborted();
    if (failure) throw failure;
    if (performance.now() > deadline) {
      const message = `The keeper of the embedded Redis does not answer; its log is ${folder.keeperLog}`;
      throw transient('redis.no_keeper', message);
    }
    if (performance.now() > nextStart) {
      nextStart = performance.now() + RESTART_KEEPER_MS;
      await startKeeper(folder, options, (error) => (failure = error));
    }
    await delay(10);
  }
}

function connectTo(path: string): Promise<Socket | null> {
  return new Promise((resolve) => {
    const socket = connect(path, () => resolve(socket));
    socket.once('error', () => resolve(null)); // no keeper (any more): the caller starts one
  });
}

async function startKeeper(
  folder: RedisFolder,
  { dataDir, fsync, log }: EmbeddedRedisOptions,
  fail: (error: Error) => void,
): Promise<void> {
  const program = findRedisProgram();
  if (!program) throw permanent('redis.missing', REDIS_MISSING);
  await boundLog(folder.keeperLog);
  const logStart = await sizeOf(folder.keeperLog);
  const output = openSync(folder.keeperLog, 'a', 0o600);
  const entry = join(import.meta.dirname, 'keeper.ts');
  const args = ['--data-dir', resolvePath(dataDir), '--program', program, '--fsync', fsync];
  const keeper = spawn(process.execPath, ['--max-semi-space-size=1', entry, ...args], {
    detached: true,
    stdio: ['ignore', output, output],
    // It outlives this process and needs none of its secrets. The cache saves it the type
    // stripper: 30 ms and 17 MB.
    env: {
      PATH: '/usr/local/bin:/usr/bin:/bin',
      NODE_COMPILE_CACHE: join(import.meta.dirname, '../../node_modules/.cache/keeper'),
    },
  });
  closeSync(output);
  log({ pid: keeper.pid, dataDir }, 'started a keeper for the embedded Redis');
  keeper.once('error', fail);
  keeper.once('exit', (code) => {
    if (code === 0) return; // another keeper serves the folder
    void tailOf(folder.keeperLog, logStart).then(
      (lines) => fail(new Error(`the keeper of the embedded Redis ended:\n${lines}`)),
      fail,
    );
  });
  // It serves every user of the folder and may not keep this one alive.
  keeper.unref();
}

/** Reads the keeper's lines until its connection ends, by its death or by `signal`. */
async function readStatuses(
  socket: Socket,
  learn: (status: RedisStatus) => void,
  signal: AbortSignal,
): Promise<void> {
  const { promise: ended, resolve } = Promise.withResolvers<void>();
  let rest = '';
  socket.setEncoding('utf8');
  socket.on('data', (chunk: string) => {
    const lines = (rest + chunk).split('\n');
    rest = lines.pop() ?? '';
    // Written by the keeper of this same folder, which no other user of the machine can enter.
    for (const line of lines) learn(JSON.parse(line) as RedisStatus);
  });
  socket.on('error', () => socket.destroy()); // a keeper that was killed: 'close' follows
  socket.once('close', () => resolve());
  const leave = (): void => void socket.destroy();
  signal.addEventListener('abort', leave, { once: true });
  if (signal.aborted) leave();
  await ended;
  signal.removeEventListener('abort', leave);
}
