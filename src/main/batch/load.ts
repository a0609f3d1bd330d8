import { permanent } from '../../domain/errors.ts';
import { createLedger } from '../../domain/kubernetes/ledger.ts';
import type { Ledger } from '../../domain/kubernetes/ledger.ts';
import type { Commit, RunPlan, RunWriter, Seal } from '../../domain/kubernetes/run-record.ts';
import { segmentName } from '../../domain/kubernetes/run-record.ts';
import type { Logger } from '../../observability/log.ts';
import type { RunRecord } from './record.ts';

/** Commits read at a time, so that a store's latency is not paid once each. */
const AT_ONCE = 16;

interface Loading {
  record: RunRecord;
  plan: RunPlan;
  log: Pick<Logger, 'error'>;
}

/**
 * What all writers of these indexes have committed until now, each segment looked for in storage. One that is missing or
 * of another length is noted as lost, so that its lines are asked again.
 */
export async function loadLedger(loading: Loading, indexes: readonly number[]): Promise<Ledger> {
  const { record, plan } = loading;
  const ledger = createLedger(plan);
  const lost = await record.lost();
  for (const index of indexes) {
    for (const writer of await record.writers(index)) {
      const count = await record.countCommits(writer.name);
      await addCommits(ledger, writer, { from: 1, to: count, lost }, loading);
    }
  }
  return ledger;
}

/** Adds what other writers of an index have committed since the ledger was last looked at. */
export async function refreshLedger(
  ledger: Ledger,
  { index, own }: { index: number; own: string },
  loading: Loading,
): Promise<void> {
  const { record } = loading;
  const writers = (await record.writers(index)).filter(({ name }) => name !== own);
  if (writers.length === 0) return;
  const lost = await record.lost();
  for (const writer of writers) {
    for (let from = ledger.commitsOf(writer.name) + 1; ; from += AT_ONCE) {
      const to = from + AT_ONCE - 1;
      if ((await addCommits(ledger, writer, { from, to, lost }, loading)) < to) break;
    }
  }
}

/** What seals count, and nothing else. Rejects with `run.damaged` where a commit of theirs is not there. */
export async function loadSealed(loading: Loading, seals: readonly Seal[]): Promise<Ledger> {
  const ledger = createLedger(loading.plan);
  for (const { writers } of seals) {
    for (const { commits, lost: numbers, ...writer } of writers) {
      const lost = new Set(numbers.map((number) => segmentName(writer.name, number)));
      const range = { from: 1, to: commits, lost, isSealed: true } as const;
      const last = await addCommits(ledger, writer, range, loading);
      if (last < commits) {
        const missing = `commit ${last + 1} of ${commits} by ${writer.name}`;
        throw permanent('run.damaged', `The storage has lost ${missing}.`);
      }
    }
  }
  return ledger;
}

interface Range {
  from: number;
  to: number;
  /** Names of segments that are known to be lost. */
  lost: ReadonlySet<string>;
  /** What is sealed is read in a moment: whether it is there is found out then. */
  isSealed?: true;
}

/** Adds commits up to the first that is not there, and returns the number of the last that is. */
async function addCommits(
  ledger: Ledger,
  writer: RunWriter,
  { from, to, lost, isSealed }: Range,
  loading: Loading,
): Promise<number> {
  for (let start = from; start <= to; start += AT_ONCE) {
    const length = Math.min(AT_ONCE, to - start + 1);
    const sequences = Array.from({ length }, (_each, place) => start + place);
    const read = await Promise.all(
      sequences.map(async (sequence) => {
        if (lost.has(segmentName(writer.name, sequence))) return 'lost';
        const commit = await loading.record.commit(writer.name, sequence, loading.plan);
        if (commit === null || isSealed === true) return commit;
        return (await isThere(writer, commit, loading)) ? commit : 'lost';
      }),
    );
    for (const [place, commit] of read.entries()) {
      if (commit === null) return start + place - 1;
      if (commit === 'lost') ledger.lose(writer, start + place);
      else ledger.add(writer, commit);
    }
  }
  return to;
}

async function isThere(
  { name }: RunWriter,
  { sequence, bytes }: Commit,
  { record, log }: Loading,
): Promise<boolean> {
  const found = await record.segmentBytes(name, sequence);
  if (found === bytes) return true;
  log.error(
    { segment: segmentName(name, sequence), bytes, found },
    'storage has lost a segment; its lines are asked again',
  );
  await record.putLost(name, sequence);
  return false;
}
