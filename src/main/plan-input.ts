import { addAbortSignal } from 'node:stream';
import type { Readable } from 'node:stream';
import { join } from 'node:path';
import { readPlan } from '../dispatcher/read-plan.ts';
import type { ReadPlan, ReadPlanOptions } from '../dispatcher/read-plan.ts';
import { createUniqueIds } from '../dispatcher/unique-ids.ts';
import { createEstimator } from '../domain/estimate.ts';
import type { Estimate } from '../domain/estimate.ts';
import { SHARD_CUT } from '../domain/plan.ts';
import type { LineRules } from '../domain/plan.ts';
import type { Storage } from '../storage/contract.ts';

const MEMORY_IDS = 262_144;

export interface InputLimits {
  dataDir: string;
  maxBatchLines: number;
  maxLineBytes: number;
}

/** Plans an input within the limits of the settings; ids that do not fit into memory go to `dataDir`. */
export async function planInput(
  { dataDir, maxBatchLines, maxLineBytes }: InputLimits,
  source: Readable,
  options: Omit<ReadPlanOptions, 'uniqueIds' | 'maxLines' | 'maxLineBytes'>,
): Promise<ReadPlan> {
  const directory = join(dataDir, 'tmp');
  const uniqueIds = createUniqueIds({ directory, memoryEntries: MEMORY_IDS });
  try {
    const limits = { maxLines: maxBatchLines, maxLineBytes };
    return await readPlan(source, { ...options, ...limits, uniqueIds });
  } finally {
    await uniqueIds.close();
  }
}

/** Reads an input as planning would, records nothing, and says what the lines are likely to cost. */
export async function inspectInput(
  { storage, ...limits }: InputLimits & { storage: Pick<Storage, 'get'> },
  key: string,
  rules: LineRules,
  signal: AbortSignal,
): Promise<ReadPlan & { estimate: Estimate }> {
  const source = await storage.get(key);
  const estimator = createEstimator();
  try {
    const plan = await planInput(limits, addAbortSignal(signal, source), {
      ...rules,
      cut: SHARD_CUT,
      onShards: () => Promise.resolve(),
      onBadLines: null,
      onLine: ({ body }) => estimator.add(body),
      signal,
    });
    return { ...plan, estimate: estimator.estimate };
  } catch (error) {
    // Whoever aborted says why; the stream only says that it was.
    signal.throwIfAborted();
    throw error;
  } finally {
    source.destroy();
  }
}
