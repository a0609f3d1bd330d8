import * as v from 'valibot';
import { invalidInput } from '../domain/errors.ts';
import type { SluiceError } from '../domain/errors.ts';
import type { SpendLimits } from '../domain/cost.ts';
import type { JobResources } from '../domain/lease.ts';
import { exactObject } from './body.ts';
import { flagField, textField } from './console/texts.ts';

/** Machines as a request asks for them; null, false or empty: it does not say. */
export interface ResourceWish
  extends
    SpendLimits,
    Pick<JobResources, 'regions' | 'gpuTypes' | 'interruptible' | 'maxPricePerHour'> {
  replicas: number | null;
  /** As the request names them: whether there is such a one is for whoever knows the settings. */
  providers: readonly string[];
}

/** That of a request that says nothing of machines. */
export const NO_WISH: ResourceWish = {
  replicas: null,
  providers: [],
  regions: [],
  gpuTypes: [],
  interruptible: false,
  maxPricePerHour: null,
  maxCostUsd: null,
  maxIdleMinutes: null,
};

const MOST_REPLICAS = 1_024;
const MOST_NAMES = 32;
const MOST_NAME = 128;
const REPLICAS_RULE = `an integer from 0 to ${MOST_REPLICAS}; 0 is as good as left out`;
const NAME_RULE = `a text of 1 to ${MOST_NAME} characters`;
const NAMES_RULE = `a list of at most ${MOST_NAMES} texts of 1 to ${MOST_NAME} characters`;
const PROVIDER_RULE = `the name of a provider, such as runpod, or ${NAMES_RULE}, in the order in which they are asked`;
const MONEY_RULE = 'US dollars, a number above 0 and at most 1000000; without a limit leave it out';
const MINUTES_RULE = 'a number of minutes above 0 and at most 10080; without a limit leave it out';

const nameSchema = v.pipe(
  v.string(NAME_RULE),
  v.nonEmpty(NAME_RULE),
  v.maxLength(MOST_NAME, NAME_RULE),
);

function namesField() {
  return v.nullish(
    v.pipe(v.array(nameSchema, NAMES_RULE), v.maxLength(MOST_NAMES, NAMES_RULE)),
    [],
  );
}

function above0(most: number, rule: string) {
  return v.nullish(v.pipe(v.number(rule), v.gtValue(0, rule), v.maxValue(most, rule)), null);
}

const replicasSchema = v.nullish(
  v.pipe(
    v.number(REPLICAS_RULE),
    v.integer(REPLICAS_RULE),
    v.minValue(0, REPLICAS_RULE),
    v.maxValue(MOST_REPLICAS, REPLICAS_RULE),
  ),
  0,
);

/** What a job may want of the machines that are leased for it, in the words of both interfaces. */
const FIELDS = {
  replicas: v.pipe(
    replicasSchema,
    v.description(
      'Machines that are leased, each with an engine; lines go to all of them. On a server of engines that run already ' +
        'as many as it has.',
    ),
  ),
  provider: v.pipe(
    v.nullish(v.union([v.string(), v.array(nameSchema)], PROVIDER_RULE), ''),
    v.description(
      'Who is asked for machines: one provider, or several in the order in which they are. Left out: those of ' +
        '`PROVISIONER`, in its order.',
    ),
    v.transform((names) => (typeof names === 'string' ? [names] : names)),
    v.transform((names) => [...new Set(names.filter((name) => name !== ''))]),
    v.maxLength(MOST_NAMES, PROVIDER_RULE),
  ),
  regions: v.pipe(
    namesField(),
    v.description('Where machines may be, as the provider spells it, best first. Empty: anywhere.'),
  ),
  gpu_types: v.pipe(
    namesField(),
    v.description(
      'GPUs that will do, best first, as the provider spells them or as people do (`H100`). Empty: ' +
        "`accelerator.type` of the template. Count and memory stay the template's.",
    ),
  ),
  interruptible: v.pipe(
    flagField(),
    v.description(
      'Machines will do that may be taken away in mid-use, which are cheaper: their unanswered lines go to the next one.',
    ),
  ),
  max_price_per_hour: v.pipe(
    above0(1_000_000, MONEY_RULE),
    v.description('The most that one machine may cost an hour, US dollars.'),
  ),
  max_cost_usd: v.pipe(
    above0(1_000_000, MONEY_RULE),
    v.description(
      'The most that all machines of the job may cost, US dollars. Before it is exceeded the job ends, its machines are ' +
        'given back, and what was answered is kept. Left out: `MAX_COST_USD` of the server.',
    ),
  ),
  max_idle_minutes: v.pipe(
    above0(10_080, MINUTES_RULE),
    v.description(
      'How long machines may be paid for without a line to answer. Left out: `MAX_IDLE_MINUTES` of the server.',
    ),
  ),
};

const CONFIG_RULE =
  'left out or empty: no provider reads it. What machines a job wants is said beside it: provider, regions, ' +
  'gpu_types, interruptible, max_price_per_hour';

/** The Console's `resource_request`. */
export const requestSchema = exactObject({
  ...FIELDS,
  provider_config: v.nullish(
    v.pipe(
      v.record(v.string(), v.unknown(), CONFIG_RULE),
      v.check((config) => Object.keys(config).length === 0, CONFIG_RULE),
    ),
  ),
});

const DETAILS_RULE =
  'a list of at most one, such as [{"gpu_type": "H100", "replica": 2}]: all machines of a job are alike';
const CLUSTER_RULE = 'left out or empty: where machines are leased is said in regions';
const PROVISION_RULE =
  'left out or empty: a server that leases machines records them itself. To use an engine that you provide, name it ' +
  'in aibrix.runtime';
const DEADLINE_RULE = 'left out or 0: how long a batch may take is said in completion_window';

/** `aibrix.resource_allocation`, in AIBrix's words and in ours. */
export const allocationSchema = exactObject({
  ...FIELDS,
  resource_details: v.pipe(
    v.nullish(
      v.pipe(
        v.array(
          exactObject({
            gpu_type: textField(MOST_NAME),
            replica: replicasSchema,
            endpoint_cluster: v.nullish(v.literal('', CLUSTER_RULE)),
          }),
          DETAILS_RULE,
        ),
        v.maxLength(1, DETAILS_RULE),
      ),
      [],
    ),
    v.description('The same as `gpu_types` with one GPU and `replicas`, in the words of AIBrix.'),
  ),
  provision_id: v.nullish(v.literal('', PROVISION_RULE)),
  provision_resource_deadline: v.nullish(v.literal(0, DEADLINE_RULE)),
});

type Fields = Pick<v.InferOutput<typeof requestSchema>, keyof typeof FIELDS>;

/** What a `resource_request` asks for; null where there is none. */
export function requestWish(fields: Fields | null | undefined): ResourceWish | null {
  if (!fields) return null;
  return {
    replicas: fields.replicas || null,
    providers: fields.provider,
    regions: fields.regions,
    gpuTypes: fields.gpu_types,
    interruptible: fields.interruptible,
    maxPricePerHour: fields.max_price_per_hour,
    maxCostUsd: fields.max_cost_usd,
    maxIdleMinutes: fields.max_idle_minutes,
  };
}

/** What a `resource_allocation` asks for; what it says in both its ways is invalid input. */
export function allocationWish(
  allocation: v.InferOutput<typeof allocationSchema> | null | undefined,
): ResourceWish | null {
  const wish = requestWish(allocation);
  const [detail] = allocation?.resource_details ?? [];
  if (wish === null || detail === undefined) return wish;
  const gpuTypes = detail.gpu_type === '' ? [] : [detail.gpu_type];
  const replicas = detail.replica || null;
  if (replicas !== null && wish.replicas !== null) throw saidTwice('replicas');
  if (gpuTypes.length > 0 && wish.gpuTypes.length > 0) throw saidTwice('gpu_types');
  return {
    ...wish,
    replicas: replicas ?? wish.replicas,
    gpuTypes: [...gpuTypes, ...wish.gpuTypes],
  };
}

function saidTwice(field: string): SluiceError {
  const param = `aibrix.resource_allocation.${field}`;
  const message = `'${param}' and resource_details say the same thing twice: leave one of them out.`;
  return invalidInput('invalid_value', message, { param });
}
