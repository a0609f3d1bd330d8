import { engineCommand } from '../domain/engines/index.ts';
import type { EngineSite } from '../domain/engines/contract.ts';
import { invalidInput, SluiceError } from '../domain/errors.ts';
import type { SpendLimits } from '../domain/cost.ts';
import type { JobResources } from '../domain/lease.ts';
import { LEASE_PROVIDERS } from '../domain/provision.ts';
import type { LeaseProvider } from '../domain/provision.ts';
import type { ResolvedTemplate } from '../domain/template.ts';
import type { ClusterWish } from './engines.ts';
import type { ResourceWish } from './resource-wish.ts';

/** What of this server's settings says which machines a job gets. */
export interface LeaseDefaults {
  /** The engines of this server. */
  engineUrls: readonly string[];
  /** Those that lease machines for its jobs, in the order in which they are asked; empty: it leases none. */
  providers: readonly LeaseProvider[];
  /** Name of the template of a job that names none; null: it has to. */
  defaultTemplate: string | null;
  /** Limits of a job that sets none. */
  spend: SpendLimits;
  /** Most machines that one job may have. */
  mostReplicas: number;
  /** Of the cluster: the namespaces that jobs may name, and the form of those that name none. */
  cluster: { namespaces: readonly string[]; form: ClusterWish['form'] };
}

/** Whether machines are leased for a job. */
export function isLeasedFor(
  { providers }: Pick<LeaseDefaults, 'providers'>,
  { engines }: { engines: readonly string[] },
): boolean {
  return engines.length === 0 && providers.length > 0;
}

/**
 * What a job wants of machines, with its template as it is now. What no provider could do with is invalid input: a
 * template that starts nowhere (`engine.…`), a provider that is not enabled, more than this server allows. `param` is
 * the field that wishes for machines, `templateParam` the one that names the template.
 */
export function resolveResources(
  defaults: LeaseDefaults,
  wish: ResourceWish,
  template: ResolvedTemplate,
  { param, templateParam }: { param: string; templateParam: string },
  cluster?: ClusterWish,
): JobResources {
  const { spec, servingName, id: templateId } = template;
  const { regions, gpuTypes, interruptible, maxPricePerHour } = wish;
  const providers = providersFor(defaults, wish.providers, param, cluster);
  requireStartable(template, providers, templateParam);
  return {
    spec,
    servingName,
    templateId,
    replicas: allowedReplicas(defaults, wish.replicas ?? 1, param),
    providers,
    regions,
    gpuTypes,
    interruptible,
    maxPricePerHour,
    maxCostUsd: wish.maxCostUsd ?? defaults.spend.maxCostUsd,
    maxIdleMinutes: wish.maxIdleMinutes ?? defaults.spend.maxIdleMinutes,
    ...clusterOf(defaults, providers, cluster),
  };
}

const RUNTIME = 'aibrix.runtime';

/** Refuses what only a cluster could do where this server has none, or not that namespace. */
export function requireCluster(
  { providers, cluster: { namespaces } }: Pick<LeaseDefaults, 'providers' | 'cluster'>,
  wish: ClusterWish | undefined,
): void {
  if (wish === undefined) return;
  if (!providers.includes('kubernetes')) {
    const others = [...providers, 'kubernetes'].join();
    const message = `This server runs no engines in Kubernetes: start it with PROVISIONER=${others}, or name an engine in '${RUNTIME}.options.base_url'.`;
    throw invalidInput('provider_not_enabled', message, { param: `${RUNTIME}.target` });
  }
  const { namespace } = wish;
  if (namespace === null || namespaces.includes(namespace)) return;
  const there = namespaces.length === 0 ? 'its own alone' : namespaces.join(', ');
  const message = `This server may run engines in the namespaces ${there}, not in '${namespace}': leave it out, or start the server with KUBERNETES_NAMESPACE=${[...namespaces, namespace].join()}.`;
  throw invalidInput('invalid_value', message, { param: `${RUNTIME}.options.namespace` });
}

/** A job that names the cluster is for no other provider. */
function providersFor(
  defaults: Pick<LeaseDefaults, 'providers'>,
  names: readonly string[],
  param: string,
  cluster: ClusterWish | undefined,
): readonly LeaseProvider[] {
  if (cluster === undefined) return enabledProviders(defaults, names, param);
  const other = names.find((name) => name !== 'kubernetes');
  if (other === undefined) return ['kubernetes'];
  const message = `'${param}.provider' is ${other.slice(0, 100)}, and '${RUNTIME}.target' the cluster: leave one of them out.`;
  throw invalidInput('invalid_value', message, { param: `${param}.provider` });
}

function clusterOf(
  { cluster: { form } }: Pick<LeaseDefaults, 'cluster'>,
  providers: readonly LeaseProvider[],
  wish: ClusterWish | undefined,
): Pick<JobResources, 'form' | 'namespace'> {
  const chosen = wish?.form ?? form;
  // A whole batch cannot go over to another provider.
  const isJob = chosen === 'job' && providers.every((each) => each === 'kubernetes');
  const namespace = wish?.namespace ?? null;
  return {
    ...(isJob ? { form: 'job' as const } : {}),
    ...(namespace === null ? {} : { namespace }),
  };
}

/** What a copy of a job gets: as the first one, of providers that are enabled still. */
export function renewResources(
  { providers, spend }: LeaseDefaults,
  kept: JobResources,
  param: string,
): JobResources {
  const enabled = kept.providers.filter((each) => providers.includes(each));
  if (enabled.length === 0) throw notEnabled(kept.providers.join(', '), providers, param);
  return {
    ...kept,
    providers: enabled,
    maxCostUsd: kept.maxCostUsd ?? spend.maxCostUsd,
    maxIdleMinutes: kept.maxIdleMinutes ?? spend.maxIdleMinutes,
  };
}

/** Refuses a wish for machines where engines are there already: it would be ignored. */
export function refuseResources(
  { engineUrls }: Pick<LeaseDefaults, 'engineUrls'>,
  wish: ResourceWish,
  engines: readonly string[],
  param: string,
): void {
  const has = engines.length > 0 ? engines.length : engineUrls.length;
  const why =
    engines.length > 0
      ? 'the engines of aibrix.runtime are there already, and none is leased'
      : 'this server leases no machines: its engines are there already (PROVISIONER=static)';
  const { replicas } = wish;
  if (replicas !== null && replicas !== has) {
    const message = `A job cannot have ${replicas} replicas here: ${why}, ${has} of them. Leave '${param}.replicas' out, or give as many ${engines.length > 0 ? 'base_urls' : 'ENGINE_URLS'}.`;
    throw invalidInput('invalid_value', message, { param: `${param}.replicas` });
  }
  const field = firstField(wish);
  if (field === null) return;
  const mend =
    engines.length > 0
      ? 'Leave it out, or leave aibrix.runtime out.'
      : 'Leave it out, or start the server with a provider that leases, such as PROVISIONER=runpod.';
  const message = `'${param}.${field}' has no effect: ${why}. ${mend}`;
  throw invalidInput('invalid_value', message, { param: `${param}.${field}` });
}

/** A field of the wish that asks for something, beside how many. */
function firstField(wish: ResourceWish): string | null {
  const given = {
    provider: wish.providers.length > 0,
    regions: wish.regions.length > 0,
    gpu_types: wish.gpuTypes.length > 0,
    interruptible: wish.interruptible,
    max_price_per_hour: wish.maxPricePerHour !== null,
    max_cost_usd: wish.maxCostUsd !== null,
    max_idle_minutes: wish.maxIdleMinutes !== null,
  };
  return Object.entries(given).find(([, isGiven]) => isGiven)?.[0] ?? null;
}

function enabledProviders(
  { providers: enabled }: Pick<LeaseDefaults, 'providers'>,
  names: readonly string[],
  param: string,
): readonly LeaseProvider[] {
  if (names.length === 0) return enabled;
  return names.map((name) => {
    const provider = enabled.find((each) => each === name);
    if (provider === undefined) throw notEnabled(name, enabled, `${param}.provider`);
    return provider;
  });
}

function notEnabled(name: string, enabled: readonly LeaseProvider[], param: string): SluiceError {
  const isKnown = LEASE_PROVIDERS.some((each) => each === name);
  const mend = isKnown ? `, or start the server with PROVISIONER=${[...enabled, name].join()}` : '';
  const message = `This server leases from ${enabled.join(', ')}, not from '${name.slice(0, 100)}': name one of these${mend}.`;
  return invalidInput('provider_not_enabled', message, { param });
}

function allowedReplicas(
  { mostReplicas }: Pick<LeaseDefaults, 'mostReplicas'>,
  replicas: number,
  param: string,
): number {
  if (replicas <= mostReplicas) return replicas;
  const message = `This server leases at most ${mostReplicas} machines at a time (MAX_LEASES), not ${replicas}: ask for fewer.`;
  throw invalidInput('invalid_value', message, { param: `${param}.replicas` });
}

/** Where the engine runs on a machine of each provider: in a container that was leased, or in one on the machine. */
const NETWORKS: Readonly<Record<LeaseProvider, EngineSite['listensTo']>> = {
  runpod: 'machine',
  lambdaCloud: 'container',
  kubernetes: 'container',
};

/** A machine like any other, as far as a template can tell before one is leased. */
function nominalSite(provider: LeaseProvider, servingName: string): EngineSite {
  return {
    servingName,
    port: 8_000,
    modelPath: null,
    cacheDir: '/cache',
    apiKeyFile: null,
    secretsFile: '/secrets',
    objectStore: { endpoint: 'https://objects.invalid', region: 'none' },
    listensTo: NETWORKS[provider],
  };
}

/** What an engine would refuse is refused before a machine is paid for. */
export function requireStartable(
  { name, version, spec, servingName }: ResolvedTemplate,
  providers: readonly LeaseProvider[],
  param: string,
): void {
  const label = `The template '${name}' in version '${version}'`;
  if (spec.deployment_mode !== 'dedicated') {
    const message = `${label} is for engines that are there already (deployment_mode: ${spec.deployment_mode}), and this server leases a machine for each: set it to dedicated, or name your engine in aibrix.runtime.`;
    throw invalidInput('engine.refused', message, { param });
  }
  for (const provider of providers) {
    try {
      engineCommand(spec, nominalSite(provider, servingName));
    } catch (cause) {
      if (!(cause instanceof SluiceError)) throw cause;
      const message = `${label} cannot be started on a machine of ${provider}. ${cause.message}. Make a new version of it.`;
      throw invalidInput(cause.code, message, { param, cause });
    }
  }
}
