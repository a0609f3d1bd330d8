import { findLost } from '../../dispatcher/lost-parts.ts';
import { describeError } from '../../domain/errors.ts';
import { loadLedger } from './load.ts';
import type { Work } from './work.ts';

/**
 * Finds out which segments storage has lost, and notes them: their commits count no more, nor does any seal that has
 * them, so that their lines are asked again. Rejects with the error that was met where nothing is lost after all.
 */
export async function strikeLost(working: Work, error: unknown): Promise<void> {
  const { record, plan, ledger, log, task } = working;
  if (plan === null || ledger === null) throw error;
  async function* shards() {
    for (const { n } of plan?.shards ?? []) if (ledger !== null) yield ledger.accepted(n);
  }
  const struck = new Set<string>();
  const source = {
    shards: shards(),
    openPart: async ({
      segment,
      offset,
      length,
    }: {
      segment: string;
      offset: number;
      length: number;
    }) => record.openSegment(segment, { start: offset, end: offset + length }),
  };
  for await (const { lost } of findLost(source))
    for (const { segment } of lost) struck.add(segment);
  if (struck.size === 0) throw error;
  for (const segment of struck) {
    const [writer = '', sequence] = segment.split('/');
    await record.putLost(writer, Number(sequence));
  }
  log.error(
    { segments: [...struck], reason: describeError(error) },
    'storage has lost answers; their lines are asked again',
  );
  working.ledger = await loadLedger({ record, plan, log }, [task.index]);
}
