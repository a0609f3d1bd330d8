import { ENDPOINTS } from '../../domain/job.ts';
import { MAX_MODELS } from '../../domain/plan.ts';
import type { Provider } from '../../domain/provision.ts';
import { MOST_CONCURRENCY } from '../client.ts';
import type { Route } from '../routes.ts';
import type { SubmitDeps } from '../submit.ts';

export interface ConfigDeps {
  /** Where engines come from. */
  provider: Provider;
  limits: {
    maxFileBytes: number;
    maxBatchFileBytes: number;
    maxBatchLines: number;
    maxLineBytes: number;
  };
  defaults: SubmitDeps['defaults'];
}

/** What a page has to know before it offers to create a job; `/health` says only that this process answers. */
export function configRoutes(deps: ConfigDeps): Route[] {
  return [
    { path: '/api/v1/health', get: (c) => c.json({ status: 'ok' }) },
    { path: '/api/v1/config/job-capabilities', get: (c) => c.json(capabilities(deps)) },
  ];
}

function capabilities({ provider, limits, defaults }: ConfigDeps) {
  return {
    resource_request: resourcesOf(defaults),
    provider,
    providers: defaults.providers.length > 0 ? defaults.providers : [provider],
    default_template: defaults.defaultTemplate ?? '',
    endpoints: ENDPOINTS,
    validation_modes: ['strict', 'lenient'],
    completion_window: { default: '24h', longest: '365d' },
    client: { default_max_concurrency: defaults.maxConcurrency, max_concurrency: MOST_CONCURRENCY },
    limits: {
      max_file_bytes: limits.maxFileBytes,
      max_input_bytes: limits.maxBatchFileBytes,
      max_requests: limits.maxBatchLines,
      max_line_bytes: limits.maxLineBytes,
      max_models: MAX_MODELS,
      max_metadata_pairs: 16,
    },
  };
}

/** Engines that are there already are what every job gets, neither more nor fewer. */
function resourcesOf({ providers, mostReplicas, engineUrls, spend }: ConfigDeps['defaults']) {
  const there = Math.max(1, engineUrls.length);
  if (providers.length === 0) return { min_replicas: there, max_replicas: there };
  return {
    min_replicas: 1,
    max_replicas: mostReplicas,
    default_max_cost_usd: spend.maxCostUsd,
    default_max_idle_minutes: spend.maxIdleMinutes,
  };
}
