/** One Prometheus histogram; `counts` has one more cell than `bounds`, for +Inf. */
interface Histogram {
  help: string;
  bounds: readonly number[];
  counts: number[];
  sum: number;
}

/** What vLLM's scheduler reports at the moment of a scrape. */
export interface SchedulerStats {
  running: number;
  waiting: number;
  kvUsage: number;
  numGpuBlocks: number;
  dead: boolean;
}

// Bounds of vllm/v1/metrics/loggers.py (PrometheusStatLogger).
const LATENCY = [
  0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
];
const FIRST_TOKEN = [
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
  160, 640, 2560,
];
const PER_TOKEN = [
  0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
];
const TOKENS = [
  1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000,
];
const PREEMPTIONS = [1, 2, 3, 4, 5, 10, 20];
const CHOICES = [1, 2, 5, 10, 20];
const ITERATION = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384];

const HISTOGRAMS = {
  'vllm:iteration_tokens_total': ['Histogram of number of tokens per engine_step.', ITERATION],
  'vllm:request_prompt_tokens': ['Number of prefill tokens processed.', TOKENS],
  'vllm:request_generation_tokens': ['Number of generation tokens processed.', TOKENS],
  'vllm:time_to_first_token_seconds': ['Histogram of time to first token in seconds.', FIRST_TOKEN],
  'vllm:inter_token_latency_seconds': ['Histogram of inter-token latency in seconds.', PER_TOKEN],
  'vllm:request_time_per_output_token_seconds': [
    'Histogram of time_per_output_token_seconds per request.',
    PER_TOKEN,
  ],
  'vllm:e2e_request_latency_seconds': ['Histogram of e2e request latency in seconds.', LATENCY],
  'vllm:request_queue_time_seconds': [
    'Histogram of time spent in WAITING phase for request.',
    LATENCY,
  ],
  'vllm:request_inference_time_seconds': [
    'Histogram of time spent in RUNNING phase for request.',
    LATENCY,
  ],
  'vllm:request_prefill_time_seconds': [
    'Histogram of time spent in PREFILL phase for request.',
    LATENCY,
  ],
  'vllm:request_decode_time_seconds': [
    'Histogram of time spent in DECODE phase for request.',
    LATENCY,
  ],
  'vllm:request_num_preemptions': [
    'Histogram of the number of times a request was preempted.',
    PREEMPTIONS,
  ],
  'vllm:request_params_n': ['Histogram of the n request parameter.', CHOICES],
  'vllm:request_params_max_tokens': ['Histogram of the max_tokens request parameter.', TOKENS],
  'vllm:request_max_num_generation_tokens': [
    'Histogram of maximum number of requested generation tokens.',
    TOKENS,
  ],
} as const;

export type HistogramName = keyof typeof HISTOGRAMS;
export type FinishedReason = 'stop' | 'length' | 'abort' | 'error';

/** Counters of vllm/v1/metrics/loggers.py, as plain numbers because the hot path adds to them. */
export interface Counters {
  preemptions: number;
  promptTokens: number;
  promptTokensCached: number;
  generationTokens: number;
  prefixQueries: number;
  prefixHits: number;
  admissionRejections: number;
  success: Record<FinishedReason, number>;
}

export interface Metrics {
  counters: Counters;
  observe(name: HistogramName, value: number): void;
  /** Prometheus text, as vLLM's `/metrics` (vllm/entrypoints/serve/instrumentator/metrics.py). */
  render(stats: SchedulerStats): string;
}

export interface MetricsOptions {
  model: string;
  /** Seconds since the epoch, for the `_created` series that prometheus_client adds. */
  startedAt: number;
  /** Its older name in vLLM, `vllm:gpu_cache_usage_perc`: a reader must know both. */
  oldNames: boolean;
}

function number(value: number): string {
  return Number.isInteger(value) ? `${value}.0` : String(value); // as Python prints floats
}

function createHistograms(): Map<HistogramName, Histogram> {
  const all = new Map<HistogramName, Histogram>();
  for (const [name, [help, bounds]] of Object.entries(HISTOGRAMS)) {
    const counts = Array.from({ length: bounds.length + 1 }, () => 0);
    // Object.entries widens the keys of a constant table to string.
    all.set(name as HistogramName, { help, bounds, counts, sum: 0 });
  }
  return all;
}

/** Counters at zero, under the labels that vLLM gives its one engine. */
export function createMetrics({ model, startedAt, oldNames }: MetricsOptions): Metrics {
  const label = `engine="0",model_name=${JSON.stringify(model)}`;
  const histograms = createHistograms();
  const counters: Counters = {
    preemptions: 0,
    promptTokens: 0,
    promptTokensCached: 0,
    generationTokens: 0,
    prefixQueries: 0,
    prefixHits: 0,
    admissionRejections: 0,
    success: { stop: 0, length: 0, abort: 0, error: 0 },
  };

  function gauge(name: string, help: string, series: readonly [string, number][]): string {
    const lines = series.map(([labels, value]) => `${name}{${labels}} ${number(value)}\n`);
    return `# HELP ${name} ${help}\n# TYPE ${name} gauge\n${lines.join('')}`;
  }

  function counter(name: string, help: string, series: readonly [string, number][]): string {
    const lines = series.map(([labels, value]) => `${name}_total{${labels}} ${number(value)}\n`);
    const created = series.map(([labels]) => [labels, startedAt] as const);
    return (
      `# HELP ${name}_total ${help}\n# TYPE ${name}_total counter\n${lines.join('')}` +
      gauge(`${name}_created`, help, created as [string, number][])
    );
  }

  function histogram(name: string, { help, bounds, counts, sum }: Histogram): string {
    let below = 0;
    const lines = counts.map((cell, i) => {
      below += cell;
      const bound = bounds[i];
      const le = bound === undefined ? '+Inf' : number(bound);
      return `${name}_bucket{${label},le="${le}"} ${number(below)}\n`;
    });
    lines.push(`${name}_count{${label}} ${number(below)}\n${name}_sum{${label}} ${number(sum)}\n`);
    const created = gauge(`${name}_created`, help, [[label, startedAt]]);
    return `# HELP ${name} ${help}\n# TYPE ${name} histogram\n${lines.join('')}${created}`;
  }

  function gauges(stats: SchedulerStats): string {
    const usage = oldNames ? 'vllm:gpu_cache_usage_perc' : 'vllm:kv_cache_usage_perc';
    const running = 'Number of requests in model execution batches.';
    const waiting = 'Number of requests waiting to be processed.';
    const info = `block_size="16",engine="0",num_gpu_blocks="${stats.numGpuBlocks}"`;
    return [
      gauge('vllm:num_requests_running', running, [[label, stats.running]]),
      gauge('vllm:num_requests_waiting', waiting, [[label, stats.waiting]]),
      // Its name begins with the one above: a reader that matches prefixes sums both.
      gauge('vllm:num_requests_waiting_by_reason', waiting, [
        [`${label},reason="capacity"`, stats.waiting],
        [`${label},reason="deferred"`, 0],
      ]),
      gauge('vllm:engine_sleep_state', 'Engine sleep state.', [
        [`${label},sleep_state="awake"`, stats.dead ? 0 : 1],
      ]),
      gauge(usage, 'KV-cache usage. 1 means 100 percent usage.', [[label, stats.kvUsage]]),
      gauge('vllm:cache_config_info', 'Information of the LLMEngine CacheConfig', [[info, 1]]),
    ].join('');
  }

  return {
    counters,
    observe(name, value) {
      const found = histograms.get(name);
      if (found === undefined) return;
      const { bounds, counts } = found;
      let cell = 0;
      while (cell < bounds.length && value > (bounds[cell] ?? 0)) cell += 1;
      counts[cell] = (counts[cell] ?? 0) + 1;
      found.sum += Math.max(0, value); // a token of a late step may carry a time before its request
    },
    render(stats) {
      const c = counters;
      const one = (name: string, help: string, value: number): string =>
        counter(name, help, [[label, value]]);
      const reasons = Object.entries(c.success);
      const success = reasons.map(([reason, n]): [string, number] => [
        `${label},finished_reason="${reason}"`,
        n,
      ]);
      return [
        gauges(stats),
        one('vllm:prefix_cache_queries', 'Prefix cache queries, in tokens.', c.prefixQueries),
        one('vllm:prefix_cache_hits', 'Prefix cache hits, in tokens.', c.prefixHits),
        // Zero without a KV connector and without images, but there all the same (vLLM 0.32.0, seen).
        one('vllm:external_prefix_cache_queries', 'External prefix cache queries, in tokens.', 0),
        one('vllm:external_prefix_cache_hits', 'External prefix cache hits, in tokens.', 0),
        one('vllm:mm_cache_queries', 'Multi-modal cache queries, in items.', 0),
        one('vllm:mm_cache_hits', 'Multi-modal cache hits, in items.', 0),
        one('vllm:num_preemptions', 'Cumulative number of preemptions.', c.preemptions),
        one('vllm:prompt_tokens', 'Number of prefill tokens processed.', c.promptTokens),
        one('vllm:prompt_tokens_cached', 'Number of cached prompt tokens.', c.promptTokensCached),
        one('vllm:generation_tokens', 'Number of generation tokens.', c.generationTokens),
        counter('vllm:request_success', 'Count of successfully processed requests.', success),
        counter('vllm:admission_rejections', 'Number of admission attempts rejected.', [
          [`${label},reason="max_num_queued_reqs"`, c.admissionRejections],
        ]),
        ...[...histograms].map(([name, found]) => histogram(name, found)),
      ].join('');
    },
  };
}
