import { transient } from '../../domain/errors.ts';
import { DEFAULT_ADAPTIVE, DEFAULT_OPTIONS } from '../../domain/job.ts';
import type { JobOptions, JobRecord } from '../../domain/job.ts';
import type { JobResources, LeaseAttempt, MachineLogin } from '../../domain/lease.ts';
import { currentAttempt, isLeased, machineProvider } from '../../domain/provision.ts';
import type { ProvisionRecord } from '../../domain/provision.ts';
import { JOB_KEY } from './contract.ts';
import type { RemoteOrder } from './contract.ts';

type Block = Record<string, unknown>;

const MOST_METADATA = 512;

/**
 * A batch as AIBrix' Console asks its metadata service for it. That service refuses keys of `aibrix` that it does not
 * know, so only what a job's user chose goes along, and what everybody gets by default does not.
 */
export function remoteOrder(
  job: JobRecord,
  provision: ProvisionRecord,
  { file, engineUrls }: { file: string; engineUrls: readonly string[] },
): RemoteOrder {
  const { options } = job;
  const [only] = job.models;
  const model = options.pinnedModel ?? (job.models.length === 1 ? only : undefined);
  return {
    input_file_id: file,
    endpoint: job.endpoint,
    completion_window: job.completionWindow,
    metadata: metadataOf(job),
    aibrix: {
      job_id: job.id,
      ...(model === undefined ? {} : { model }),
      ...(isLeased(provision) ? machineBlocks(job, provision) : enginesBlock(job, engineUrls)),
      client: clientOf(job),
      ...(options.priority === DEFAULT_OPTIONS.priority ? {} : { priority: options.priority }),
    },
  };
}

/** Whose it is, by which it is found again, and what people know it by. The user's own may fill all there is room for. */
function metadataOf({ id, name, options }: JobRecord): Record<string, string> {
  const { owner, template } = options;
  const known = {
    'aibrix.console.display_name': name,
    display_name: name,
    'aibrix.console.created_by': owner,
    'aibrix.console.template_name': template?.name ?? '',
    'aibrix.console.template_version': template?.version ?? '',
  };
  const said = Object.entries(known).filter(([, text]) => text !== '');
  return {
    [JOB_KEY]: id,
    ...Object.fromEntries(said.map(([key, text]) => [key, text.slice(0, MOST_METADATA)])),
  };
}

function enginesBlock({ engines }: JobRecord, engineUrls: readonly string[]): Block {
  const urls = engines.length > 0 ? engines : engineUrls;
  const [only] = urls;
  if (only === undefined) return {};
  const options = urls.length === 1 ? { base_url: only } : { base_urls: urls };
  return { runtime: { target: 'External', options } };
}

const TARGETS = { runpod: 'RunPod', lambdaCloud: 'LambdaCloud' } as const;
const ENGINE_PORT = 8_000;

/** The leased machine on which the service is to start the engine, over SSH. */
function machineBlocks({ options }: JobRecord, provision: ProvisionRecord): Block {
  const attempt = currentAttempt(provision);
  const { login } = provision;
  const { resources, template } = options;
  if (attempt === null || login === null || resources === null) {
    throw transient('remote.no_machine', 'The machine is not known yet.');
  }
  const provider = machineProvider(attempt.provider);
  if (provider === null) {
    const message = `No metadata service can log in to an engine of ${attempt.provider}.`;
    throw transient('remote.no_machine', message);
  }
  const target = TARGETS[provider];
  return {
    runtime: { target, options: machineOptions(resources, attempt, login) },
    resource_allocation: {
      provision_id: provision.id,
      resource_details: [{ gpu_type: attempt.gpuType, replica: 1 }],
    },
    ...(template === null ? {} : { model_template: { ...template, spec: resources.spec } }),
  };
}

function machineOptions(
  { spec, servingName }: JobResources,
  attempt: LeaseAttempt,
  { host, port, user }: MachineLogin,
): Block {
  const { uri } = spec.model_source;
  const alias = uri === servingName ? [] : ['--served-model-name', servingName];
  const args = [...alias, ...spec.engine.serve_args];
  return {
    host,
    ssh_port: port,
    ssh_user: user,
    http_base_url: baseUrlOf(attempt, host),
    model: uri,
    ...(spec.engine.image === '' ? {} : { image: spec.engine.image }),
    ...(args.length === 0 ? {} : { vllm_args: args }),
  };
}

/** RunPod shows a port of a pod by its proxy only. */
function baseUrlOf({ provider, machine }: LeaseAttempt, host: string): string {
  return provider === 'runpod'
    ? `https://${machine ?? ''}-${ENGINE_PORT}.proxy.runpod.net`
    : `http://${host}:${ENGINE_PORT}`;
}

/** What the lines of a job are asked with, in the words of the wire. */
export function clientOf({ maxConcurrency, options }: JobRecord): Block {
  const { retry, answerTimeoutMs, limits } = options;
  return {
    max_concurrency: maxConcurrency,
    ...(retry === null
      ? {}
      : {
          retry_policy: {
            max_retries: retry.maxRetries,
            base_delay_seconds: retry.baseMs / 1_000,
            max_delay_seconds: retry.capMs / 1_000,
          },
        }),
    ...(answerTimeoutMs === null ? {} : { request_timeout_seconds: answerTimeoutMs / 1_000 }),
    ...adaptiveOf(options.adaptive),
    ...chosen('requests_per_second', limits.requestsPerSecond, null),
    ...chosen('tokens_per_minute', limits.tokensPerMinute, null),
    ...chosen('upstream_stream', options.upstreamStream, DEFAULT_OPTIONS.upstreamStream),
    ...chosen('on_error_rate', options.onErrorRate, DEFAULT_OPTIONS.onErrorRate),
    ...chosen('hedging', options.hedging, DEFAULT_OPTIONS.hedging),
  };
}

function adaptiveOf(adaptive: JobOptions['adaptive']): Block {
  if (adaptive === null) return { adaptive_concurrency: false };
  const { maxFactor, healthyWindow, additiveIncrease } = adaptive;
  return {
    ...chosen('adaptive_max_factor', maxFactor, DEFAULT_ADAPTIVE.maxFactor),
    ...chosen('adaptive_healthy_window', healthyWindow, DEFAULT_ADAPTIVE.healthyWindow),
    ...chosen('adaptive_additive_increase', additiveIncrease, DEFAULT_ADAPTIVE.additiveIncrease),
  };
}

function chosen<T>(name: string, value: T, byDefault: T): Block {
  return value === byDefault ? {} : { [name]: value };
}
