import type { Engine } from './engine.ts';
import { onAbort } from './on-abort.ts';

/** A job as far as places at engines go. */
export interface Tenant {
  /** Lines in flight that it may have at one engine. */
  readonly maxConcurrency: number;
  /** The engines that serve it now. */
  engines(): readonly Engine[];
  /** Its lines that are sent or wait to be sent again. */
  inHand: number;
}

/**
 * The places at all engines of this process: one line in flight takes one. Whoever waits is served in order, but
 * nobody waits behind a job that may not have more.
 */
export interface Room {
  /** Waits for a place at the least busy engine, for a line in hand; null when the signal is aborted first. */
  take(tenant: Tenant, signal: AbortSignal): Promise<Engine | null>;
  /**
   * The same for a line that is not in hand yet, null at once where there is no place. While many lines wait to be
   * asked again, new ones have to wait too: a sick engine must not draw the whole input into memory.
   */
  tryTakeFresh(tenant: Tenant): Engine | null;
  takeFresh(tenant: Tenant, signal: AbortSignal): Promise<Engine | null>;
  give(engine: Engine): void;
  /** Looks again who can be served: an engine came, went, or is healthy again. */
  kick(): void;
  /** Nobody gets a place while anybody keeps the room closed. */
  setClosed(by: object, closed: boolean): void;
}

interface Waiter {
  tenant: Tenant;
  fresh: boolean;
  resolve: (engine: Engine | null) => void;
}

export function createRoom(): Room {
  const waiters = new Set<Waiter>();
  const closers = new Set<object>();

  function tryTake(tenant: Tenant, fresh: boolean): Engine | null {
    if (closers.size > 0) return null;
    const engines = tenant.engines();
    if (fresh && tenant.inHand >= 2 * tenant.maxConcurrency * engines.length) return null;
    let best: Engine | null = null;
    for (const engine of engines) {
      const free = !engine.isOpen && engine.inFlight < tenant.maxConcurrency;
      if (free && (best === null || engine.inFlight < best.inFlight)) best = engine;
    }
    if (best !== null) best.inFlight += 1;
    return best;
  }

  async function take(tenant: Tenant, fresh: boolean, signal: AbortSignal): Promise<Engine | null> {
    if (signal.aborted) return null;
    const engine = tryTake(tenant, fresh);
    if (engine !== null) return engine;
    return new Promise((resolve) => {
      const waiter: Waiter = { tenant, fresh, resolve: finish };
      const forgetSignal = onAbort(signal, () => {
        waiters.delete(waiter);
        resolve(null);
      });
      function finish(found: Engine | null): void {
        forgetSignal();
        resolve(found);
      }
      waiters.add(waiter);
    });
  }

  function kick(): void {
    for (const waiter of waiters) {
      const engine = tryTake(waiter.tenant, waiter.fresh);
      if (engine === null) continue;
      waiters.delete(waiter);
      waiter.resolve(engine);
    }
  }

  return {
    take: (tenant, signal) => take(tenant, false, signal),
    tryTakeFresh: (tenant) => tryTake(tenant, true),
    takeFresh: (tenant, signal) => take(tenant, true, signal),
    give(engine) {
      engine.inFlight -= 1;
      kick();
    },
    kick,
    setClosed(by, closed) {
      if (closed) closers.add(by);
      else if (closers.delete(by)) kick();
    },
  };
}
