import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, readFile, realpath, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

import { Redis } from 'ioredis';
import { afterAll, afterEach, expect, test } from 'vitest';

import { openEmbeddedRedis } from '../../src/main/embedded-redis.ts';
import type { EmbeddedRedis } from '../../src/main/embedded-redis.ts';
import { prepareRedisFolder } from '../../src/main/redis-folder.ts';
import { findRedisProgram, tiedCommand } from '../../src/main/redis-program.ts';
import type { Tie } from '../../src/main/redis-program.ts';
import { startRedis } from '../support/redis.ts';
import { until } from '../support/until.ts';

const SUPPORT = join(import.meta.dirname, '../support');
const KEEPER = join(import.meta.dirname, '../../src/main/keeper.ts');

interface Line {
  open?: string;
  closed?: boolean;
  refused?: string;
  failure?: string;
  message?: string;
}

interface User {
  child: ChildProcess;
  lines: Line[];
}

const folders: string[] = [];
const children: ChildProcess[] = [];
const shares: EmbeddedRedis[] = [];

afterEach(async () => {
  await Promise.all(shares.splice(0).map((share) => share.close()));
  for (const child of children.splice(0)) await kill(child);
});

// Not after each: a keeper's last second is not worth waiting for twenty times.
afterAll(async () => {
  for (const folder of folders) await untilGone(folder);
  for (const folder of folders) await rm(folder, { recursive: true, force: true });
});

async function makeFolder(name = ''): Promise<string> {
  const folder = await realpath(await mkdtemp(join(tmpdir(), 'sluice-keeper-')));
  folders.push(folder);
  return join(folder, name);
}

async function open(dataDir: string): Promise<EmbeddedRedis> {
  const share = await openEmbeddedRedis({ dataDir, fsync: 'always', log: () => undefined });
  shares.push(share);
  return share;
}

function startUser(dataDir: string, options: { uid?: number; path?: string } = {}): User {
  const child = spawn(process.execPath, [join(SUPPORT, 'keeper-user.ts'), dataDir], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: { ...process.env, ...(options.path === undefined ? {} : { PATH: options.path }) },
    ...(options.uid === undefined ? {} : { uid: options.uid, gid: options.uid }),
  });
  children.push(child);
  const lines: Line[] = [];
  if (child.stdout) {
    createInterface({ input: child.stdout }).on('line', (line) => lines.push(JSON.parse(line)));
  }
  return { child, lines };
}

function untilOpen(user: User): Promise<string> {
  return until(() => user.lines.find((line) => line.open)?.open, { what: 'an open Redis' });
}

async function kill(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
}

/** Processes whose command line names the folder: its keeper and its redis-server. */
async function processesOf(folder: string): Promise<{ pid: number; line: string }[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const found = pids.map(async (pid) => {
    const line = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => ''); // it has ended
    return { pid: Number(pid), line: line.replaceAll('\0', ' ') };
  });
  return (await Promise.all(found)).filter(
    ({ line }) => line.includes(folder) && !line.includes('keeper-user.ts'),
  );
}

/** Waits until there is exactly one: at times one is on its way in or out. */
async function pidOf(kind: 'keeper.ts' | 'redis-server', dataDir: string): Promise<number> {
  const one = await until(
    async () => {
      const all = await processesOf(dataDir);
      const running = all.filter(({ line }) => line.includes(KEEPER) === (kind === 'keeper.ts'));
      return running.length === 1 && running[0];
    },
    { timeoutMs: 4_000, what: `one ${kind}` },
  );
  return one.pid;
}

async function untilGone(dataDir: string, timeoutMs = 3_000): Promise<number> {
  const startedAt = performance.now();
  await until(async () => (await processesOf(dataDir)).length === 0, {
    timeoutMs,
    what: 'the end of keeper and redis-server',
  });
  return performance.now() - startedAt;
}

async function withClient<T>(socket: string, use: (redis: Redis) => Promise<T>): Promise<T> {
  const redis = new Redis({ path: socket, retryStrategy: () => 20, maxRetriesPerRequest: null });
  redis.on('error', () => undefined); // refused while Redis is being started again
  try {
    return await use(redis);
  } finally {
    redis.disconnect();
  }
}

test('keeps its data from one use to the next and leaves no process behind', async () => {
  const dataDir = await makeFolder('a folder with spaces');
  const first = await open(dataDir);
  expect(first.url).toMatch(/^redis\+unix:\/\/\/.*a%20folder%20with%20spaces\/redis\/redis\.sock$/);
  await withClient(first.socket, (redis) => redis.set('key', 'kept'));
  await first.close();
  await first.close();
  expect(await untilGone(dataDir)).toBeLessThan(2_000);

  const second = await open(dataDir);
  expect(await withClient(second.socket, (redis) => redis.get('key'))).toBe('kept');
});

test('runs as durably as docker/redis.conf says', async () => {
  const names = [
    ['appendonly', 'appendfsync', 'maxmemory-policy', 'save', 'aof-load-truncated'],
    ['no-appendfsync-on-rewrite', 'auto-aof-rewrite-percentage', 'auto-aof-rewrite-min-size'],
  ].flat();
  function read(redis: Redis): Promise<unknown> {
    return Promise.all(names.map((name) => redis.config('GET', name)));
  }
  const conf = await readFile(join(import.meta.dirname, '../../docker/redis.conf'), 'utf8');
  const settings: Record<string, string> = {};
  for (const line of conf.split('\n')) {
    const [, name = '', value = ''] = /^([a-z-]+) (.*)$/.exec(line) ?? [];
    if (name && !['port', 'bind'].includes(name)) settings[name] = value.replaceAll('"', '');
  }
  await using own = await startRedis({ settings });
  const client = new Redis(own.url);
  const promised = await read(client);
  client.disconnect();

  const share = await open(await makeFolder());
  expect(await withClient(share.socket, read)).toEqual(promised);
  expect(await withClient(share.socket, (redis) => redis.config('GET', 'port'))).toEqual([
    'port',
    '0',
  ]);
});

test('starts redis-server again within 2 s of its death, with every acknowledged write', async () => {
  const dataDir = await makeFolder();
  const share = await open(dataDir);
  await withClient(share.socket, async (redis) => {
    await redis.set('key', 'acknowledged');
    const killed = await pidOf('redis-server', dataDir);
    const startedAt = performance.now();
    process.kill(killed, 'SIGKILL');
    await until(async () => (await pidOf('redis-server', dataDir)) !== killed);
    expect(await redis.get('key')).toBe('acknowledged');
    expect(performance.now() - startedAt).toBeLessThan(2_000);
  });
});

test('a redis-server whose socket was removed, as by one that ended late, is reached again', async () => {
  const dataDir = await makeFolder();
  const share = await open(dataDir);
  const redis = new Redis(share.socket);
  try {
    await redis.set('kept', 'yes');
    await rm((await prepareRedisFolder(dataDir)).socket);
    const again = await until(
      async () => {
        const late = new Redis(share.socket, { lazyConnect: true, retryStrategy: () => null });
        late.on('error', () => undefined);
        try {
          await late.connect();
          return await late.get('kept');
        } catch {
          return undefined; // not there yet
        } finally {
          late.disconnect();
        }
      },
      { timeoutMs: 8_000, what: 'a server that can be reached' },
    );
    expect(again).toBe('yes');
  } finally {
    redis.disconnect();
  }
});

test('users go on when the keeper is killed', async () => {
  const dataDir = await makeFolder();
  const [share, other] = [await open(dataDir), startUser(dataDir)];
  expect(await untilOpen(other)).toBe(share.socket);
  await withClient(share.socket, async (redis) => {
    await redis.set('key', 'before');
    const killed = await pidOf('keeper.ts', dataDir);
    const startedAt = performance.now();
    process.kill(killed, 'SIGKILL');
    await until(async () => (await pidOf('keeper.ts', dataDir)) !== killed);
    expect(await redis.get('key')).toBe('before');
    await redis.set('key', 'after');
    expect(performance.now() - startedAt).toBeLessThan(3_000);
  });
  // Both users hold the new keeper: it outlives either.
  await share.close();
  const keeper = await pidOf('keeper.ts', dataDir);
  await until(() => other.lines.filter((line) => line.message?.endsWith('is up')).length === 2);
  expect(await pidOf('keeper.ts', dataDir)).toBe(keeper);
  await kill(other.child);
  expect(await untilGone(dataDir)).toBeLessThan(2_000);
});

test('ends within 2 s when every user is killed', async () => {
  const dataDir = await makeFolder();
  const users = [startUser(dataDir), startUser(dataDir)];
  await Promise.all(users.map(untilOpen));
  // The keeper that both started at once and came second has bowed out.
  await until(async () => (await processesOf(dataDir)).length === 2);
  await Promise.all(users.map((user) => kill(user.child)));
  expect(await untilGone(dataDir)).toBeLessThan(2_000);
});

test('redis-server ends when users and keeper are killed in one moment', async () => {
  const dataDir = await makeFolder();
  const user = startUser(dataDir);
  await untilOpen(user);
  const keeper = await pidOf('keeper.ts', dataDir);
  user.child.kill('SIGKILL');
  process.kill(keeper, 'SIGKILL');
  expect(await untilGone(dataDir)).toBeLessThan(2_000);

  // What they left (sockets, pid file, lock) does not hinder the next.
  const share = await open(dataDir);
  expect(await withClient(share.socket, (redis) => redis.ping())).toBe('PONG');
});

test('ends within 2 s when its only user is killed before Redis is up', async () => {
  const dataDir = await makeFolder();
  const user = startUser(dataDir);
  await until(() => user.lines.find((line) => line.message?.startsWith('started a keeper')));
  await kill(user.child);
  expect(await untilGone(dataDir)).toBeLessThan(2_500);
});

test('many users that start in one moment share one redis-server', async () => {
  const dataDir = await makeFolder();
  const opened = await Promise.all(Array.from({ length: 6 }, () => open(dataDir)));
  expect(new Set(opened.map((share) => share.socket)).size).toBe(1);
  await until(async () => (await processesOf(dataDir)).length === 2);
  const log = await readFile(join(dataDir, 'redis/keeper.log'), 'utf8');
  expect(log.match(/as process/g)).toHaveLength(1);
});

test('a user that comes while the keeper stops gets a new one', async () => {
  const dataDir = await makeFolder();
  for (let round = 0; round < 3; round += 1) {
    const share = await open(dataDir);
    // Sent again where its reply was lost, it adds nothing.
    await withClient(share.socket, (redis) => redis.sadd('rounds', round));
    const keeper = await pidOf('keeper.ts', dataDir);
    await share.close();
    process.kill(keeper, 'SIGTERM');
  }
  const last = await open(dataDir);
  expect(await withClient(last.socket, (redis) => redis.scard('rounds'))).toBe(3);
});

test('takes no notice of stale files, nor of a process id that another program has now', async () => {
  const dataDir = await makeFolder();
  const { keeperSocket, socket, pidFile, lock } = await prepareRedisFolder(dataDir);
  await Promise.all([socket, keeperSocket, lock].map((path) => writeFile(path, '')));
  await writeFile(pidFile, `${process.pid}\n`);
  const startedAt = performance.now();
  const share = await open(dataDir);
  expect(performance.now() - startedAt).toBeLessThan(2_000);
  expect(await withClient(share.socket, (redis) => redis.ping())).toBe('PONG');
});

test('works in a folder whose path is too long for a socket', async () => {
  const dataDir = await makeFolder('long-'.repeat(25));
  const share = await open(dataDir);
  expect(share.socket.length).toBeLessThan(100);
  const socketFolder = join(share.socket, '..');
  folders.push(socketFolder);
  expect(await withClient(share.socket, (redis) => redis.set('a', '1'))).toBe('OK');
  await share.close();
  await untilGone(dataDir);
  await untilGone(socketFolder);
  await expect(readdir(socketFolder)).rejects.toThrow('ENOENT');
});

test('says how to mend a folder that cannot be written', async () => {
  const folder = await makeFolder();
  await writeFile(join(folder, 'file'), '');
  const message = /^DATA_DIR .*\/file cannot be written, set it elsewhere$/;
  await expect(open(join(folder, 'file'))).rejects.toThrow(message);
});

test('says what to install when there is no redis-server', async () => {
  const bin = await makeFolder('bin');
  await mkdir(bin);
  const user = startUser(await makeFolder(), { path: bin });
  const line = await until(() => user.lines.find((one) => one.refused ?? one.open));
  // A link that set-up made beside the npm packages is found without a PATH.
  const linked = findRedisProgram()?.includes('node_modules') ?? false;
  const expected = linked ? /redis\.sock$/ : /not installed: run `npm run setup`/;
  expect(linked ? line.open : line.refused).toMatch(expected);
});

test("gives Redis's own last words when it does not stay up", async () => {
  const dataDir = await makeFolder();
  const { folder } = await prepareRedisFolder(dataDir);
  await writeFile(join(folder, 'appendonlydir'), 'a file where Redis needs a folder');
  const startedAt = performance.now();
  await expect(open(dataDir)).rejects.toThrow(/does not stay up \(exit code 1\);[^]*appendonlydir/);
  expect(performance.now() - startedAt).toBeLessThan(5_000);
});

test('reports to its users a Redis that keeps dying, and goes on when that is mended', async () => {
  const dataDir = await makeFolder();
  const share = await open(dataDir);
  const failures: string[] = [];
  share.onFailure((error) => failures.push(error.message));
  const { folder } = await prepareRedisFolder(dataDir);
  await rm(join(folder, 'appendonlydir'), { recursive: true });
  await writeFile(join(folder, 'appendonlydir'), '');
  process.kill(await pidOf('redis-server', dataDir), 'SIGKILL');
  await until(() => failures.find((failure) => failure.includes('does not stay up')));
  await rm(join(folder, 'appendonlydir'));
  expect(await withClient(share.socket, (redis) => redis.ping())).toBe('PONG');
}, 20_000);

test('kills an old server that does not end before it starts another over its files', async () => {
  const dataDir = await makeFolder();
  const user = startUser(dataDir);
  await untilOpen(user);
  const [keeper, redis] = [await pidOf('keeper.ts', dataDir), await pidOf('redis-server', dataDir)];
  process.kill(redis, 'SIGSTOP');
  user.child.kill('SIGKILL');
  process.kill(keeper, 'SIGKILL');
  await open(dataDir);
  expect(await pidOf('redis-server', dataDir)).not.toBe(redis);
}, 20_000);

test.each<Tie>(['kernel', 'pipe'])('a program tied by the %s ends with its parent', async (tie) => {
  const folder = await makeFolder();
  const script = `
    const { spawn } = await import('node:child_process');
    const { tiedCommand } = await import(${JSON.stringify(join(SUPPORT, '../../src/main/redis-program.ts'))});
    const { command, args } = tiedCommand('/bin/sleep', ['300.${process.pid}'], 'TERM', '${tie}');
    spawn(command, args, { stdio: ['pipe', 'ignore', 'ignore'] });
    setInterval(() => {}, 1000);`;
  const parent = spawn(process.execPath, ['--input-type=module', '-e', script], { cwd: folder });
  children.push(parent);
  const name = `/bin/sleep 300.${process.pid}`;
  const sleeping = async () =>
    (await processesOf('/bin/sleep')).filter(({ line }) => line.startsWith(name));
  await until(async () => (await sleeping()).length === 1, { what: 'a running program' });
  const startedAt = performance.now();
  await kill(parent);
  // The guards name it too.
  await until(async () => (await processesOf(`300.${process.pid}`)).length === 0);
  expect(performance.now() - startedAt).toBeLessThan(5_000);
});

test('a program whose parent is gone before the tie is made does not start', async () => {
  const { command, args } = tiedCommand('/bin/echo', ['started'], 'TERM', 'kernel');
  const orphan = args.map((arg) => (arg === String(process.pid) ? '1' : arg));
  const child = spawn(command, orphan, { stdio: ['ignore', 'pipe', 'inherit'] });
  let output = '';
  for await (const chunk of child.stdout.setEncoding('utf8')) output += String(chunk);
  expect(output).toBe('');
});
