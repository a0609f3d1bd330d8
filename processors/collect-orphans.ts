import { OWNED_PREFIXES, ownerOfObject } from '../src/domain/object-owner.ts';
import type { ObjectOwner } from '../src/domain/object-owner.ts';
import { isUrl } from '../src/domain/location.ts';
import type { Storage } from '../src/storage/contract.ts';
import type { Store } from '../src/store/store.ts';
import { keepDoubt, takeCensus, whyDoubtful } from './collect-census.ts';
import type { CensusDeps } from './collect-census.ts';
import { inRuns } from './collect-step.ts';
import type { Mode, Removed } from './collect-step.ts';

export interface OrphanDeps extends CensusDeps {
  store: { collect: CensusDeps['store']['collect'] & Pick<Store['collect'], 'isNamed' | 'keep'> };
  storage: Storage;
  now(): number;
  /** How old an object must be, ms: whoever wrote it has recorded it by then, or never will. */
  orphanAgeMs: number;
}

export interface OrphanMode extends Mode {
  confirm: boolean;
  /** Hears of an object that could not be looked at or removed; throws where all is to end. */
  onFailure(key: string, error: unknown): void;
}

export const ORPHAN_KINDS = ['segment', 'file', 'manifest', 'part'] as const;
type OrphanKind = (typeof ORPHAN_KINDS)[number];

/** Objects that no record names, by what they are. */
export interface Orphans {
  found: Record<OrphanKind, Removed>;
  /** How many objects were looked at. */
  looked: number;
  /** Why nothing of it is removed; null: it may be, or was. */
  doubt: string | null;
}

/** So few are what crashes leave, whatever their share. */
const FEW = 50;

/**
 * Looks at every object below our prefixes, page by page, and removes what no record names and what is old enough; the
 * record is read again right before. Where most of what is there would go, where anything would at the first time, or
 * where the records are not those that this storage was collected by before, it only counts, then and from then on,
 * until a person `confirm`s that the records are right.
 */
export async function collectOrphans(deps: OrphanDeps, mode: OrphanMode): Promise<Orphans> {
  const doubt = await whyDoubtful(deps);
  const seen = await look(deps, { ...mode, dryRun: true }, !mode.dryRun);
  const count = countOf(seen);
  const wrong = doubt ?? (await whyUnlikely(deps, count, seen.looked));
  const reason = mode.confirm ? null : wrong;
  if (mode.dryRun) return { ...seen, doubt: reason };
  if (reason !== null) {
    await keepDoubt(deps, reason);
    return { ...seen, doubt: reason };
  }
  await takeCensus(deps, wrong === null);
  return count === 0 ? seen : look(deps, mode, false);
}

async function whyUnlikely(
  { store: { collect } }: OrphanDeps,
  orphans: number,
  looked: number,
): Promise<string | null> {
  if (orphans > FEW && orphans * 2 > looked) return MOST_WOULD_GO;
  const round = (await collect.census())?.round ?? 0;
  // Nobody knows yet what these records should name: they may be empty because they were lost.
  return orphans > 0 && round === 0 ? FIRST_TIME : null;
}

const FIRST_TIME =
  'This storage was never collected by these records, and they do not name all that lies in it.';

const MOST_WOULD_GO =
  'No record names most of what lies in the storage: the records look incomplete.';

function countOf({ found }: Orphans): number {
  return ORPHAN_KINDS.reduce((sum, kind) => sum + found[kind].count, 0);
}

/** With `keeps`, segments that came late, when the others of their jobs were gone, are collected with these. */
async function look(deps: OrphanDeps, mode: OrphanMode, keeps: boolean): Promise<Orphans> {
  const found = {
    segment: { count: 0, bytes: 0 },
    file: { count: 0, bytes: 0 },
    manifest: { count: 0, bytes: 0 },
    part: { count: 0, bytes: 0 },
  };
  let looked = 0;
  let lastJob = '';
  async function lookAt(key: string, owner: ObjectOwner): Promise<void> {
    if (keeps && owner.kind === 'segment' && owner.job !== lastJob) {
      lastJob = owner.job;
      await deps.store.collect.keep(owner.job);
    }
    const bytes = await removeOrphan(key, owner, deps, mode);
    if (bytes === null) return;
    found[owner.kind].count += 1;
    found[owner.kind].bytes += bytes;
  }
  for (const prefix of OWNED_PREFIXES) {
    await inRuns(deps.storage.list(prefix), mode.step, async (key) => {
      looked += 1;
      const owner = ownerOfObject(key);
      if (owner === null) return;
      try {
        await lookAt(key, owner);
      } catch (error) {
        mode.onFailure(key, error);
      }
    });
  }
  return { found, looked, doubt: null };
}

/** Returns the bytes of an orphan; null for an object that stays. */
async function removeOrphan(
  key: string,
  owner: ObjectOwner,
  { store: { collect }, storage, now, orphanAgeMs }: OrphanDeps,
  { dryRun, confirm }: OrphanMode,
): Promise<number | null> {
  // Who lost records has their ids in indexes; who has not, and says so, has them from a crash.
  const byIndex = !confirm;
  if (await collect.isNamed(owner, byIndex)) return null;
  const object = await storage.head(key);
  if (object === null || now() - object.modifiedAt < orphanAgeMs) return null;
  // What was recorded between the first look and the age stays, too.
  if (await collect.isNamed(owner, byIndex)) return null;
  if (!dryRun) await storage.delete(key);
  return object.bytes;
}

/** Gives up writes that were begun long ago and never ended, as killed processes leave them. */
export async function collectAbandoned(
  { storage, orphanAgeMs }: Pick<OrphanDeps, 'storage' | 'orphanAgeMs'>,
  { step, dryRun }: Mode,
): Promise<Removed> {
  const removed = { count: 0, bytes: 0 };
  for await (const upload of storage.abandoned(orphanAgeMs)) {
    if (!isOurs(upload.key)) continue;
    if (!dryRun) await storage.abandon(upload);
    removed.count += 1;
    await step();
  }
  return removed;
}

/** What a folder begins has a name of this kind; a bucket may be shared with other programs. */
const TEMPORARY = /^\.tmp\/\d+-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** Of a bucket of a user's, only what we began is told. */
function isOurs(key: string): boolean {
  return ownerOfObject(key) !== null || TEMPORARY.test(key) || isUrl(key);
}
