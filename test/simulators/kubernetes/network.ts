import { spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { createServer } from 'node:net';
import { GATEWAY, layWire, runProgram } from '../machines/network.ts';
import { startRelay } from '../machines/relay.ts';
import type { RelayTarget } from '../machines/relay.ts';

/*
 * Addresses of Services. They are this machine's own, on an interface that goes with the simulator,
 * so that both pods (whose way out leads here) and programs of this machine reach them; behind each
 * port a relay passes connections on. Pods reach each other through a Service only: nothing here
 * forwards packets between them.
 */

export interface ClusterNetwork {
  /** What pods see of this machine. */
  gateway: string;
  /** An address that nobody has. */
  allocate(): Promise<string>;
  release(address: string): Promise<void>;
  /** Listens there and passes each connection on to `target()`. */
  listen(
    address: string,
    port: number,
    target: () => RelayTarget | undefined,
  ): Promise<{ port: number; close(): Promise<void> }>;
  close(): Promise<void>;
}

const TRIES = 50;
const HOLD = 'echo made; cat >/dev/null; exit 0';

async function isFree(host: string): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const server = createServer();
  // Whoever has it on this machine can be bound to.
  server.once('error', () => resolve(true)).listen(0, host, () => resolve(false));
  const free = await promise;
  server.close();
  return free;
}

export async function openNetwork(): Promise<ClusterNetwork> {
  const child = spawn('unshare', ['--net', '/bin/sh', '-c', HOLD], {
    stdio: ['pipe', 'pipe', 'inherit'],
    detached: true,
    env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' },
  });
  const closed = Promise.withResolvers<undefined>();
  const made = Promise.withResolvers<undefined>();
  child.once('close', () => closed.resolve(undefined));
  child.once('error', made.reject);
  child.stdin.on('error', () => {}); // it has ended, which `close` says too
  child.stdout.once('data', () => made.resolve(undefined));
  await made.promise;
  const { link } = await layWire(child.pid ?? 0);

  async function allocate(): Promise<string> {
    for (let tries = 0; tries < TRIES; tries += 1) {
      const address = `10.214.${randomInt(0, 256)}.${randomInt(1, 255)}`;
      if (!(await isFree(address))) continue;
      const { code, stderr } = await runProgram('ip', [
        'address',
        'add',
        `${address}/32`,
        'dev',
        link,
      ]);
      if (code !== 0) throw new Error(`ip: ${stderr.trim()}`);
      return address;
    }
    throw new Error(`no free address after ${TRIES} tries`);
  }

  const relays = new Set<{ close(): Promise<void> }>();
  return {
    gateway: GATEWAY,
    allocate,
    async release(address) {
      await runProgram('ip', ['address', 'del', `${address}/32`, 'dev', link]);
    },
    async listen(address, port, target) {
      const relay = await startRelay(address, target, port);
      relays.add(relay);
      return {
        port: relay.port,
        async close() {
          relays.delete(relay);
          await relay.close();
        },
      };
    },
    async close() {
      await Promise.all([...relays].map(async (one) => one.close()));
      child.kill('SIGKILL');
      await closed.promise;
    },
  };
}
