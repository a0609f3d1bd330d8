import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { permanent } from '../domain/errors.ts';

/** One candidate for the identity, as the store has it. */
export interface Candidate {
  identity: string;
  /** By the store's clock, ms since 1970; stores tell whole seconds. */
  madeAt: number;
}

export interface IdentityStore {
  candidates(): Promise<Candidate[]>;
  /** Adds a candidate; none is ever replaced or removed. */
  add(identity: string): Promise<void>;
  has(identity: string): Promise<boolean>;
}

/** Longer than the store's clocks are apart, and than the second to which they are told. */
const SETTLE_MS = 3_000;
/** A store that lists after it writes shows the first candidate; each that it does not show would stay for ever. */
const TRIES = 2;

/** The candidate that every process picks that sees the same ones. */
export function elect(candidates: readonly Candidate[]): string | null {
  const [first] = candidates.toSorted(
    (a, b) => a.madeAt - b.madeAt || (a.identity < b.identity ? -1 : 1),
  );
  return first?.identity ?? null;
}

/**
 * A store's identity without conditional writes, which not every store has: each process that finds none adds a
 * candidate, waits until whoever began before is done, and picks the oldest. One that was added later is younger by
 * the store's clock, however long its process was stopped in between, so that it never wins. The next look is at the
 * one that was picked.
 */
export function createIdentity(store: IdentityStore, settleMs = SETTLE_MS): () => Promise<string> {
  let known: string | null = null;
  let finding: Promise<string> | null = null;

  async function find(): Promise<string> {
    for (let n = 1; n <= TRIES; n += 1) {
      if ((await store.candidates()).length === 0) {
        await store.add(randomUUID().replaceAll('-', ''));
        await sleep(settleMs);
      }
      const elected = elect(await store.candidates());
      if (elected !== null) return elected;
    }
    throw permanent(
      'storage.unfit',
      `The storage does not list what was put below identity/ ${settleMs} ms ago, so that it cannot be told from others. Take a store that lists what it holds, or let these credentials list it.`,
    );
  }

  async function identity(): Promise<string> {
    if (known !== null && (await store.has(known))) return known;
    known = await find();
    return known;
  }

  return function sharedIdentity() {
    finding ??= identity().finally(() => (finding = null));
    return finding;
  };
}
