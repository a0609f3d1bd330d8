import type { CallPurpose } from '../lease-contract.ts';
import { callError, isNoSuchObject } from './api.ts';
import type { Ask, Outcome } from './api.ts';
import { readLabel } from './instances.ts';
import type { Listed } from './instances.ts';

/** The instances of the account. All methods reject with the contract's errors. */
export interface Inventory {
  /** All of them, of anybody. */
  all(): Promise<Listed[]>;
  /** Null: there is none of that id. */
  one(id: string): Promise<Listed | null>;
  /** As `one`, and nobody shares its turn. */
  read(id: string): Promise<Listed | null>;
}

/** Resolves when a call may go; rejects with the contract's errors. */
export type Turn = (purpose: CallPurpose, signal?: AbortSignal) => Promise<void>;

/** What is asked for while a round waits for its turn is answered by it. */
interface Round {
  ids: Set<string>;
  isWhole: boolean;
  result: Promise<Map<string, Listed | null>>;
}

/** No account has so many pages; one that gives the same token for ever must not be followed for ever. */
const MOST_PAGES = 100;

/**
 * One request a second is all there is, so that those who ask while a look waits for its turn share it: one of them
 * gets its instance alone, several get it out of a list.
 */
export function createInventory(ask: Ask, turn: Turn): Inventory {
  let waiting: Round | null = null;

  async function join(id: string | null): Promise<Map<string, Listed | null>> {
    if (waiting === null) {
      const ids = new Set<string>();
      waiting = { ids, isWhole: false, result: Promise.resolve(new Map()) };
      waiting.result = look(waiting);
    }
    if (id === null) waiting.isWhole = true;
    else waiting.ids.add(id);
    return waiting.result;
  }

  async function look(round: Round): Promise<Map<string, Listed | null>> {
    try {
      await turn('look');
    } finally {
      waiting = null; // who asks from now on must not be told what was before
    }
    const [first] = round.ids;
    if (!round.isWhole && round.ids.size === 1 && first !== undefined) {
      return new Map([[first, await fetchOne(ask, first)]]);
    }
    return new Map((await fetchAll(ask, turn)).map((listed) => [listed.id, listed]));
  }

  return {
    async all() {
      const found = await join(null);
      return [...found.values()].filter((listed) => listed !== null);
    },
    async one(id) {
      const found = (await join(id)).get(id);
      if (found !== undefined) return found;
      // A list may lag behind: only its own address says that an instance is not known.
      await turn('look');
      return fetchOne(ask, id);
    },
    read: async (id) => fetchOne(ask, id),
  };
}

async function fetchAll(ask: Ask, turn: Turn): Promise<Listed[]> {
  const found: Listed[] = [];
  let query = '';
  for (let page = 0; page < MOST_PAGES; page += 1) {
    if (page > 0) await turn('look');
    const outcome = await ask('GET', `/instances${query}`);
    const listed = readList(outcome);
    // Less than all must not look like all.
    if (listed === null || outcome.is !== 'data') throw callError('for its instances', outcome);
    found.push(...listed);
    if (outcome.pageToken === null) return found;
    query = `?page_token=${encodeURIComponent(outcome.pageToken)}`;
  }
  throw callError('for its instances', { is: 'nonsense', text: 'pages without end' });
}

function readList(outcome: Outcome): Listed[] | null {
  if (outcome.is !== 'data' || !Array.isArray(outcome.data)) return null;
  const read = outcome.data.map(readLabel);
  const whole = read.filter((each) => each !== null);
  return whole.length === read.length ? whole : null;
}

async function fetchOne(ask: Ask, id: string): Promise<Listed | null> {
  const outcome = await ask('GET', `/instances/${encodeURIComponent(id)}`);
  if (isNoSuchObject(outcome)) return null;
  const listed = outcome.is === 'data' ? readLabel(outcome.data) : null;
  if (listed === null || listed.id !== id) throw callError(`for the instance ${id}`, outcome);
  return listed;
}
