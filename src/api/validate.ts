import { SluiceError } from '../domain/errors.ts';
import type { Estimate } from '../domain/estimate.ts';
import { DEFAULT_OPTIONS } from '../domain/job.ts';
import type { JobError, JobOptions } from '../domain/job.ts';
import type { LineRules } from '../domain/plan.ts';
import type { Offer } from '../resources/contract.ts';
import { clientClosed } from './body.ts';
import type { Leases } from '../store/leases.ts';
import type { CatalogDeps } from './console/catalog.ts';
import { JOB_FIELDS, readWish as readJobWish } from './console/jobs.ts';
import type { JobsDeps } from './console/jobs.ts';
import { cheapestOffer, costView } from './cost-estimate.ts';
import { BATCH_FIELDS, readWish as readBatchWish } from './openai/batches.ts';
import type { BatchesDeps } from './openai/batches.ts';
import type { ApiContext, Route } from './routes.ts';
import { checkWish } from './submit.ts';
import type { FieldNames, JobWish } from './submit.ts';

/** Each reads a whole input, so that more at once would only make each other and every other request late. */
const MOST_AT_ONCE = 2;
const COME_BACK_MS = 2_000;

export interface ValidateDeps extends BatchesDeps, JobsDeps, CatalogDeps {
  store: BatchesDeps['store'] & JobsDeps['store'] & { leases: Pick<Leases, 'speeds'> };
  /** Reads an input as planning would and records nothing. Rejects with the signal's reason once that is aborted. */
  inspectInput(key: string, rules: LineRules, signal: AbortSignal): Promise<Inspection>;
}

/** What one pass over an input found. */
export interface Inspection {
  lines: number;
  bad: number;
  models: string[];
  problems: JobError[];
  total: number;
  unfit: JobError | null;
  estimate: Estimate;
}

/** Dry runs: the same bodies as for creating, and an answer that says what would come of it; nothing is created. */
export function validateRoutes(deps: ValidateDeps): Route[] {
  let running = 0;

  async function validate(c: ApiContext, wish: JobWish, fields: FieldNames): Promise<Response> {
    const { rules, key, bytes, resources } = await checkWish(deps, wish, fields);
    if (running >= MOST_AT_ONCE) throw tooMany();
    running += 1;
    try {
      const [found, offers] = await whileConnected(c, (signal) =>
        Promise.all([deps.inspectInput(key, rules, signal), offersFor(wish, deps)]),
      );
      if (resources === null || resources.machine !== undefined) {
        const warnings = modelWarnings(found.models, offers, validationOf(wish.options));
        return c.json(validationView(wish, bytes, found, { warnings, cost: null }));
      }
      const { offer, warning } = cheapestOffer(resources, offers);
      const speeds = await deps.store.leases.speeds(resources.templateId);
      const measured = speeds.get(offer?.type ?? '') ?? null;
      const cost = offer === null ? null : costView(resources, found, offer, measured);
      const warnings = warning === null ? [] : [warning];
      return c.json(validationView(wish, bytes, found, { warnings, cost }));
    } finally {
      running -= 1;
    }
  }

  return [
    {
      path: '/v1/batches/validate',
      post: async (c) => validate(c, await readBatchWish(c, deps), BATCH_FIELDS),
    },
    {
      path: '/api/v1/jobs/validate',
      post: async (c) => validate(c, await readJobWish(c, deps), JOB_FIELDS),
    },
  ];
}

function tooMany(): SluiceError {
  return new SluiceError(
    'NoCapacity',
    'too_many_validations',
    `This server validates ${MOST_AT_ONCE} inputs at once, and is at it: try again in a moment.`,
    { retryAfterMs: COME_BACK_MS },
  );
}

/** Works for a client that waits; one that hangs up ends the work. */
async function whileConnected<T>(
  c: ApiContext,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const hungUp = new AbortController();
  const { outgoing } = c.env;
  function stop(): void {
    hungUp.abort(clientClosed());
  }
  outgoing.once('close', stop);
  if (outgoing.closed) stop();
  try {
    return await work(hungUp.signal);
  } finally {
    outgoing.off('close', stop);
  }
}

/** What the job could run on, as the catalog knows it; nothing where it names its own engines, which nobody asks. */
async function offersFor(
  { engines, machine }: JobWish,
  { catalog }: CatalogDeps,
): Promise<readonly Offer[]> {
  return engines.length > 0 || machine !== undefined ? [] : catalog.offers();
}

/** Something that may keep a batch waiting or end it, and is no reason to refuse it: engines come and go. */
export interface Warning {
  code: string;
  message: string;
  param: string | null;
}

/** Models that no engine serves. */
function modelWarnings(
  models: readonly string[],
  offers: readonly Offer[],
  validation: JobOptions['validation'],
): Warning[] {
  if (offers.length === 0) return [];
  const silent = offers.filter(({ error }) => error !== '').length;
  if (silent === offers.length) {
    const message = `None of the ${silent} engines of this server answers now: a batch would wait for one. GET /api/v1/catalog says what is wrong.`;
    return [{ code: 'no_engine_answers', message, param: null }];
  }
  const served = new Set(offers.flatMap((offer) => offer.models));
  const missing = models.filter((model) => !served.has(model));
  const isOthers = missing.length < models.length;
  const fate =
    silent === 0
      ? fateOf(validation, isOthers)
      : `its lines would wait for one that does while an engine is silent: ${silent} of ${offers.length} engines did not answer`;
  const known = clip([...served].join(', '));
  return missing.map((model) => ({
    code: 'model_not_served',
    message: `No engine serves the model '${clip(model)}' now: ${fate}. Served are: ${known}.`,
    param: 'body.model',
  }));
}

/** What becomes of a job whose engines all answer, of which none serves a model; `isOthers`: they serve another one. */
function fateOf(validation: JobOptions['validation'], isOthers: boolean): string {
  const unless = 'unless one does within 30 s,';
  return validation === 'lenient' && isOthers
    ? `${unless} its lines fail and go to the error file, while the others are asked`
    : `${unless} the job ends as submit_failed (its batch as failed)`;
}

/** Whether one bad line fails what is asked for. */
function validationOf({ validation }: JobWish['options']): JobOptions['validation'] {
  return validation ?? DEFAULT_OPTIONS.validation;
}

function clip(text: string): string {
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}

/** What would become of a batch over this input. */
export function validationView(
  { input, endpoint, options }: Pick<JobWish, 'input' | 'endpoint' | 'options'>,
  bytes: number,
  found: Inspection,
  { warnings, cost }: { warnings: readonly Warning[]; cost: ReturnType<typeof costView> | null },
) {
  const validation = validationOf(options);
  const { inputTokens, maxOutputTokens, unlimited } = found.estimate;
  return {
    object: 'batch.validation',
    valid: validation === 'strict' ? found.total === 0 : found.unfit === null,
    validation,
    input_file_id: input,
    endpoint,
    bytes,
    total_lines: found.lines,
    bad_lines: found.bad,
    problems: { object: 'list', data: found.problems, total: found.total },
    warnings: { object: 'list', data: warnings },
    models: found.models,
    estimated_input_tokens: inputTokens,
    estimate_basis: 'bytes of text / 4',
    max_output_tokens: maxOutputTokens,
    lines_without_output_limit: unlimited,
    cost_estimate: cost,
  };
}
