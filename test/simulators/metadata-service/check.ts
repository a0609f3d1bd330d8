import * as v from 'valibot';

const positive = v.pipe(v.number(), v.integer(), v.minValue(1));
const loose = v.looseObject({});

const retryPolicy = v.strictObject({
  max_retries: v.optional(v.number()),
  base_delay_seconds: v.optional(v.number()),
  max_delay_seconds: v.optional(v.number()),
  no_endpoint_max_retries: v.optional(v.number()),
});

/** Keys that it does not know are refused, at every level but those of runtime and allocation. */
const aibrix = v.strictObject({
  job_id: v.optional(v.string()),
  model: v.optional(v.string()),
  runtime: v.optional(v.object({ target: v.string(), options: v.optional(loose) })),
  resource_allocation: v.optional(loose),
  model_template: v.optional(
    v.strictObject({
      name: v.string(),
      version: v.optional(v.string()),
      spec: v.optional(loose),
      overrides: v.optional(loose),
    }),
  ),
  profile: v.optional(loose),
  client: v.optional(
    v.strictObject({
      max_concurrency: v.optional(v.pipe(positive, v.maxValue(1_024))),
      request_timeout_seconds: v.optional(positive),
      adaptive_concurrency: v.optional(v.boolean()),
      adaptive_max_factor: v.optional(v.number()),
      adaptive_healthy_window: v.optional(positive),
      adaptive_additive_increase: v.optional(positive),
      retry_policy: v.optional(retryPolicy),
    }),
  ),
});

/** What a batch may be created with; other keys beside these are ignored. */
const createBody = v.object({
  input_file_id: v.string(),
  endpoint: v.picklist(['/v1/chat/completions', '/v1/embeddings', '/v1/completions', '/v1/rerank']),
  completion_window: v.optional(
    v.pipe(v.string(), v.regex(/^(?=.)(\d+d)?(\d+h)?(\d+(min|m))?$/)),
    '24h',
  ),
  metadata: v.optional(
    v.pipe(
      v.record(v.string(), v.string()),
      v.check((pairs) => Object.keys(pairs).length <= 16),
    ),
  ),
  aibrix: v.optional(aibrix),
});

const TARGETS = ['External', 'Kubernetes', 'KubernetesJob', 'LambdaCloud', 'RunPod', 'noop'];

/** The status and body with which a create is refused; null: it is not. */
export function refuseCreate(body: unknown): { status: number; body: object } | null {
  const parsed = v.safeParse(createBody, body);
  if (!parsed.success) {
    const detail = parsed.issues.map((issue) => ({
      type: issue.type,
      loc: ['body', ...(v.getDotPath(issue)?.split('.') ?? [])],
      msg: issue.message,
    }));
    return { status: 422, body: { detail } };
  }
  const target = parsed.output.aibrix?.runtime?.target;
  if (target === undefined || TARGETS.includes(target)) return null;
  const message = `aibrix.runtime.target '${target}' is not a known runtime target. Valid: [${TARGETS.map((each) => `'${each}'`).join(', ')}]`;
  return { status: 400, body: apiError(message) };
}

export function apiError(message: string): object {
  return { error: { message, type: 'invalid_request_error', param: null, code: null } };
}
