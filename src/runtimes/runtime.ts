import { setTimeout as sleep } from 'node:timers/promises';
import { describeError, SluiceError, transient } from '../domain/errors.ts';
import { ENGINE_PORT } from '../domain/engines/public-url.ts';
import { leasedProvision } from '../domain/provision.ts';
import type { Connection, HostedSite, LeasedSite, Look, Runtime } from './contract.ts';
import { engineKey } from './engine-key.ts';
import { createKept } from './kept.ts';
import { openHostedWay } from './kubernetes/hosted-way.ts';
import { LateDispatcher } from './late-dispatcher.ts';
import type { Way } from './late-dispatcher.ts';
import { lookThrough } from './look.ts';
import { createTunnel } from './ssh/tunnel.ts';
import type { Tunnel } from './ssh/tunnel.ts';

const IDLE_MS = 30_000;
const PAUSE_MS = 200;
/** A machine that moved falls silent, and is looked for anew after four times as long. */
const KEEPALIVE_MS = 3_000;
/** Before the look itself gives up, so that the reason is the tunnel's. */
const LOOK_CONNECT_MS = 4_000;
const REFUSAL = 'the engine asks for a key of its own: take that out of engine.serve_args';

interface RuntimeOptions {
  /** Reaches every address that is an engine's own. */
  endpoint: Runtime;
  /** Opens leased machines; as text. Null: this process logs in to none. */
  privateKey: string | null;
  /**
   * Where the machine of a `lease://…` address is now; asked at each look, and before each attempt to connect to it. What
   * it rejects with is an attempt that failed: one of our errors that is not `Transient` ends the waiting for a connection.
   */
  siteOf(address: string): Promise<LeasedSite | HostedSite>;
  /** How long a request may wait for its way to an engine, ms. */
  connectTimeout: number;
  /** How long the tunnel of a look is kept that nobody uses, ms; 30 s unless given. */
  idleMs?: number;
}

/**
 * Reaches engines wherever they are: those on leased machines through tunnels of this process or as the world does, others
 * by their address.
 */
export function createRuntime(options: RuntimeOptions): Runtime & { close(): Promise<void> } {
  const { endpoint } = options;
  const leased = createLeasedLooks(options);
  return {
    connect: (address) =>
      leasedProvision(address) === null
        ? endpoint.connect(address)
        : connectLeased(address, options),
    look: async (address, models, signal) =>
      leasedProvision(address) === null
        ? endpoint.look(address, models, signal)
        : leased.look(address, models, signal),
    close: leased.close,
  };
}

function tunnelTo(address: string, { privateKey, siteOf }: RuntimeOptions, limitMs: number) {
  if (privateKey === null) throw noKey(address);
  return createTunnel({
    privateKey,
    keepaliveMs: KEEPALIVE_MS,
    port: ENGINE_PORT,
    connectTimeout: limitMs,
    async target() {
      const site = await siteOf(address);
      if (isHosted(site)) throw transient('lease.no_machine', `${address} is not logged in to`);
      return { ...site.login, hostKeys: [site.hostKey] };
    },
  });
}

function isHosted(site: LeasedSite | HostedSite): site is HostedSite {
  return 'url' in site;
}

function noKey(address: string) {
  const message = `this process cannot log in to the machine of ${address}: set AIBRIX_BATCH_SSH_KEY_FILE`;
  return transient('lease.no_settings', message);
}

function bearer(privateKey: string | null, hostKey: string): Record<string, string> {
  if (privateKey === null) return {};
  return { authorization: `Bearer ${engineKey(privateKey, hostKey)}` };
}

/** Looks at engines on leased machines, each through a tunnel that further looks use, too. */
function createLeasedLooks(options: RuntimeOptions): Pick<Runtime, 'look'> & {
  close(): Promise<void>;
} {
  const { privateKey, siteOf, connectTimeout, idleMs = IDLE_MS } = options;
  const limitMs = Math.min(connectTimeout, LOOK_CONNECT_MS);
  const tunnels = createKept<Tunnel>({ idleMs, close: async (tunnel) => tunnel.close() });
  const ways = createKept<Way>({ idleMs, close: async (way) => way.close() });
  let isClosed = false;

  async function lookAt(
    address: string,
    { publicUrl, hostKey, healthPath }: LeasedSite,
    models: readonly string[],
    signal: AbortSignal,
  ): Promise<Look> {
    const known = { name: address, refusal: REFUSAL };
    const wish = { models, healthPath };
    if (publicUrl !== undefined) {
      const headers = bearer(privateKey, hostKey);
      return lookThrough({ ...known, url: publicUrl, headers }, wish, signal);
    }
    const open = () => tunnelTo(address, options, limitMs);
    return tunnels.use(address, open, async (tunnel) => {
      const { origin: url, headers, dispatcher } = tunnel;
      const problem = () => tunnel.problem;
      return lookThrough({ ...known, url, headers, dispatcher, problem }, wish, signal);
    });
  }
  return {
    async look(address, models, signal) {
      signal.throwIfAborted();
      let site: LeasedSite | HostedSite;
      try {
        site = await siteOf(address);
      } catch (error) {
        return { is: 'down', reason: `nobody knows where ${address} is: ${describeError(error)}` };
      }
      if (isClosed) return { is: 'down', reason: `${address}: this process is about to end` };
      if (isHosted(site)) {
        const open = () => openHostedWay(site, limitMs);
        return ways.use(`${address} ${site.url}`, open, async (way) =>
          lookThroughWay(address, site, way, models, signal),
        );
      }
      return lookAt(address, site, models, signal);
    },
    async close() {
      isClosed = true;
      await Promise.all([tunnels.close(), ways.close()]);
    },
  };
}

async function lookThroughWay(
  name: string,
  { url, healthPath }: HostedSite,
  { dispatcher }: Way,
  models: readonly string[],
  signal: AbortSignal,
): Promise<Look> {
  const door = { name, refusal: REFUSAL, url, headers: {}, dispatcher };
  return lookThrough(door, { models, healthPath }, signal);
}

/** Where the engine is, is found out when the first line is sent. */
function connectLeased(address: string, options: RuntimeOptions): Connection {
  const { privateKey, siteOf, endpoint, connectTimeout } = options;
  const stop = new AbortController();

  async function find(): Promise<Way> {
    const ask = async () => siteOf(address);
    const site = await patiently(ask, connectTimeout, stop.signal);
    if (isHosted(site)) return openHostedWay(site, connectTimeout);
    const { publicUrl, hostKey } = site;
    if (publicUrl === undefined) return tunnelTo(address, options, connectTimeout);
    return { ...endpoint.connect(publicUrl), headers: bearer(privateKey, hostKey) };
  }
  const late = new LateDispatcher(find);
  return {
    dispatcher: late,
    origin: `http://127.0.0.1:${ENGINE_PORT}`,
    pathPrefix: '',
    headers: {},
    metricsPath: async () => (await siteOf(address)).metricsPath ?? '/metrics',
    async close() {
      stop.abort(transient('ssh.cut', 'the connection to the engine was closed'));
      await late.destroy();
    },
  };
}

/** Tries for a while what may fail in passing, such as a question to a store that is about to be back. */
async function patiently<T>(
  attempt: () => Promise<T>,
  limitMs: number,
  signal: AbortSignal,
): Promise<T> {
  const deadline = performance.now() + limitMs;
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      signal.throwIfAborted();
      const isPassing = !(error instanceof SluiceError) || error.kind === 'Transient';
      if (!isPassing || performance.now() > deadline) throw error;
    }
    await sleep(PAUSE_MS, undefined, { signal });
  }
}
