import { fileKey, isExpired, manifestKey, outputFileId, retryInputId } from '../src/domain/file.ts';
import { isFinal } from '../src/domain/job.ts';
import { jobPrefix } from '../src/domain/object-owner.ts';
import { eventIdOf } from '../src/domain/webhook.ts';
import type { Storage } from '../src/storage/contract.ts';
import type { ErasureNote } from '../src/store/collect.ts';
import type { Store } from '../src/store/store.ts';
import { dropShards } from './collect-segments.ts';
import { removeBelow } from './collect-step.ts';
import type { Mode } from './collect-step.ts';
import type { Log } from './deps.ts';
import { readOrNull } from './read-or-null.ts';

export interface EraseDeps {
  store: {
    jobs: Pick<Store['jobs'], 'get' | 'active'>;
    files: Pick<Store['files'], 'get' | 'delete' | 'forget' | 'expire'>;
    webhooks: Pick<Store['webhooks'], 'erase'>;
    idempotency: Pick<Store['idempotency'], 'eraseAbout'>;
    collect: Store['collect'];
  };
  storage: Pick<Storage, 'list' | 'head' | 'delete'>;
  now(): number;
  log: Log;
}

/**
 * When what is left of an erased job is looked for, ms after it began. A process that did not know of it may still
 * write a segment, a file or a shard for a while: a put that hangs, an assembly whose lock is lost.
 */
const PASSES_MS = [60_000, 600_000, 3_600_000, 86_400_000] as const;
/** Machines of a job that is gone are released by and by, and their records are needed for it. */
const RELEASE_LOOK_MS = 30_000;
const FAILED_AGAIN_MS = 60_000;
const PATIENT: Mode = { step: async () => undefined, dryRun: false };

/**
 * Erases a job that is over: its record, so that nobody sees it any more, `withFiles` also those of its files. All that
 * is left in Redis and in storage, and its input where no other job has it, is the sweeper's to remove, however much
 * that is; with `mode` a first pass removes it here. May be repeated; killed anywhere behind the record, the sweeper
 * goes on. `running`: it is not over. `usedBy`: a job that still is to read its files.
 */
export async function eraseJob(
  jobId: string,
  { withFiles }: { withFiles: boolean },
  deps: EraseDeps,
  mode: Mode | null = null,
): Promise<'erased' | 'running' | 'gone' | { usedBy: string }> {
  const { jobs, collect } = deps.store;
  const job = await jobs.get(jobId);
  if (job !== null) {
    if (!isFinal(job.state)) return 'running';
    const usedBy = await findReader(jobId, deps);
    if (usedBy !== null) return { usedBy };
  }
  const input = job?.input ?? '';
  const outcome = await collect.erase(jobId, { at: deps.now(), withFiles, input });
  if (outcome !== 'erased') return outcome;
  if (withFiles) for (const id of outputsOf(jobId)) await deps.store.files.delete(id);
  if (mode === null) await collect.postponeErasure(jobId, deps.now());
  else await passOver(jobId, deps, mode);
  return outcome;
}

function outputsOf(jobId: string): string[] {
  return [outputFileId(jobId, 'output'), outputFileId(jobId, 'error')];
}

/** A retry reads the first job's files when it is planned. */
async function findReader(jobId: string, { store: { jobs } }: EraseDeps): Promise<string | null> {
  for await (const id of jobs.active()) {
    const job = await readOrNull(jobs, id);
    if (job?.state === 'queued' && job.options.retryOf === jobId) return id;
  }
  return null;
}

/** Goes on with all erasures that are due; what cannot be erased now is due again in the next round. */
export async function continueErasures(deps: EraseDeps, mode: Mode = PATIENT): Promise<void> {
  for await (const id of deps.store.collect.erasing(deps.now())) {
    try {
      await passOver(id, deps, mode);
    } catch (err) {
      deps.log.error({ jobId: id, err }, 'an erased job could not be removed whole');
      await deps.store.collect.postponeErasure(id, deps.now() + FAILED_AGAIN_MS);
    }
    await mode.step();
  }
}

/** Removes what is there of an erased job, and decides when to look again. */
async function passOver(jobId: string, deps: EraseDeps, mode: Mode): Promise<void> {
  const { collect, jobs } = deps.store;
  const note = await collect.erasure(jobId);
  // Somebody began and died before it had an effect; their user will ask again.
  if (note === null || (await jobs.get(jobId)) !== null) {
    return collect.forgetErasure(jobId, deps.now());
  }
  const released = await removeRest(jobId, note, deps, mode);
  const elapsed = deps.now() - note.at;
  const next = PASSES_MS.find((ms) => ms > elapsed);
  if (next === undefined && released) return collect.forgetErasure(jobId, Infinity);
  const again = released ? Infinity : elapsed + RELEASE_LOOK_MS;
  await collect.postponeErasure(jobId, note.at + Math.min(next ?? Infinity, again));
}

/** False while machines of the job are not released. */
async function removeRest(
  jobId: string,
  note: ErasureNote,
  deps: EraseDeps,
  mode: Mode,
): Promise<boolean> {
  const { webhooks, idempotency, collect } = deps.store;
  await dropShards(jobId, false, deps, mode);
  await removeBelow(jobPrefix(jobId), { ...deps, ...mode });
  await deps.storage.delete(manifestKey(jobId));
  if (note.withFiles) await eraseFiles(jobId, note, deps);
  await webhooks.erase(jobId, eventIdOf(jobId));
  await idempotency.eraseAbout(jobId);
  const left = await collect.eraseProvisions(jobId, note.provisions);
  await collect.leaveIndexes(jobId);
  return left.length === 0;
}

async function eraseFiles(jobId: string, note: ErasureNote, deps: EraseDeps): Promise<void> {
  const { store, storage } = deps;
  const { files, idempotency } = store;
  for (const id of outputsOf(jobId)) {
    await files.delete(id);
    await storage.delete(fileKey(id));
    await files.forget(id);
    await idempotency.eraseAbout(id);
  }
  await hideInputs(jobId, note, deps);
}

/**
 * Lets the inputs expire that no other job has: nobody can name them from then on. Their bytes go a while later, unless
 * a job has them by then that was made since the others were asked.
 */
async function hideInputs(
  jobId: string,
  { input }: ErasureNote,
  { store: { collect, files, idempotency }, storage, now }: EraseDeps,
): Promise<void> {
  const own = retryInputId(jobId);
  const seen: string[] = [];
  // The input of a retry may be that of a copy of it.
  for (const id of new Set([input, own])) {
    const file = id === '' ? null : await files.get(id);
    if (file !== null && !isExpired(file, now())) seen.push(id);
    // Written by a planner that did not know.
    if (file === null && id === own) await storage.delete(fileKey(id));
  }
  if (seen.length === 0) return;
  const used = await collect.inputsOfOthers(seen, jobId);
  for (const id of seen) {
    if (used.has(id)) continue;
    await files.expire(id, now());
    await idempotency.eraseAbout(id);
  }
}
