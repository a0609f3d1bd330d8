/**
 * The keeper: a small detached process that runs the embedded redis-server of one DATA_DIR.
 * Every Sluice process that uses the folder holds a connection to the keeper's socket; one second
 * after the last is gone, which the kernel closes even on SIGKILL, the keeper stops Redis and
 * ends. Redis is tied to the keeper, so that killing everything leaves nothing behind either.
 *
 * Usage: keeper.ts --data-dir PATH --program PATH --fsync always|everysec
 * Exit code 0: stopped, or another keeper serves the folder; 1: it could not serve.
 */
import { rm, rmdir } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import type { Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { parseArgs } from 'node:util';

import { prepareRedisFolder } from './redis-folder.ts';
import type { RedisFolder, RedisStatus } from './redis-folder.ts';
import { tryLock } from './process-lock.ts';
import { superviseRedis } from './redis-supervisor.ts';

const IDLE_MS = 1_000;
const LOCK_WAIT_MS = 15_000;

function log(message: string): void {
  console.log(`${new Date().toISOString()} keeper ${process.pid}: ${message}`);
}

function isServed(socketPath: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(socketPath, () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false)); // nobody listens (yet, or any more)
  });
}

/** Waits while another keeper stops; null means that another one serves the folder. */
async function acquireLock(folder: RedisFolder): Promise<{ release(): void } | null> {
  const deadline = performance.now() + LOCK_WAIT_MS;
  for (;;) {
    const lock = tryLock(folder.lock);
    if (lock) return lock;
    if (await isServed(folder.keeperSocket)) return null;
    if (performance.now() > deadline) {
      throw new Error(`another process holds ${folder.lock} but does not answer`);
    }
    await delay(20);
  }
}

interface Users {
  tell(status: RedisStatus): void;
  /** Resolves when nobody has used the keeper for a second, or on `leave`. */
  gone: Promise<void>;
  leave(): void;
}

async function serveUsers(socketPath: string): Promise<Users> {
  const { promise: gone, resolve: leave } = Promise.withResolvers<void>();
  const users = new Set<Socket>();
  let status: RedisStatus = { state: 'starting' };
  let idle = setTimeout(leave, IDLE_MS);

  function addUser(socket: Socket): void {
    clearTimeout(idle);
    users.add(socket);
    socket.on('error', () => socket.destroy()); // a user that died: 'close' follows
    socket.once('close', () => {
      users.delete(socket);
      clearTimeout(idle);
      if (users.size === 0) idle = setTimeout(leave, IDLE_MS);
    });
    socket.resume();
    socket.write(`${JSON.stringify(status)}\n`);
  }

  // Only the holder of the lock comes here, so a socket that is there is a dead keeper's.
  await rm(socketPath, { force: true });
  const server = createServer(addUser);
  const listening = Promise.withResolvers<void>();
  server.once('error', listening.reject);
  server.listen(socketPath, listening.resolve);
  await listening.promise;

  // Closed before Redis stops: who comes now starts another keeper, which waits for the lock.
  const closed = gone.then(() => {
    clearTimeout(idle);
    server.close();
    for (const socket of users) socket.destroy();
  });
  return {
    tell(next) {
      status = next;
      for (const socket of users) socket.write(`${JSON.stringify(next)}\n`);
    },
    gone: closed,
    leave,
  };
}

async function keep(): Promise<void> {
  const { values } = parseArgs({
    options: {
      'data-dir': { type: 'string' },
      program: { type: 'string' },
      fsync: { type: 'string', default: 'always' },
    },
  });
  const { 'data-dir': dataDir, program } = values;
  if (!dataDir || !program) throw new Error('--data-dir and --program are needed');
  const folder = await prepareRedisFolder(dataDir);
  const lock = await acquireLock(folder);
  if (!lock) return;

  const users = await serveUsers(folder.keeperSocket);
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, users.leave);
  const fsync = values.fsync === 'everysec' ? 'everysec' : 'always';
  const redis = superviseRedis({ folder, program, fsync, log, report: users.tell });
  await users.gone;
  await redis.stop();
  log('stopped');
  if (folder.socketFolder) await rmdir(folder.socketFolder).catch(log); // refilled by a new user
  lock.release();
}

await keep();
