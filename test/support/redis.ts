import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { Redis } from 'ioredis';

import { findRedisProgram, REDIS_MISSING, tiedCommand } from '../../src/main/redis-program.ts';
import { until } from './until.ts';

export interface RedisOptions {
  /** Default: true. */
  appendonly?: boolean;
  /** Default: everysec; SIGKILL loses nothing under either. */
  appendfsync?: 'always' | 'everysec' | 'no';
  /** More of redis.conf, without the leading dashes. */
  settings?: Record<string, string>;
}

/** A real redis-server that is the test's own and ends with the test's process. */
export interface TestRedis {
  url: string;
  host: string;
  port: number;
  /** Its working folder: the append-only file is in here. */
  folder: string;
  pid: number;
  /** Ends it as a crash would; the folder stays for a `start` of another over it. */
  kill(): Promise<void>;
  /** Ends it and removes the folder; may be repeated. */
  stop(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

export interface ClusterNode {
  host: string;
  port: number;
}

/** Three masters without replicas that share the 16384 slots. */
export interface TestCluster {
  nodes: ClusterNode[];
  stop(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

const HOST = '127.0.0.1';
const SLOTS = 16_384;

/** Starts redis-server on a free loopback port and resolves when it answers. */
export async function startRedis(options: RedisOptions = {}): Promise<TestRedis> {
  const program = findRedisProgram();
  if (!program) throw new Error(REDIS_MISSING);
  const folder = await mkdtemp(join(tmpdir(), 'sluice-redis-'));
  try {
    return await startOnFreePort(program, folder, options);
  } catch (error) {
    await rm(folder, { recursive: true, force: true });
    throw error;
  }
}

async function startOnFreePort(program: string, folder: string, options: RedisOptions) {
  // Another process may take the port between the look and the start: then another is tried.
  for (let attempt = 1; ; attempt += 1) {
    const port = await freePort();
    const { command, args } = tiedCommand(program, redisArguments(folder, port, options), 'KILL');
    const child = spawn(command, args, { stdio: ['pipe', 'ignore', 'ignore'], cwd: folder });
    const answer = await Promise.race([
      untilItAnswers(child, port),
      once(child, 'exit').then(() => 'ended' as const),
    ]);
    if (answer !== 'ended') return describeRedis(child, folder, port, answer);
    if (attempt === 5) {
      const log = await readFile(join(folder, 'redis.log'), 'utf8').catch(String);
      throw new Error(`redis-server does not start:\n${log}`);
    }
  }
}

function redisArguments(folder: string, port: number, options: RedisOptions): string[] {
  const settings: Record<string, string> = {
    bind: HOST,
    port: String(port),
    dir: folder,
    logfile: join(folder, 'redis.log'),
    'maxmemory-policy': 'noeviction',
    appendonly: options.appendonly === false ? 'no' : 'yes',
    appendfsync: options.appendfsync ?? 'everysec',
    save: '',
    ...options.settings,
  };
  return Object.entries(settings).flatMap(([name, value]) => [`--${name}`, value]);
}

/** Resolves with the server's own process id; a guard may stand between it and us. */
async function untilItAnswers(child: ChildProcess, port: number): Promise<number | 'ended'> {
  // A busy machine lets it wait for longer than so many tries usually last.
  const client = new Redis({
    host: HOST,
    port,
    retryStrategy: () => 10,
    maxRetriesPerRequest: null,
  });
  client.on('error', () => undefined); // refused until it listens
  const abandon = (): void => client.disconnect();
  child.once('exit', abandon);
  try {
    const info = await client.info('server');
    return Number(/^process_id:(\d+)/m.exec(info)?.[1]);
  } catch (error) {
    if (child.exitCode !== null || child.signalCode !== null) return 'ended';
    throw error;
  } finally {
    child.off('exit', abandon);
    client.disconnect();
  }
}

function describeRedis(child: ChildProcess, folder: string, port: number, pid: number): TestRedis {
  const ended = once(child, 'exit');
  async function kill(): Promise<void> {
    if (child.exitCode === null && child.signalCode === null) process.kill(pid, 'SIGKILL');
    await ended;
    child.stdin?.destroy();
  }
  async function stop(): Promise<void> {
    await kill();
    await rm(folder, { recursive: true, force: true });
  }
  const url = `redis://${HOST}:${port}`;
  return { url, host: HOST, port, folder, pid, kill, stop, [Symbol.asyncDispose]: stop };
}

/** A client that ends with the test. */
export function openRedis(url: string): { client: Redis } & AsyncDisposable {
  const client = new Redis(url);
  client.on('error', () => undefined); // some tests take its server away
  return {
    client,
    async [Symbol.asyncDispose]() {
      client.disconnect();
    },
  };
}

/** A loopback port that was free a moment ago, with room for the cluster's bus port above it. */
async function freePort(): Promise<number> {
  for (;;) {
    const server = createServer().listen(0, HOST);
    await once(server, 'listening');
    const address = server.address();
    server.close();
    await once(server, 'close');
    if (address !== null && typeof address !== 'string' && address.port < 55_000) {
      return address.port;
    }
  }
}

/**
 * Starts three cluster nodes, gives each a third of the slots and waits until they agree, which
 * takes two seconds: a node refuses commands for that long after its start, whatever happens.
 */
export async function startCluster(): Promise<TestCluster> {
  const settings = { 'cluster-enabled': 'yes', 'cluster-node-timeout': '2000' };
  const starts = [0, 1, 2].map(() => startRedis({ appendonly: false, settings }));
  const started = await Promise.allSettled(starts);
  const servers = started.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
  async function stop(): Promise<void> {
    await Promise.all(servers.map((server) => server.stop()));
  }
  try {
    for (const one of started) if (one.status === 'rejected') throw one.reason;
    await joinNodes(servers);
    await untilClusterIsUp(servers);
  } catch (error) {
    await stop();
    throw error;
  }
  const nodes = servers.map(({ host, port }) => ({ host, port }));
  return { nodes, stop, [Symbol.asyncDispose]: stop };
}

async function joinNodes(servers: TestRedis[]): Promise<void> {
  const clients = servers.map(({ host, port }) => new Redis({ host, port }));
  try {
    const share = Math.ceil(SLOTS / clients.length);
    for (const [index, client] of clients.entries()) {
      const last = Math.min((index + 1) * share, SLOTS) - 1;
      await client.call('CLUSTER', 'SET-CONFIG-EPOCH', index + 1);
      await client.call('CLUSTER', 'ADDSLOTSRANGE', index * share, last);
    }
    for (const [index, client] of clients.entries()) {
      const next = servers[(index + 1) % servers.length];
      if (next) await client.call('CLUSTER', 'MEET', next.host, next.port);
    }
  } finally {
    for (const client of clients) client.disconnect();
  }
}

/** Resolves when every node sees all nodes and all slots, and takes commands. */
async function untilClusterIsUp(nodes: ClusterNode[]): Promise<void> {
  for (const { host, port } of nodes) {
    const client = new Redis({ host, port });
    try {
      await until(async () => isWhole(String(await client.call('CLUSTER', 'INFO')), nodes.length), {
        what: 'the cluster',
      });
    } finally {
      client.disconnect();
    }
  }
}

function isWhole(info: string, nodes: number): boolean {
  return (
    info.includes('cluster_state:ok') &&
    info.includes(`cluster_slots_ok:${SLOTS}`) &&
    info.includes(`cluster_known_nodes:${nodes}`)
  );
}
