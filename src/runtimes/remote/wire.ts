import * as v from 'valibot';
import { REMOTE_ENDS } from '../../domain/remote.ts';
import type { RemoteLook } from '../../domain/remote.ts';

const count = v.nullish(v.number(), 0);
const text = v.nullish(v.string(), null);

const usage = v.object({
  input_tokens: count,
  output_tokens: count,
  input_tokens_details: v.nullish(v.object({ cached_tokens: count })),
  output_tokens_details: v.nullish(v.object({ reasoning_tokens: count })),
});

const error = v.object({
  code: text,
  message: text,
  param: text,
  line: v.nullish(v.number(), null),
});

/** A batch as far as it is read. Some services leave out what is null, and counts while they know of no line. */
export const batchSchema = v.object({
  id: v.pipe(v.string(), v.nonEmpty()),
  status: v.string(),
  created_at: count,
  output_file_id: text,
  error_file_id: text,
  request_counts: v.nullish(v.object({ completed: count, failed: count })),
  usage: v.nullish(usage),
  errors: v.nullish(v.object({ data: v.nullish(v.array(error)) })),
  // Values that are no text are nobody's job id.
  metadata: v.nullish(v.record(v.string(), v.unknown())),
});
export type WireBatch = v.InferOutput<typeof batchSchema>;

export const fileSchema = v.object({
  id: v.pipe(v.string(), v.nonEmpty()),
  bytes: v.nullish(v.number(), null),
  filename: text,
});

/** A page of a list. */
export function pageSchema<Item extends v.GenericSchema>(item: Item) {
  return v.object({ data: v.array(item), has_more: v.nullish(v.boolean(), false) });
}

/** OpenAI's error body, and what FastAPI says of a body that does not fit. */
export const refusalSchema = v.union([
  v.object({ error: v.object({ message: v.string() }) }),
  v.object({
    detail: v.array(v.object({ loc: v.array(v.union([v.string(), v.number()])), msg: v.string() })),
  }),
  v.object({ detail: v.string() }),
]);

export function lookOf(batch: WireBatch): RemoteLook {
  const ended = REMOTE_ENDS.find((end) => end === batch.status);
  const files = { output: batch.output_file_id, error: batch.error_file_id };
  return {
    id: batch.id,
    status: batch.status,
    end: ended === undefined ? null : { status: ended, ...files },
    completed: batch.request_counts?.completed ?? 0,
    failed: batch.request_counts?.failed ?? 0,
    usage: batch.usage ? usageOf(batch.usage) : null,
    errors: (batch.errors?.data ?? []).map(({ code, message, param, line }) => ({
      code: code ?? 'remote.failed',
      message: message ?? 'The remote service does not say why.',
      param,
      line,
    })),
  };
}

function usageOf(used: v.InferOutput<typeof usage>) {
  return {
    inputTokens: used.input_tokens,
    cachedTokens: used.input_tokens_details?.cached_tokens ?? 0,
    outputTokens: used.output_tokens,
    reasoningTokens: used.output_tokens_details?.reasoning_tokens ?? 0,
  };
}
