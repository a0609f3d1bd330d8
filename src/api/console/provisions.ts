import type { IncomingMessage } from 'node:http';
import * as v from 'valibot';
import { invalidInput, notFound, SluiceError } from '../../domain/errors.ts';
import { PROVIDERS, PROVISION_STATES, RELEASE_CHOICES } from '../../domain/provision.ts';
import type { ProvisionRecord, ReleaseChoice } from '../../domain/provision.ts';
import type { Provisions } from '../../store/provisions.ts';
import { exactObject, parse, readJson } from '../body.ts';
import { isJobId, isProvisionId } from '../ids.ts';
import { limitSchema, unknownCursor } from '../query.ts';
import { pathId } from '../routes.ts';
import type { ApiContext, Route } from '../routes.ts';
import { unixSeconds } from '../views.ts';
import { machineOf } from './machines.ts';
import { provisionView } from './provision-view.ts';
import { listQuery } from './request.ts';
import { snakeKeys } from './snake-keys.ts';

export interface ProvisionsDeps {
  store: { provisions: Pick<Provisions, 'get' | 'page' | 'ofJob' | 'unreleased'> };
  /** Gives one back; `ask`: an unfinished job uses it, and nobody said what becomes of that. Null: there is none. */
  releaseProvision(
    id: string,
    choice: ReleaseChoice | null,
  ): Promise<ProvisionRecord | 'ask' | null>;
}

/** What jobs run on and ran on: machines and engines, each with its job. */
export function provisionRoutes(deps: ProvisionsDeps): Route[] {
  return [
    { path: '/api/v1/provisions', get: (c) => list(c, deps) },
    {
      path: '/api/v1/provisions/:id',
      async get(c) {
        return c.json(ownView(await find(c, deps)));
      },
    },
    { path: '/api/v1/provisions/:id/release', post: (c) => release(c, deps) },
  ];
}

/** As a job shows it, and what it is to the job. */
export function ownView(provision: ProvisionRecord) {
  const { starting, serving, releasing, released } = provision.enteredAt;
  return {
    id: provision.id,
    ...provisionView(provision),
    job_id: provision.job,
    slot: provision.slot,
    owner: provision.owner,
    address: provision.address,
    machine: machineOf(provision),
    starting_at: secondsOrZero(starting),
    serving_at: secondsOrZero(serving),
    releasing_at: secondsOrZero(releasing),
    released_at: secondsOrZero(released),
  };
}

function secondsOrZero(ms: number | undefined): number {
  return ms === undefined ? 0 : unixSeconds(ms);
}

const STATUS_RULE = `one or more of ${PROVISION_STATES.join(', ')}, with commas between`;
const STATUSES = new RegExp(`^(?:(?:${PROVISION_STATES.join('|')})(?:,|$))*$`);
const PROVIDER_RULE = `one of ${PROVIDERS.join(', ')}`;
export const listProvisionsSchema = v.object({
  after: v.optional(v.string(), ''),
  limit: limitSchema(100, 20),
  job_id: v.optional(v.string(), ''),
  status: v.optional(
    v.pipe(
      v.string(STATUS_RULE),
      v.regex(STATUSES, STATUS_RULE),
      v.transform((given) => PROVISION_STATES.filter((state) => given.split(',').includes(state))),
    ),
    '',
  ),
  provider: v.optional(v.picklist([...PROVIDERS, ''], PROVIDER_RULE), ''),
});
type ListWish = v.InferOutput<typeof listProvisionsSchema>;

async function list(c: ApiContext, deps: ProvisionsDeps): Promise<Response> {
  const wish = parse(listProvisionsSchema, listQuery(c));
  if (wish.after !== '' && !isProvisionId(wish.after)) throw unknownCursor('provision', wish.after);
  const { provisions, hasMore, cursor } = await pageOf(wish, deps);
  return c.json({
    provisions: provisions.map(ownView),
    first_id: provisions[0]?.id ?? '',
    // What the next page goes on after: with a filter it may lie behind the last one that is shown.
    last_id: hasMore ? cursor : (provisions.at(-1)?.id ?? ''),
    has_more: hasMore,
  });
}

interface Page {
  provisions: ProvisionRecord[];
  hasMore: boolean;
  cursor: string;
}

async function pageOf(wish: ListWish, deps: ProvisionsDeps): Promise<Page> {
  const { provisions } = deps.store;
  const matches = matcher(wish);
  if (wish.job_id !== '') {
    return pageAmong(isJobId(wish.job_id) ? await provisions.ofJob(wish.job_id) : [], wish, deps);
  }
  if (wish.status.length > 0 && !wish.status.includes('released')) {
    return pageAmong(await unreleased(deps), wish, deps);
  }
  const { after, limit } = wish;
  const place = after === '' ? { limit } : { limit, after };
  return provisions.page({ ...place, ...(matches && { matches }) });
}

/** Whether a provision is wanted; undefined without a filter. */
function matcher({ status, provider }: ListWish) {
  if (status.length === 0 && provider === '') return undefined;
  return (each: ProvisionRecord): boolean =>
    (status.length === 0 || status.includes(each.state)) &&
    (provider === '' || each.provider === provider);
}

/** There are as many as jobs have engines now, whatever there ever was. */
async function unreleased({ store: { provisions } }: ProvisionsDeps): Promise<ProvisionRecord[]> {
  const reads: Promise<ProvisionRecord | null>[] = [];
  for await (const id of provisions.unreleased()) {
    reads.push(provisions.get(id).catch(leaveOutDamaged));
  }
  return (await Promise.all(reads)).filter((record) => record !== null);
}

/** As lists of the store do; the sweeper reports it. */
function leaveOutDamaged(error: unknown): null {
  if (error instanceof SluiceError && error.code === 'store.damaged_record') return null;
  throw error;
}

/** A page of a few that are all known, newest first; what it goes on after may have left them meanwhile. */
async function pageAmong(
  all: readonly ProvisionRecord[],
  wish: ListWish,
  { store }: ProvisionsDeps,
): Promise<Page> {
  const last = wish.after === '' ? null : await store.provisions.get(wish.after);
  if (wish.after !== '' && last === null) throw unknownCursor('provision', wish.after);
  const found = all
    .filter(matcher(wish) ?? (() => true))
    .filter((each) => last === null || newestFirst(last, each) < 0)
    .toSorted(newestFirst);
  const page = found.slice(0, wish.limit);
  return { provisions: page, hasMore: found.length > wish.limit, cursor: page.at(-1)?.id ?? '' };
}

function newestFirst(one: ProvisionRecord, other: ProvisionRecord): number {
  if (one.createdAt !== other.createdAt) return other.createdAt - one.createdAt;
  return one.id === other.id ? 0 : one.id < other.id ? 1 : -1;
}

async function find(c: ApiContext, deps: ProvisionsDeps): Promise<ProvisionRecord> {
  const id = pathId(c);
  const provision = isProvisionId(id) ? await deps.store.provisions.get(id) : null;
  return provision ?? missing(id);
}

function missing(id: string): never {
  const message = `There is no provision '${id.slice(0, 100)}': GET /api/v1/provisions lists all.`;
  throw notFound('provision_not_found', message, { param: 'id' });
}

const CHOICE_RULE = `'rehome' (its job goes on with another provision) or 'end' (its job is cancelled, and keeps what was answered)`;
export const releaseSchema = exactObject({
  job: v.nullish(v.picklist([...RELEASE_CHOICES, ''], CHOICE_RULE)),
});

async function release(c: ApiContext, deps: ProvisionsDeps): Promise<Response> {
  const { job: choice } = parse(releaseSchema, snakeKeys(await readOptional(c.env.incoming), []));
  const { id, job } = await find(c, deps);
  const outcome = await deps.releaseProvision(id, choice || null);
  if (outcome === 'ask') {
    throw invalidInput(
      'release_choice_required',
      `Job '${job}' uses this provision and is not finished. Say what becomes of it with 'job': ${CHOICE_RULE}.`,
      { param: 'job' },
    );
  }
  return c.json(ownView(outcome ?? missing(id)));
}

/** A release of what no job uses needs no words, and so no body. */
async function readOptional(incoming: IncomingMessage): Promise<Record<string, unknown>> {
  const { 'content-length': length, 'transfer-encoding': encoding } = incoming.headers;
  if (encoding === undefined && (length === undefined || length === '0')) return {};
  return readJson(incoming);
}
