import * as v from 'valibot';

/**
 * The answers of OpenAI's Files, Batches and Uploads, strictly: fields, types, words and what may be null are those of
 * OpenAI's own description of its API (2.3.0), written down anew and apart from the product's schemas, so that a
 * mistake there is not repeated here. A field is `optional` only where OpenAI leaves it out, and no other is allowed.
 */
const text = v.pipe(v.string(), v.nonEmpty());
const textOrNull = v.nullable(text);
const count = v.pipe(v.number(), v.integer(), v.minValue(0));
/** Seconds, not milliseconds: later than 2020, earlier than 2100. */
const time = v.pipe(v.number(), v.integer(), v.minValue(1_577_836_800), v.maxValue(4_102_444_800));
const timeOrNull = v.nullable(time);

export const openaiError = v.strictObject({
  error: v.strictObject({
    message: text,
    type: text,
    param: textOrNull,
    code: textOrNull,
  }),
});

export const openaiFile = v.strictObject({
  id: v.pipe(v.string(), v.startsWith('file-')),
  object: v.literal('file'),
  bytes: count,
  created_at: time,
  expires_at: v.optional(time),
  filename: text,
  purpose: v.picklist([
    'assistants',
    'assistants_output',
    'batch',
    'batch_output',
    'fine-tune',
    'fine-tune-results',
    'vision',
    'user_data',
  ]),
  status: v.picklist(['uploaded', 'processed', 'error']),
  status_details: v.optional(v.string()),
});

/** A page; the ids of an empty one are texts all the same. */
function page<Item extends v.GenericSchema>(item: Item) {
  return v.strictObject({
    object: v.literal('list'),
    data: v.array(item),
    first_id: v.string(),
    last_id: v.string(),
    has_more: v.boolean(),
  });
}

export const openaiFileList = page(openaiFile);

export const openaiDeletion = v.strictObject({
  id: text,
  object: v.literal('file'),
  deleted: v.literal(true),
});

const batchError = v.strictObject({
  code: text,
  message: text,
  param: textOrNull,
  line: v.nullable(v.pipe(count, v.minValue(1))),
});

const usage = v.strictObject({
  input_tokens: count,
  input_tokens_details: v.strictObject({ cached_tokens: count }),
  output_tokens: count,
  output_tokens_details: v.strictObject({ reasoning_tokens: count }),
  total_tokens: count,
});

export const openaiBatch = v.strictObject({
  id: v.pipe(v.string(), v.startsWith('batch_')),
  object: v.literal('batch'),
  endpoint: v.pipe(v.string(), v.startsWith('/v1/')),
  model: textOrNull,
  errors: v.nullable(
    v.strictObject({
      object: v.literal('list'),
      data: v.pipe(v.array(batchError), v.minLength(1)),
    }),
  ),
  input_file_id: text,
  completion_window: text,
  status: v.picklist([
    'validating',
    'failed',
    'in_progress',
    'finalizing',
    'completed',
    'expired',
    'cancelling',
    'cancelled',
  ]),
  output_file_id: textOrNull,
  error_file_id: textOrNull,
  created_at: time,
  in_progress_at: timeOrNull,
  expires_at: time,
  finalizing_at: timeOrNull,
  completed_at: timeOrNull,
  failed_at: timeOrNull,
  expired_at: timeOrNull,
  cancelling_at: timeOrNull,
  cancelled_at: timeOrNull,
  request_counts: v.strictObject({ total: count, completed: count, failed: count }),
  usage: v.nullable(usage),
  metadata: v.nullable(v.record(v.string(), v.string())),
});

export const openaiBatchList = page(openaiBatch);

const uploadEntries = {
  id: v.pipe(v.string(), v.startsWith('upload_')),
  object: v.literal('upload'),
  bytes: count,
  created_at: time,
  expires_at: time,
  filename: text,
  purpose: v.picklist(['assistants', 'batch', 'fine-tune', 'vision', 'user_data', 'evals']),
};

/** Only a completed upload has a file. */
export const openaiUpload = v.variant('status', [
  v.strictObject({ ...uploadEntries, status: v.literal('completed'), file: openaiFile }),
  v.strictObject({
    ...uploadEntries,
    status: v.picklist(['pending', 'cancelled', 'expired']),
    file: v.optional(v.null()),
  }),
]);

export const openaiUploadPart = v.strictObject({
  id: v.pipe(v.string(), v.startsWith('part_')),
  object: v.literal('upload.part'),
  created_at: time,
  upload_id: v.pipe(v.string(), v.startsWith('upload_')),
});
