import type { Engine } from '../../src/dispatcher/engine.ts';
import type { Isolation } from '../../src/dispatcher/quarantine.ts';
import type { Tenant, Wish } from '../../src/dispatcher/room.ts';

/** An engine that nothing is sent to unless a test says how; what stands still in the product may change here. */
export interface FakeEngine extends Engine {
  isOpen: boolean;
  window: Engine['window'];
}

/** One that takes as much as one likes, and is as busy as it has lines in flight. */
export function fakeEngine(address: string, { processes = 1 } = {}): FakeEngine {
  const engine: FakeEngine = {
    address,
    isOpen: false,
    inFlight: 0,
    get load() {
      return engine.inFlight;
    },
    seed: 1,
    key: null,
    window: {
      limit: 1_000,
      processes,
      part: (count) => count,
      answered() {},
      rejected() {},
      timedOut() {},
      wasFull() {},
      close() {},
    },
    send: async () => Promise.reject(new Error('nobody sends here')),
    async doubt() {},
    async close() {},
  };
  return engine;
}

/** A job that may have `places` lines at each of its engines. */
export function fakeTenant(engines: () => readonly Engine[], places = 1_000): Tenant {
  return {
    rank: 1,
    cap: () => places,
    mayAsk: () => true,
    isAdaptive: false,
    engines,
    inHand: 0,
    allInFlight: 0,
    inFlight: new Map(),
  };
}

export function wishOf(tenant: Tenant): Wish {
  return { tenant, model: null, affinity: null };
}

/** Of a process beside which no other one isolates. */
export const UNDISTURBED: Isolation = { take: async () => true, giveBack() {} };
