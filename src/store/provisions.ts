import { createHash } from 'node:crypto';
import { isLeased, PROVISION } from '../domain/provision.ts';
import type { AttemptNews, LeaseAttempt, MachineLogin } from '../domain/lease.ts';
import type { Provider, ProvisionRecord, ProvisionState } from '../domain/provision.ts';
import { ATTEMPT_FIELD, jobKey, recordKey } from './keys.ts';
import { parseProvision } from './provision-record.ts';
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
import { newOp } from './scripts.ts';

export type NewProvision = Pick<
  ProvisionRecord,
  'id' | 'job' | 'slot' | 'provider' | 'owner' | 'address'
>;

/** What a move writes beside the state. */
export interface ProvisionChange {
  reason?: string;
  provider?: Provider;
  /** Becomes the current one; one of that number that came to nothing is replaced. */
  attempt?: LeaseAttempt;
  login?: MachineLogin | null;
  /** Of a machine of the caller's. */
  hostKey?: string;
  waitingSince?: number | null;
  /** Another machine than before: nothing that was found out of the last one stands. */
  isFresh?: true;
}

/** What is found out of a provision while it stays in its state. */
export interface ProvisionFinds {
  models?: readonly string[];
  login?: MachineLogin;
  waitingSince?: number;
  engineAt?: number | null;
  crashes?: number;
  logOffset?: number;
  unreachableSince?: number | null;
  claimedAt?: number | null;
}

export interface Provisions {
  /** Makes a provision in `intended`; ids are derived, so another planner may have made it already. */
  create(provision: NewProvision): Promise<'created' | 'exists'>;
  /** A damaged record is `store.damaged_record` (Permanent). */
  get(id: string): Promise<ProvisionRecord | null>;
  /** Moves a provision that still has the state and version that the caller read; `stale` otherwise. */
  move(
    provision: { id: string; state: ProvisionState; version: number },
    to: ProvisionState,
    change?: ProvisionChange,
  ): Promise<Moved | 'stale'>;
  /** Raises the wake if it still is `wake`, and returns the new one. */
  wake(id: string, wake: number): Promise<number | 'stale'>;
  /** Writes what was found out of it beside its state, unless it is released. */
  keep(id: string, found: ProvisionFinds): Promise<void>;
  /**
   * Writes what became of one of its attempts, whatever its state. False where there is no such attempt, or it is over:
   * only a machine that turns up after all opens one again that came to nothing. False, too, for news that there is no
   * machine, or that nobody knows of one, where it was found meanwhile.
   */
  attempt(id: string, n: number, news: AttemptNews): Promise<boolean>;
  /**
   * Decides once what becomes of the machine of a releasing provision. `to`: it goes over to `other`. `undo`: it is to be
   * found out whether `other` took it; then `redo` that it did, or `back` that nobody has it. False where something else
   * is decided.
   */
  hand(id: string, word: 'to' | 'undo' | 'redo' | 'back', other: string): Promise<boolean>;
  /** Decides, once, that the machine of a releasing provision is given back; false where it goes over to another one. */
  decideDestroy(id: string): Promise<boolean>;
  /** From now on whoever has read the provision before cannot move it. */
  bump(id: string): Promise<void>;
  /** Names the machines of a provision: letters of the alphabet's lower case and digits, 16 of them. */
  keyOf(id: string): string;
  /** The provision that has the machine whose name bears this key now; null where there is none. */
  byKey(key: string): Promise<string | null>;
  /** Has a key that is borne by a machine's name lead to another provision from now on. */
  pointKey(key: string, id: string): Promise<void>;
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
  /** Removes the index entry, and the seat, of a provision that is released or has no record. Others stay. */
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
    async move(provision, to, change = {}) {
      const moved = await moveRecord(context, {
        id: provision.id,
        from: provision.state,
        to,
        version: provision.version,
        queued: PROVISION[to].queue !== null,
        fields: renderChange(change),
      });
      if (moved !== 'stale' && to === 'released') await leaveIndexes(context, provision.id);
      return moved;
    },
    wake: (id, wake) => wakeRecord(context, id, wake),
    async keep(id, found) {
      const fields = Object.entries(renderFinds(found)).flat();
      if (fields.length > 0) await scripts.run('keep', recordKey(id), ...fields);
    },
    attempt: async (id, n, news) =>
      (await scripts.run('attempt', recordKey(id), n, JSON.stringify(news))) === 1,
    hand: async (id, word, other) => (await scripts.run('hand', recordKey(id), word, other)) === 1,
    decideDestroy: async (id) => (await scripts.run('hand', recordKey(id), 'destroy')) === 1,
    async bump(id) {
      await scripts.run('bump', recordKey(id), newOp());
    },
    keyOf: machineKey,
    byKey: (key) => redis.get(`${keys.machine}${key}`),
    async pointKey(key, id) {
      await redis.set(`${keys.machine}${key}`, id);
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
      if (isLeased({ address })) {
        // Only where nobody has it yet: the machine may have gone over to another provision.
        await context.redis.set(`${context.keys.machine}${machineKey(id)}`, id, 'NX');
      }
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

/** So long after its provision was released a machine may still turn up under its name. */
const KEY_KEPT_SECONDS = 7 * 86_400;

async function leaveIndexes({ redis, keys }: Context, id: string): Promise<void> {
  await redis.zrem(keys.provisions, id);
  await redis.zrem(keys.seats, id);
  const key = `${keys.machine}${machineKey(id)}`;
  // One that leads to the provision that took the machine over has to last as long as the machine.
  if ((await redis.get(key)) === id) await redis.expire(key, KEY_KEPT_SECONDS);
}

/** 16 letters of 36 are 82 bits: keys never meet by chance. */
function machineKey(id: string): string {
  const digest = createHash('sha256').update(id).digest('hex');
  return BigInt(`0x${digest}`).toString(36).slice(-16).padStart(16, '0');
}

function renderChange(change: ProvisionChange): Record<string, string | number> {
  const { reason, provider, attempt, login, hostKey, waitingSince, isFresh } = change;
  return {
    ...(reason === undefined ? {} : { reason }),
    ...(provider === undefined ? {} : { provider }),
    ...(attempt === undefined
      ? {}
      : { [`${ATTEMPT_FIELD}${attempt.n}`]: JSON.stringify(attempt), current: attempt.n }),
    ...(login === undefined ? {} : { login: JSON.stringify(login) }),
    ...(hostKey === undefined ? {} : { host_key: hostKey }),
    ...(waitingSince === undefined ? {} : { waiting_since: waitingSince ?? '' }),
    ...(isFresh === undefined
      ? {}
      : { engine_at: '', crashes: 0, log_offset: 0, unreachable_since: '' }),
  };
}

function renderFinds(found: ProvisionFinds): Record<string, string | number> {
  const { models, login, waitingSince, engineAt, crashes, logOffset } = found;
  const { unreachableSince, claimedAt } = found;
  return {
    ...(models === undefined ? {} : { models: JSON.stringify(models) }),
    ...(login === undefined ? {} : { login: JSON.stringify(login) }),
    ...(waitingSince === undefined ? {} : { waiting_since: waitingSince }),
    ...(engineAt === undefined ? {} : { engine_at: engineAt ?? '' }),
    ...(crashes === undefined ? {} : { crashes }),
    ...(logOffset === undefined ? {} : { log_offset: logOffset }),
    ...(unreachableSince === undefined ? {} : { unreachable_since: unreachableSince ?? '' }),
    ...(claimedAt === undefined ? {} : { claimed_at: claimedAt ?? '' }),
  };
}

async function forgetProvision({ redis, keys }: Context, id: string): Promise<void> {
  const state = await redis.hget(recordKey(id), 'state');
  if (state === null || state === 'released') {
    await redis.zrem(keys.provisions, id);
    await redis.zrem(keys.seats, id);
  }
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
