import * as v from 'valibot';
import { OWNERS, PROVIDERS, PROVISION, PROVISION_STATES } from '../domain/provision.ts';
import type { ProvisionRecord, ProvisionState } from '../domain/provision.ts';
import { jobKey, recordKey } from './keys.ts';
import { integer, jsonText, parseEntered, parseRecord } from './parse.ts';
import type { Fields } from './parse.ts';
import {
  createRecord,
  enterIndex,
  enterIndexAt,
  indexAge,
  moveRecord,
  pageRecords,
  readFields,
  readRecords,
  wakeRecord,
  walkIndex,
} from './records.ts';
import type { Context, Moved } from './records.ts';

export type NewProvision = Pick<
  ProvisionRecord,
  'id' | 'job' | 'slot' | 'provider' | 'owner' | 'address'
>;

export interface Provisions {
  /** Makes a provision in `intended`; ids are derived, so another planner may have made it already. */
  create(provision: NewProvision): Promise<'created' | 'exists'>;
  /** A damaged record is `store.damaged_record` (Permanent). */
  get(id: string): Promise<ProvisionRecord | null>;
  /** Moves a provision that still has the state and version that the caller read; `stale` otherwise. */
  move(
    provision: { id: string; state: ProvisionState; version: number },
    to: ProvisionState,
    change?: { reason?: string },
  ): Promise<Moved | 'stale'>;
  /** Raises the wake if it still is `wake`, and returns the new one. */
  wake(id: string, wake: number): Promise<number | 'stale'>;
  /** Writes which models of its job the engine serves, unless the provision is released. */
  serves(id: string, models: readonly string[]): Promise<void>;
  /** Writes what the last look said, unless the provision is released. */
  note(id: string, reason: string): Promise<void>;
  /** All that the job ever had, by slot, then by attempt. Damaged ones are left out and reported. */
  ofJob(jobId: string): Promise<ProvisionRecord[]>;
  /**
   * All that ever were, of any job, newest first, those that `matches` lets pass. Damaged ones are left out and
   * reported. With `matches` a page that looked at a bounded number of them ends as it is, however few it found:
   * `cursor` is what the next one goes on after. An unknown `after` is `invalid_cursor` (InvalidInput).
   */
  page(options: {
    after?: string;
    limit: number;
    matches?: (provision: ProvisionRecord) => boolean;
  }): Promise<{ provisions: ProvisionRecord[]; hasMore: boolean; cursor: string }>;
  /** Ids of provisions that are not released, oldest first; some may have no record, or a released one. */
  unreleased(): AsyncIterable<string>;
  /** Milliseconds since an unreleased provision was made; 0 when it is not among them. */
  age(id: string): Promise<number>;
  /** Removes the index entry of a provision that is released or has no record. Others stay. */
  forget(id: string): Promise<void>;
}

export function createProvisions(context: Context): Provisions {
  const { redis, scripts, keys } = context;
  return {
    create: (provision) => createProvision(context, provision),
    async get(id) {
      const fields = await readFields(context, id);
      return fields === null ? null : parseProvision(id, fields);
    },
    async move(provision, to, { reason } = {}) {
      const moved = await moveRecord(context, {
        id: provision.id,
        from: provision.state,
        to,
        version: provision.version,
        queued: PROVISION[to].queue !== null,
        fields: reason === undefined ? {} : { reason },
      });
      if (moved !== 'stale' && to === 'released') await redis.zrem(keys.provisions, provision.id);
      return moved;
    },
    wake: (id, wake) => wakeRecord(context, id, wake),
    async serves(id, models) {
      await scripts.run('serves', recordKey(id), JSON.stringify(models));
    },
    async note(id, reason) {
      await scripts.run('note', recordKey(id), reason);
    },
    ofJob: (jobId) => provisionsOfJob(context, jobId),
    async page({ matches, ...place }) {
      const { records, ...rest } = await pageRecords(context, {
        ...place,
        index: keys.everyProvision,
        order: 'desc',
        parse: parseProvision,
        ...(matches === undefined ? {} : { matches, mostLooked: MOST_LOOKED }),
      });
      return { provisions: records, ...rest };
    },
    unreleased: () => walkIndex(context, keys.provisions),
    age: (id) => indexAge(context, keys.provisions, id),
    forget: (id) => forgetProvision(context, id),
  };
}

/** The index holds all that ever were: a filter that matches few must not keep Redis busy with all of it. */
const MOST_LOOKED = 1_000;

async function createProvision(
  context: Context,
  { id, job, slot, provider, owner, address }: NewProvision,
): Promise<'created' | 'exists'> {
  const outcome = await createRecord(context, {
    id,
    async enter(anew) {
      await context.redis.sadd(jobKey(job, 'PROVISIONS'), id);
      const at = await enterIndex(context, context.keys.provisions, id, anew);
      await enterIndexAt(context, context.keys.everyProvision, id, at, anew);
      return at;
    },
    fields: (at) => ({
      job,
      slot,
      state: 'intended',
      version: 1,
      wake: 1,
      provider,
      owner,
      address,
      created_at: at,
      intended_at: at,
    }),
  });
  if (outcome === 'created') return 'created';
  // A planner that comes late has entered a provision that may be released already.
  await forgetProvision(context, id);
  return 'exists';
}

async function forgetProvision({ redis, keys }: Context, id: string): Promise<void> {
  const state = await redis.hget(recordKey(id), 'state');
  if (state === null || state === 'released') await redis.zrem(keys.provisions, id);
  if (state === null) await redis.zrem(keys.everyProvision, id);
}

async function provisionsOfJob(context: Context, jobId: string): Promise<ProvisionRecord[]> {
  const ids = await context.redis.smembers(jobKey(jobId, 'PROVISIONS'));
  const records = await readRecords(context, ids, parseProvision);
  return records
    .filter((record) => record !== null)
    .toSorted((a, b) => a.slot - b.slot || attemptOf(a.id) - attemptOf(b.id));
}

/** Ids end in slot and attempt. */
function attemptOf(id: string): number {
  return Number(id.slice(id.lastIndexOf('_') + 1));
}

const provisionFields = v.object({
  job: v.string(),
  slot: integer,
  state: v.picklist(PROVISION_STATES),
  version: integer,
  wake: integer,
  provider: v.picklist(PROVIDERS),
  owner: v.picklist(OWNERS),
  address: v.string(),
  // Absent until an engine was seen that serves only some of its job's.
  models: v.optional(v.pipe(jsonText, v.array(v.string()))),
  reason: v.optional(v.string(), ''),
  reason_at: v.optional(integer),
  created_at: integer,
});

function parseProvision(id: string, fields: Fields): ProvisionRecord {
  const {
    created_at: createdAt,
    reason_at: reasonAt = null,
    models = null,
    ...provision
  } = parseRecord(id, provisionFields, fields);
  return {
    id,
    ...provision,
    models,
    reasonAt,
    createdAt,
    enteredAt: parseEntered(id, PROVISION_STATES, fields),
  };
}
