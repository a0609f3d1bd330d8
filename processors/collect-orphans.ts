import { CENSUS_KEY, OWNED_PREFIXES, ownerOfObject } from '../src/domain/object-owner.ts';
import type { ObjectOwner } from '../src/domain/object-owner.ts';
import { SluiceError } from '../src/domain/errors.ts';
import type { Storage } from '../src/storage/contract.ts';
import type { Census } from '../src/store/collect.ts';
import type { Store } from '../src/store/store.ts';
import { inRuns } from './collect-step.ts';
import type { Mode, Removed } from './collect-step.ts';

export interface OrphanDeps {
  store: {
    collect: Pick<Store['collect'], 'isNamed' | 'keep' | 'census' | 'setCensus' | 'boundStorage'>;
  };
  storage: Storage;
  now(): number;
  /** How old an object must be, ms: whoever wrote it has recorded it by then, or never will. */
  orphanAgeMs: number;
  newId(): string;
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

/** So few are what crashes leave, whatever their share; but not at the first time, when little is known of the records. */
const FEW = 50;

/**
 * Looks at every object below our prefixes, page by page, and removes what no record names and what is old enough; the
 * record is read again right before. Where most of what is there would go, or the records are not those that this
 * storage was collected by before, it only counts, unless a person `confirm`s that the records are right.
 */
export async function collectOrphans(
  deps: OrphanDeps,
  mode: Mode & { confirm: boolean },
): Promise<Orphans> {
  const doubt = await whyDoubtful(deps);
  const seen = await look(deps, { step: mode.step, dryRun: true }, !mode.dryRun);
  const count = countOf(seen);
  const few = (await deps.store.collect.census()) === null ? 0 : FEW;
  const shrunk = count > few && count * 2 > seen.looked ? MOST_WOULD_GO : null;
  const reason = mode.confirm ? null : (doubt ?? shrunk);
  if (mode.dryRun || reason !== null) return { ...seen, doubt: reason };
  await takeCensus(deps, doubt === null);
  return count === 0 ? seen : look(deps, mode, false);
}

const MOST_WOULD_GO =
  'No record names most of what lies in the storage: the records look incomplete.';

function countOf({ found }: Orphans): number {
  return ORPHAN_KINDS.reduce((sum, kind) => sum + found[kind].count, 0);
}

/** With `keeps`, segments that came late, when the others of their jobs were gone, are collected with these. */
async function look(deps: OrphanDeps, mode: Mode, keeps: boolean): Promise<Orphans> {
  const found = {
    segment: { count: 0, bytes: 0 },
    file: { count: 0, bytes: 0 },
    manifest: { count: 0, bytes: 0 },
    part: { count: 0, bytes: 0 },
  };
  let looked = 0;
  let lastJob = '';
  for (const prefix of OWNED_PREFIXES) {
    await inRuns(deps.storage.list(prefix), mode.step, async (key) => {
      looked += 1;
      const owner = ownerOfObject(key);
      if (owner === null) return;
      if (keeps && owner.kind === 'segment' && owner.job !== lastJob) {
        lastJob = owner.job;
        await deps.store.collect.keep(owner.job);
      }
      const bytes = await removeOrphan(key, owner, deps, mode);
      if (bytes === null) return;
      found[owner.kind].count += 1;
      found[owner.kind].bytes += bytes;
    });
  }
  return { found, looked, doubt: null };
}

/** Returns the bytes of an orphan; null for an object that stays. */
async function removeOrphan(
  key: string,
  owner: ObjectOwner,
  { store: { collect }, storage, now, orphanAgeMs }: OrphanDeps,
  { dryRun }: Mode,
): Promise<number | null> {
  if (await collect.isNamed(owner)) return null;
  const object = await storage.head(key);
  if (object === null || now() - object.modifiedAt < orphanAgeMs) return null;
  // What was recorded between the first look and the age stays, too.
  if (await collect.isNamed(owner)) return null;
  if (!dryRun) await storage.delete(key);
  return object.bytes;
}

/**
 * Why these records may not be the right ones for this storage: a Redis that has lost its data, went back to a backup,
 * or is another one, names nothing, or only what is old.
 */
async function whyDoubtful({ store: { collect }, storage }: OrphanDeps): Promise<string | null> {
  if ((await collect.boundStorage()) !== (await storage.identity())) {
    return 'The records belong to another storage, or do not know of this one any more.';
  }
  const [theirs, ours] = [await readCensus(storage), await collect.census()];
  if (theirs === null) return null;
  if (ours?.id !== theirs.id) {
    return 'This storage was collected by other records before: Redis has lost its data, or is another one.';
  }
  if (ours.round >= theirs.round) return null;
  return 'The records are older than those by which this storage was collected last: Redis has lost some.';
}

/** Records first: those that are ahead by a round have lost nothing. */
async function takeCensus(
  { store: { collect }, storage, newId }: OrphanDeps,
  isKnown: boolean,
): Promise<void> {
  const known = isKnown ? await collect.census() : null;
  const census = { id: known?.id ?? newId(), round: (known?.round ?? 0) + 1 };
  await collect.setCensus(census);
  await storage.put(CENSUS_KEY, [Buffer.from(`${JSON.stringify(census)}\n`)]);
}

async function readCensus(storage: OrphanDeps['storage']): Promise<Census | null> {
  try {
    const chunks: Uint8Array[] = [];
    for await (const chunk of await storage.get(CENSUS_KEY)) chunks.push(chunk);
    return parseCensus(Buffer.concat(chunks).toString());
  } catch (error) {
    if (error instanceof SluiceError && error.kind === 'NotFound') return null;
    throw error;
  }
}

/** What cannot be read is nobody's: then only a person may say that the records are right. */
function parseCensus(text: string): Census {
  const [, id = '', round = '0'] = /^\{"id":"([^"]+)","round":(\d+)\}/.exec(text) ?? [];
  return { id, round: Number(round) };
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
const TEMPORARY = /^\d+-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

function isOurs(key: string): boolean {
  return ownerOfObject(key) !== null || TEMPORARY.test(key);
}
