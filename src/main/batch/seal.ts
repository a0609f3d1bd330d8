import { isVoid } from '../../domain/kubernetes/run-record.ts';
import type { Seal } from '../../domain/kubernetes/run-record.ts';
import type { FoundSeal, RunRecord } from './record.ts';

/** What the clocks of one store's servers are apart, and the whole second that some of them tell times in. */
const STORE_SKEW_MS = 3_000;

type Sleep = (ms: number) => Promise<void>;

/** The first of the seals that hold; null: there is none. By name where the store's clock cannot tell them apart. */
function firstOf(found: readonly FoundSeal[], lost: ReadonlySet<string>): Seal | null {
  const valid = found.filter(({ seal }) => !isVoid(seal, lost));
  const earliest = Math.min(...valid.map(({ writtenAt }) => writtenAt));
  const [first] = valid
    .filter(({ writtenAt }) => writtenAt - earliest < STORE_SKEW_MS / 2)
    .toSorted((a, b) => (a.writer < b.writer ? -1 : 1));
  return first?.seal ?? null;
}

async function look(record: RunRecord, index: number): Promise<Seal | null> {
  const [found, lost] = await Promise.all([record.seals(index), record.lost()]);
  return firstOf(found, lost);
}

/** The seal of an index, once no earlier one can come; null while there is none. */
export async function findSeal(
  record: RunRecord,
  index: number,
  sleep: Sleep,
): Promise<Seal | null> {
  if ((await look(record, index)) === null) return null;
  await sleep(STORE_SKEW_MS);
  return look(record, index);
}

/**
 * Agrees with whoever else is alive on what an index comes to: two pods that see different answers of one line would
 * write one of them into the output and the other into the error file. Stores can do no more than put, get and list
 * here, so it goes by turns: each writes its own seal first and looks then who else has begun (who begins later looks
 * for seals first). Alone, its own holds at once; else the earliest by the store's clock does, once so much time has
 * passed that no earlier one can come.
 */
export async function sealIndex(
  record: RunRecord,
  own: { index: number; writer: string; seal: Seal; isGone(writer: string): boolean },
  sleep: Sleep,
): Promise<Seal> {
  const { index, writer, seal, isGone } = own;
  const before = await findSeal(record, index, sleep);
  if (before !== null) return before;
  await record.putSeal(index, writer, seal);
  const others = (await record.writers(index)).filter(({ name }) => name !== writer);
  if (others.every(({ name }) => isGone(name))) return seal;
  return (await findSeal(record, index, sleep)) ?? seal;
}
