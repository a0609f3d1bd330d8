import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { buildConnector } from 'undici';
import { toError } from '../../domain/errors.ts';
import { ClientPool } from '../client-pool.ts';
import type { Connection } from '../contract.ts';
import { Lane } from './lane.ts';
import type { LaneOptions } from './lane.ts';

/**
 * sshd has a file for each channel, and a process may have 1,024 of them unless its service says otherwise: then 1,019
 * channels were open at once, and each beyond was refused as if the engine did not listen. With more files one
 * connection carried 4,000.
 */
const CHANNELS_A_CONNECTION = 500;

export interface TunnelOptions extends LaneOptions {
  /** The engine's port on the machine's loopback. */
  port: number;
  /** Sent with every request. */
  headers?: Readonly<Record<string, string>>;
  /** How long a request may wait for its way to the engine, ms; for the SSH connection to be made anew, too. */
  connectTimeout: number;
}

/** A process's own way to an engine that only its machine can reach. */
export interface Tunnel extends Connection {
  /** Why there is no SSH connection now; null: there is one, or none was needed yet. */
  readonly problem: Error | null;
}

/**
 * A dispatcher whose connections are channels of SSH connections, of which there are as few as will do. Opens nothing
 * before it is asked. When an SSH connection is cut, the requests in flight fail as on a broken connection
 * (`ECONNRESET`), and those that come after wait for the next one.
 */
export function createTunnel(options: TunnelOptions): Tunnel {
  const { port, headers = {}, connectTimeout } = options;
  const lanes: Lane[] = [];

  function pick(): Lane {
    const free = lanes.find(({ load }) => load < CHANNELS_A_CONNECTION);
    if (free !== undefined) return free;
    const lane = new Lane(options);
    lanes.push(lane);
    return lane;
  }

  async function open(callback: buildConnector.Callback): Promise<void> {
    let channel: Duplex;
    try {
      channel = await pick().connect(port, connectTimeout);
    } catch (error) {
      callback(toError(error), null);
      return;
    }
    // All that undici asks of a socket over HTTP/1.1, a channel's socket has.
    callback(null, channel as Socket);
  }
  const origin = `http://127.0.0.1:${port}`;
  const pool = new ClientPool(origin, {
    connect: (_options, callback) => void open(callback),
    // As for engines that are reached without a tunnel: uvicorn closes idle connections after 5 s.
    keepAliveTimeout: 4_000,
    keepAliveMaxTimeout: 4_000,
  });
  return {
    dispatcher: pool,
    origin,
    pathPrefix: '',
    headers,
    get problem() {
      // The first one is always in use; the others may have fallen idle.
      return lanes[0]?.problem ?? null;
    },
    async close() {
      for (const lane of lanes) lane.close();
      await pool.destroy();
    },
  };
}
