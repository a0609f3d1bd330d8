import * as v from 'valibot';
import { exactObject, parse } from '../../api/body.ts';
import { clientSchema, clientWish } from '../../api/client.ts';
import { isJobId } from '../../api/ids.ts';
import { outputPrefixSchema, outputWish } from '../../api/places.ts';
import type { JobOptions } from '../../domain/job.ts';

const JOB_ID_RULE = "'job_' and 1 to 100 letters and digits after it";
const NAME_RULE = 'a text of 1 to 512 characters';
const DEADLINE_RULE = 'a time in unix seconds, or 0: none';

/** What a control plane has decided before there was a Job: a worker finds itself in the middle of it. */
const decided = v.optional(v.unknown());

/** The `aibrix` extension as an annotation has it: what it says of the lines holds, what it says of machines has happened. */
const extension = exactObject({
  job_id: v.nullish(v.pipe(v.string(JOB_ID_RULE), v.check(isJobId, JOB_ID_RULE))),
  model: v.nullish(v.pipe(v.string(NAME_RULE), v.nonEmpty(NAME_RULE), v.maxLength(512, NAME_RULE))),
  client: v.nullish(clientSchema),
  validation: v.nullish(v.picklist(['strict', 'lenient'], 'one of strict, lenient')),
  output_prefix: outputPrefixSchema,
  resource_allocation: v.nullish(
    v.looseObject({
      provision_resource_deadline: v.nullish(
        v.pipe(v.number(DEADLINE_RULE), v.integer(DEADLINE_RULE), v.minValue(0, DEADLINE_RULE)),
      ),
    }),
  ),
  runtime: decided,
  model_template: decided,
  profile: decided,
  webhook: decided,
  priority: decided,
});

/** What the extension asks of a worker. */
export interface ExtensionWish {
  jobId: string | null;
  pinnedModel: string | null;
  isLenient: boolean;
  maxConcurrency: number | null;
  options: Partial<JobOptions>;
  /** URL of a folder, with a slash at its end. */
  outputPrefix: string | null;
  /** When the machines have to be given back, ms; it takes the place of the completion window. */
  deadline: number | null;
}

/** Throws InvalidInput with the field that is wrong and what is allowed. */
export function extensionWish(value: Record<string, unknown> | null): ExtensionWish {
  const found = parse(extension, value ?? {});
  const { maxConcurrency, options } = clientWish(found.client);
  const deadline = found.resource_allocation?.provision_resource_deadline ?? 0;
  return {
    jobId: found.job_id ?? null,
    pinnedModel: found.model ?? null,
    isLenient: found.validation === 'lenient',
    maxConcurrency,
    options,
    outputPrefix: outputWish(found.output_prefix, 'output_prefix').output?.url ?? null,
    deadline: deadline === 0 ? null : deadline * 1_000,
  };
}
