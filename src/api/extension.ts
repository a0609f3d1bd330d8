import * as v from 'valibot';
import { exactObject } from './body.ts';
import { clientSchema, clientWish } from './client.ts';
import { runtimeSchema, runtimeWish } from './engines.ts';
import { isJobId } from './ids.ts';
import { outputPrefixSchema, outputWish } from './places.ts';
import { allocationSchema, allocationWish } from './resource-wish.ts';
import { prioritySchema, validationSchema } from './submit.ts';
import type { JobWish } from './submit.ts';
import { webhookSchema } from './webhook-target.ts';

const JOB_ID_RULE = "'job_' and 1 to 100 letters and digits after it";
const NAME_RULE = 'a text of 1 to 512 characters';

const nameSchema = v.pipe(v.string(NAME_RULE), v.nonEmpty(NAME_RULE), v.maxLength(512, NAME_RULE));

/** The `aibrix` key of a batch (`extra_body.aibrix` in OpenAI's clients): each of its keys has an effect or is refused. */
export const aibrixSchema = exactObject({
  job_id: v.nullish(v.pipe(v.string(JOB_ID_RULE), v.check(isJobId, JOB_ID_RULE))),
  model: v.nullish(nameSchema),
  model_template: v.nullish(
    exactObject({ name: nameSchema, version: v.nullish(v.string(NAME_RULE)) }),
  ),
  client: v.nullish(clientSchema),
  runtime: v.nullish(runtimeSchema),
  webhook: webhookSchema,
  validation: validationSchema,
  priority: prioritySchema,
  output_prefix: outputPrefixSchema,
  resource_allocation: v.nullish(allocationSchema),
});

type Extension = v.InferOutput<typeof aibrixSchema> | null | undefined;

/** What the extension asks for beside the batch itself. */
export function aibrixWish(extension: Extension): Pick<
  JobWish,
  | 'jobId'
  | 'maxConcurrency'
  | 'engines'
  | 'machine'
  | 'cluster'
  | 'template'
  | 'model'
  | 'output'
  | 'resources'
> & {
  options: JobWish['options'];
} {
  const { job_id: jobId, model, model_template: template, client, runtime } = extension ?? {};
  const { validation, priority } = extension ?? {};
  const wish = clientWish(client);
  const resources = allocationWish(extension?.resource_allocation);
  return {
    maxConcurrency: wish.maxConcurrency,
    ...(runtime ? runtimeWish(runtime, 'aibrix.runtime.options') : { engines: [] }),
    options: {
      ...wish.options,
      ...(validation ? { validation } : {}),
      ...(priority ? { priority } : {}),
    },
    ...outputWish(extension?.output_prefix, 'aibrix.output_prefix'),
    ...(jobId ? { jobId } : {}),
    ...(resources === null ? {} : { resources }),
    ...(model ? { model: { name: model, param: 'aibrix.model' } } : {}),
    ...templateWish(template),
  };
}

function templateWish(
  template: NonNullable<Extension>['model_template'],
): Pick<JobWish, 'template'> {
  if (!template) return {};
  const { name, version } = template;
  return {
    template: { name, ...(version ? { version } : {}), param: 'aibrix.model_template' },
  };
}
