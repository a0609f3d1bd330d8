import { transient } from '../../domain/errors.ts';
import type { MachineProvider } from '../../domain/provision.ts';
import type { EngineState, MachineRuntime } from '../contract.ts';
import { engineKey } from '../engine-key.ts';
import { composeStart, engineOn } from './engine-order.ts';
import type { EngineOrder, EngineParts } from './engine-order.ts';
import { lookAtEngine, readEngineLog, startEngine, stopEngine } from './engine.ts';
import type { EngineLook } from './engine.ts';
import { showAddress } from './errors.ts';
import { probe, whyUnfit } from './probe.ts';
import { openSession } from './session.ts';
import { createSessionPool } from './session-pool.ts';

const IDLE_MS = 30_000;
const LOG_BYTES = 64 * 1024;
/** An engine that is told to end lets go of its GPUs within seconds. */
const GRACE_SECONDS = 10;

export interface MachineRuntimeOptions extends EngineParts {
  /** Opens the machines; as text. */
  privateKey: string;
  /** How long a connection is kept that nobody uses, ms; 30 s unless given. */
  idleMs?: number;
}

/** Leased machines as this process reaches them. */
export interface Machines extends MachineRuntime {
  /**
   * What `start` would refuse on any machine of a provider, asked before one is paid for: throws InvalidInput
   * `engine.…`. `isPublic`: its engines are reached by the world.
   */
  checkOrder(
    provider: MachineProvider,
    order: EngineOrder,
    options?: { isPublic?: boolean },
  ): Promise<void>;
  /** Ends all connections, and what is under way over them. May be called twice. */
  close(): Promise<void>;
}

/**
 * Runs engines on machines over SSH. Each machine has one connection of this process, which is kept while it is used, and
 * made anew when it was cut.
 */
export function createMachineRuntime(options: MachineRuntimeOptions): Machines {
  const { privateKey, idleMs = IDLE_MS } = options;
  const pool = createSessionPool({ privateKey, idleMs });
  return {
    async readHostKey(login, signal) {
      const session = await openSession({ ...login, privateKey, hostKeys: 'first-seen', signal });
      session.close();
      return session.hostKey;
    },
    async check(site, need, signal) {
      return pool.use(site, signal, async (session) => {
        const found = await probe(session, '/', signal);
        const why = whyUnfit(found, need);
        // Drivers may be what cloud-init is about to install.
        if (why === null || found.cloudInit !== 'running') return why;
        const where = showAddress(session.address);
        throw transient('ssh.setting_up', `${where} is still being set up by cloud-init: ${why}`);
      });
    },
    async start(site, order, signal) {
      const { publicUrl, hostKey } = site;
      const apiKey = publicUrl === undefined ? null : engineKey(privateKey, hostKey);
      const start = await composeStart({ ...site, apiKey }, order, options);
      return pool.use(site, signal, async (session) =>
        stateOf(await startEngine(session, start, signal)),
      );
    },
    async look(site, signal) {
      const id = engineOn(site, options);
      return pool.use(site, signal, async (session) =>
        stateOf(await lookAtEngine(session, id, signal)),
      );
    },
    async stop(site, signal) {
      const id = engineOn(site, options);
      await pool.use(site, signal, async (session) =>
        stopEngine(session, id, GRACE_SECONDS, signal),
      );
    },
    async readLog(site, offset, signal) {
      const id = engineOn(site, options);
      return pool.use(site, signal, async (session) =>
        readEngineLog(session, id, offset, LOG_BYTES, signal),
      );
    },
    async checkOrder(provider, order, { isPublic = false } = {}) {
      // Any key will do.
      await composeStart({ provider, apiKey: isPublic ? 'key' : null }, order, options);
    },
    close: pool.close,
  };
}

function stateOf(look: EngineLook): EngineState {
  if (look.state !== 'exited') return { is: look.state };
  return { is: 'exited', code: look.code, lastWords: look.lastWords };
}
