import * as v from 'valibot';
import { FILE_PURPOSES } from '../../domain/file.ts';

/** What the answers of OpenAI's interface look like, for its description: nothing is parsed with these here. */
const text = v.string();
const count = v.pipe(v.number(), v.integer(), v.minValue(0));
const time = v.pipe(v.number(), v.integer(), v.metadata({ description: 'Unix seconds.' }));
const timeOrNull = v.nullable(time);
const textOrNull = v.nullable(text);

/** A page of a list; ids of an empty one are empty. */
function pageSchema<Item extends v.GenericSchema>(item: Item) {
  return v.object({
    object: v.literal('list'),
    data: v.array(item),
    first_id: text,
    last_id: text,
    has_more: v.boolean(),
  });
}

export const errorSchema = v.object({
  error: v.object({
    message: v.pipe(text, v.description('What is wrong, and what would mend it.')),
    type: v.picklist([
      'invalid_request_error',
      'not_found_error',
      'rate_limit_error',
      'server_error',
    ]),
    param: v.nullable(v.pipe(text, v.description('The field of the request that is at fault.'))),
    code: textOrNull,
  }),
});

export const fileSchema = v.object({
  id: text,
  object: v.literal('file'),
  bytes: count,
  created_at: time,
  expires_at: v.optional(time),
  filename: text,
  purpose: v.picklist(FILE_PURPOSES),
  status: v.picklist(['uploaded', 'processed', 'error']),
  location: v.optional(
    v.pipe(text, v.description("URL of its bytes where they lie in a bucket of the user's.")),
  ),
});

export const fileListSchema = pageSchema(fileSchema);

/** Ours, beside OpenAI's: an address at the store itself. */
export const fileLinkSchema = v.object({
  id: text,
  object: v.literal('file.link'),
  url: text,
  expires_at: v.pipe(v.number(), v.integer()),
});

export const deletedFileSchema = v.object({
  id: text,
  object: v.literal('file'),
  deleted: v.boolean(),
});

const BATCH_STATUSES = [
  'validating',
  'failed',
  'in_progress',
  'finalizing',
  'completed',
  'expired',
  'cancelling',
  'cancelled',
] as const;

const batchErrorSchema = v.object({
  code: text,
  message: text,
  param: textOrNull,
  line: v.nullable(v.pipe(count, v.description('Line of the input file, from 1.'))),
});

const usageSchema = v.object({
  input_tokens: count,
  input_tokens_details: v.object({ cached_tokens: count }),
  output_tokens: count,
  output_tokens_details: v.object({ reasoning_tokens: count }),
  total_tokens: count,
});

export const countsSchema = v.object({ total: count, completed: count, failed: count });

export const batchSchema = v.object({
  id: text,
  object: v.literal('batch'),
  endpoint: text,
  model: v.nullable(v.pipe(text, v.description('Where all lines ask the same one.'))),
  errors: v.nullable(v.object({ object: v.literal('list'), data: v.array(batchErrorSchema) })),
  input_file_id: text,
  completion_window: text,
  status: v.picklist(BATCH_STATUSES),
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
  request_counts: countsSchema,
  usage: v.nullable(usageSchema),
  metadata: v.nullable(v.record(text, text)),
});

export const batchListSchema = pageSchema(batchSchema);

const UPLOAD_STATUSES = ['pending', 'completed', 'cancelled', 'expired'] as const;

export const uploadSchema = v.object({
  id: text,
  object: v.literal('upload'),
  bytes: count,
  created_at: time,
  expires_at: time,
  filename: text,
  purpose: v.picklist(FILE_PURPOSES),
  status: v.picklist(UPLOAD_STATUSES),
  file: v.optional(v.nullable(fileSchema)),
});

export const uploadPartSchema = v.object({
  id: text,
  object: v.literal('upload.part'),
  created_at: time,
  upload_id: text,
});
