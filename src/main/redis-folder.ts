import { createHash } from 'node:crypto';
import { access, constants, lstat, mkdir, open, realpath, stat, truncate } from 'node:fs/promises';
import { join } from 'node:path';

/** Where the embedded Redis of one DATA_DIR keeps its files; all paths are absolute. */
import { permanent } from '../domain/errors.ts';

export interface RedisFolder {
  /** DATA_DIR/redis, private to the user: the append-only file, the logs and the lock. */
  folder: string;
  /** Redis's unix socket. */
  socket: string;
  /** The keeper's unix socket: one connection a user, held as long as the user lives. */
  keeperSocket: string;
  /** A short folder for the two sockets, only if DATA_DIR's own path is too long for them. */
  socketFolder: string | null;
  lock: string;
  pidFile: string;
  keeperLog: string;
  redisLog: string;
}

/** What a keeper tells its users, one JSON object a line: on connection, then at each change. */
export type RedisStatus =
  | { state: 'starting' }
  | { state: 'up'; pid: number; fsync: Fsync }
  | { state: 'failed'; reason: string };

/** Redis's `appendfsync`: each write is on disk before its reply, or at most 1 s later. */
export type Fsync = 'always' | 'everysec';

// sun_path has 104 bytes on macOS and 108 on Linux, the closing zero included.
const MAX_SOCKET_PATH = 103;
const MAX_LOG_BYTES = 10 * 1024 * 1024;

/** Creates the folder if need be. Throws one clear line when DATA_DIR cannot be written. */
export async function prepareRedisFolder(dataDir: string): Promise<RedisFolder> {
  const folder = await createFolder(dataDir);
  const longest = join(folder, 'keeper.sock');
  const fits = Buffer.byteLength(longest) <= MAX_SOCKET_PATH;
  const socketFolder = fits ? null : await createSocketFolder(folder);
  return {
    folder,
    socket: join(socketFolder ?? folder, 'redis.sock'),
    keeperSocket: join(socketFolder ?? folder, 'keeper.sock'),
    socketFolder,
    lock: join(folder, 'keeper.lock'),
    pidFile: join(folder, 'redis.pid'),
    keeperLog: join(folder, 'keeper.log'),
    redisLog: join(folder, 'redis.log'),
  };
}

async function createFolder(dataDir: string): Promise<string> {
  const folder = join(dataDir, 'redis');
  try {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    // The real path, so that two names of one folder mean one keeper.
    const real = await realpath(folder);
    await access(real, constants.W_OK | constants.X_OK);
    return real;
  } catch (error) {
    const message = `DATA_DIR ${dataDir} cannot be written, set it elsewhere`;
    throw permanent('data_dir.not_writable', message, { cause: error });
  }
}

// Not os.tmpdir(): processes with another TMPDIR would not find each other.
async function createSocketFolder(folder: string): Promise<string> {
  const uid = process.getuid?.() ?? 0;
  const hash = createHash('sha256').update(folder).digest('hex').slice(0, 16);
  const path = `/tmp/sluice-${uid}-${hash}`;
  await mkdir(path, { recursive: true, mode: 0o700 });
  const found = await lstat(path);
  // /tmp is everybody's: a folder laid there by another user could serve a false Redis.
  if (!found.isDirectory() || found.uid !== uid || (found.mode & 0o077) !== 0) {
    throw permanent('redis.folder', `${path} is not a private folder of this user: remove it`);
  }
  return path;
}

/** Empties a log that has grown over 10 MB; call it before its writer starts. */
export async function boundLog(path: string): Promise<void> {
  const size = await sizeOf(path);
  if (size > MAX_LOG_BYTES) await truncate(path, 0);
}

/** Size in bytes; 0 for a file that is not there. */
export async function sizeOf(path: string): Promise<number> {
  const found = await stat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null;
    throw error;
  });
  return found?.size ?? 0;
}

/** The last lines of a log, at most 2 kB of it, nothing from before byte `since`. */
export async function tailOf(path: string, since = 0): Promise<string> {
  const size = await sizeOf(path);
  if (size === 0) return '';
  const start = Math.max(size - 2048, size < since ? 0 : since);
  await using file = await open(path);
  const { buffer, bytesRead } = await file.read(Buffer.alloc(2048), 0, 2048, start);
  const lines = buffer.toString('utf8', 0, bytesRead).trim().split('\n');
  return lines.slice(-8).join('\n');
}
