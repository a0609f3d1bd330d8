import * as v from 'valibot';
import { batchIdOf, isPaused, JOB_STATES } from '../../domain/job.ts';
import type { JobRecord } from '../../domain/job.ts';

const [DEFAULT_LIMIT, MAX_LIMIT] = [20, 100] as const;
const LIMIT_RULE = 'an integer';
const LONGEST_TEXT = 512;
const TEXT_RULE = `a text of at most ${LONGEST_TEXT} characters`;
const TIME_RULE =
  'unix seconds, or an ISO 8601 timestamp with its zone such as 2026-01-31T12:00:00Z or 2026-01-31T13:00:00+01:00';
/** Of what `Date.parse` takes only what means the same in every zone that this server may stand in. */
const TIMESTAMP = /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?:Z|[+-]\d{2}:\d{2})$/i;
/** States, and a word for jobs that somebody holds. */
const STATUSES = ['paused', ...JOB_STATES] as const;
const STATUS_RULE = `one or more of ${STATUSES.join(', ')}, with commas between`;

const text = v.optional(v.pipe(v.string(TEXT_RULE), v.maxLength(LONGEST_TEXT, TEXT_RULE)), '');

function milliseconds(given: string): number {
  if (/^\d{1,12}$/.test(given)) return Number(given) * 1_000;
  return TIMESTAMP.test(given) ? Date.parse(given) : Number.NaN;
}

const time = v.optional(
  v.pipe(
    v.string(TIME_RULE),
    v.transform(milliseconds),
    v.check((ms) => Number.isFinite(ms), TIME_RULE),
  ),
);

/** The Console API takes any number as a limit: none or less is the default, more than the most is the most. */
export const listSchema = v.object({
  after: v.optional(v.string(), ''),
  limit: v.optional(
    v.pipe(
      v.string(LIMIT_RULE),
      v.regex(/^-?\d{1,9}$/, LIMIT_RULE),
      v.transform((given) => Math.min(Number(given), MAX_LIMIT)),
      v.transform((limit) => (limit <= 0 ? DEFAULT_LIMIT : limit)),
    ),
    String(DEFAULT_LIMIT),
  ),
  status: v.optional(
    v.pipe(
      v.string(STATUS_RULE),
      v.transform((given) => given.split(',').filter((word) => word !== '')),
      v.array(v.picklist(STATUSES, STATUS_RULE)),
    ),
    '',
  ),
  model: text,
  owner: text,
  q: text,
  created_after: time,
  created_before: time,
});

type Filter = v.InferOutput<typeof listSchema>;

/** What a list takes only: jobs that match, created from `from` up to `to` (ms, both included). */
export interface JobChoice {
  from?: number | undefined;
  to?: number | undefined;
  matches?: (job: JobRecord) => boolean;
}

/** The filters of a list; without any, no record is looked at that is not shown. */
export function jobChoice(filter: Filter): JobChoice {
  const { created_after: from, created_before: before } = filter;
  const times = { from, to: before === undefined ? undefined : before - 1 };
  const isFiltered =
    filter.status.length > 0 || filter.model !== '' || filter.owner !== '' || filter.q !== '';
  return isFiltered ? { ...times, matches: (job) => matchesAll(job, filter) } : times;
}

function matchesAll(job: JobRecord, { status, model, owner, q }: Filter): boolean {
  if (status.length > 0 && !hasStatus(job, status)) return false;
  if (model !== '' && !modelsOf(job).includes(model)) return false;
  if (owner !== '' && job.options.owner.toLowerCase() !== owner.toLowerCase()) return false;
  return q === '' || hasText(job, q.toLowerCase());
}

function hasStatus(job: JobRecord, status: Filter['status']): boolean {
  return status.includes(job.state) || (status.includes('paused') && isPaused(job));
}

function modelsOf(job: JobRecord): readonly string[] {
  const { pinnedModel } = job.options;
  return pinnedModel === null ? job.models : [...job.models, pinnedModel];
}

function hasText(job: JobRecord, lower: string): boolean {
  const texts = [job.name, job.id, batchIdOf(job.id), ...Object.entries(job.metadata).flat()];
  return texts.some((each) => each.toLowerCase().includes(lower));
}
