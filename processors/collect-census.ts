import { text } from 'node:stream/consumers';
import { SluiceError } from '../src/domain/errors.ts';
import { CENSUS_KEY } from '../src/domain/object-owner.ts';
import type { Storage } from '../src/storage/contract.ts';
import type { Census } from '../src/store/collect.ts';
import type { Store } from '../src/store/store.ts';

export interface CensusDeps {
  store: {
    collect: Pick<
      Store['collect'],
      'census' | 'beginCensus' | 'setCensus' | 'setDoubt' | 'boundStorage'
    >;
  };
  storage: Pick<Storage, 'get' | 'put' | 'identity'>;
  newId(): string;
}

const FOREIGN =
  'Other records name objects of this storage, too: Redis has lost its data, or is another one, or two deployments share a bucket and prefix.';

/**
 * Writes into a storage whose records name its objects, unless it is said there. Returns why nothing may be removed
 * that these records do not name: others do, or did; null where nothing is wrong. To be called by each process that
 * starts: whoever comes second keeps both from removing what is the other's.
 */
export async function claimCensus(deps: CensusDeps): Promise<string | null> {
  const theirs = await readCensus(deps.storage);
  const ours = await deps.store.collect.beginCensus(deps.newId());
  if (theirs === null) await writeCensus(deps.storage, ours);
  else if (ours.id !== theirs.id) await keepDoubt(deps, FOREIGN);
  else return ours.doubt ?? theirs.doubt;
  return theirs === null ? ours.doubt : FOREIGN;
}

/**
 * Why these records may not be the right ones for this storage: a Redis that has lost its data, went back to a backup,
 * or is another one, names nothing, or only what is old. A doubt stays until a person has looked: by itself it would
 * seem to go as soon as there is enough new that the records do name.
 */
export async function whyDoubtful({
  store: { collect },
  storage,
}: CensusDeps): Promise<string | null> {
  if ((await collect.boundStorage()) !== (await storage.identity())) {
    return 'The records belong to another storage, or do not know of this one any more.';
  }
  const [theirs, ours] = [await readCensus(storage), await collect.census()];
  if (theirs === null) return ours?.doubt ?? null;
  return ours?.id === theirs.id ? compare(ours, theirs) : FOREIGN;
}

function compare(ours: Census, theirs: Census): string | null {
  if (ours.round < theirs.round) {
    return 'The records are older than those by which this storage was collected last: Redis has lost some.';
  }
  return ours.doubt ?? theirs.doubt;
}

/** Notes a doubt on both sides, since one of them may be lost, or another deployment's. */
export async function keepDoubt(deps: CensusDeps, doubt: string): Promise<void> {
  const { collect } = deps.store;
  const ours = await collect.beginCensus(deps.newId());
  await collect.setDoubt(doubt);
  const { id, round } = (await readCensus(deps.storage)) ?? ours;
  await writeCensus(deps.storage, { id, round, doubt });
}

/** Ends all doubts. Records first: those that are ahead by a round have lost nothing. */
export async function takeCensus(
  { store: { collect }, storage, newId }: CensusDeps,
  isKnown: boolean,
): Promise<void> {
  const known = isKnown ? await collect.census() : null;
  const census = { id: known?.id ?? newId(), round: (known?.round ?? 0) + 1, doubt: null };
  await collect.setCensus(census);
  await writeCensus(storage, census);
}

async function writeCensus(
  storage: CensusDeps['storage'],
  { id, round, doubt }: Census,
): Promise<void> {
  const census = { id, round, ...(doubt === null ? {} : { doubt }) };
  await storage.put(CENSUS_KEY, [Buffer.from(`${JSON.stringify(census)}\n`)]);
}

async function readCensus(storage: CensusDeps['storage']): Promise<Census | null> {
  try {
    return parseCensus(await text(await storage.get(CENSUS_KEY)));
  } catch (error) {
    if (error instanceof SluiceError && error.kind === 'NotFound') return null;
    throw error;
  }
}

/** What cannot be read is nobody's: then only a person may say that the records are right. */
function parseCensus(written: string): Census {
  const [, id = '', round = '0', doubt = null] =
    /^\{"id":"([^"]+)","round":(\d+)(?:,"doubt":"([^"]+)")?\}/.exec(written) ?? [];
  return { id, round: Number(round), doubt };
}
