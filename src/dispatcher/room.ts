import type { Engine } from './engine.ts';
import { onAbort } from './on-abort.ts';

/** A job as far as places at engines go. */
export interface Tenant {
  /** Lines in flight that it may have at one engine. */
  readonly maxConcurrency: number;
  /** The engines that serve it now and can be asked for a model; null: all of them. */
  engines(model: string | null): readonly Engine[];
  /** Its lines that are sent or wait to be sent again. */
  inHand: number;
}

/**
 * The places at all engines of this process: one line in flight takes one. Whoever waits is served in order, but
 * nobody waits behind a job that may not have more.
 */
export interface Room {
  /**
   * Waits for a place at the least busy engine that serves a line's model, for a line in hand; null when the signal is
   * aborted first.
   */
  take(tenant: Tenant, model: string | null, signal: AbortSignal): Promise<Engine | null>;
  /**
   * The same for a line that is not in hand yet, null at once where there is no place. While many lines wait to be
   * asked again, new ones have to wait too: a sick engine must not draw the whole input into memory.
   */
  tryTakeFresh(tenant: Tenant, model: string | null): Engine | null;
  takeFresh(tenant: Tenant, model: string | null, signal: AbortSignal): Promise<Engine | null>;
  give(engine: Engine): void;
  /** Looks again who can be served: an engine came, went, or is healthy again. */
  kick(): void;
  /** Nobody gets a place while anybody keeps the room closed. */
  setClosed(by: object, closed: boolean): void;
}

/** What a line needs a place for. */
interface Wish {
  tenant: Tenant;
  model: string | null;
  fresh: boolean;
}

interface Waiter extends Wish {
  resolve: (engine: Engine | null) => void;
}

function isEqual(a: Wish, b: Wish): boolean {
  return a.tenant === b.tenant && a.model === b.model && a.fresh === b.fresh;
}

export function createRoom(): Room {
  const waiters = new Set<Waiter>();
  const closers = new Set<object>();

  function tryTake({ tenant, model, fresh }: Wish): Engine | null {
    if (closers.size > 0) return null;
    const most = 2 * tenant.maxConcurrency * tenant.engines(null).length;
    if (fresh && tenant.inHand >= most) return null;
    let best: Engine | null = null;
    for (const engine of tenant.engines(model)) {
      const free = !engine.isOpen && engine.inFlight < tenant.maxConcurrency;
      if (free && (best === null || engine.inFlight < best.inFlight)) best = engine;
    }
    if (best !== null) best.inFlight += 1;
    return best;
  }

  async function take(wish: Wish, signal: AbortSignal): Promise<Engine | null> {
    if (signal.aborted) return null;
    const engine = tryTake(wish);
    if (engine !== null) return engine;
    return new Promise((resolve) => {
      const waiter: Waiter = { ...wish, resolve: finish };
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
    // Nothing is given back meanwhile: what one wish did not get, an equal one does not get either.
    const unserved: Wish[] = [];
    for (const waiter of waiters) {
      if (unserved.some((wish) => isEqual(wish, waiter))) continue;
      const engine = tryTake(waiter);
      if (engine === null) {
        unserved.push(waiter);
        continue;
      }
      waiters.delete(waiter);
      waiter.resolve(engine);
    }
  }

  return {
    take: (tenant, model, signal) => take({ tenant, model, fresh: false }, signal),
    tryTakeFresh: (tenant, model) => tryTake({ tenant, model, fresh: true }),
    takeFresh: (tenant, model, signal) => take({ tenant, model, fresh: true }, signal),
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
