import type { KubernetesOptions, KubernetesSimulator } from '../simulators/kubernetes/simulator.ts';
import { startKubernetes } from '../simulators/kubernetes/simulator.ts';
import { createTemplate } from './leases.ts';
import type { SpecChanges, Template } from './leases.ts';
import { startRedis } from './redis.ts';
import type { TestRedis } from './redis.ts';
import { makeFolder, startSluice } from './server.ts';
import type { Environment, Sluice, SluiceOptions, TestFolder } from './server.ts';

/** A simulated cluster and servers that run engines in it. */
export interface ClusterSite extends AsyncDisposable {
  /** Of its first server; a test that starts another sets it to that. */
  url: string;
  sluice: Sluice;
  redis: TestRedis;
  folder: TestFolder;
  cluster: KubernetesSimulator;
  env: Environment;
  /** Starts one more process of the deployment; it ends with the site, if not before. */
  start(options?: Partial<SluiceOptions>): Promise<Sluice>;
  /** A model and a template for the cluster's GPUs. */
  template(changes?: SpecChanges): Promise<Template>;
}

export interface ClusterSiteOptions {
  cluster?: KubernetesOptions;
  /** More settings of every server. */
  env?: Environment;
  /** Makes files in the folder of the site before the first server starts; more settings come of it. */
  prepare?(folder: string): Promise<Environment>;
}

/** Engines that are ready as soon as a probe has asked once. */
const QUICK = { probeScale: 0.1, engine: { profile: 'zero' } } as const;

/** Starts a cluster, a Redis and one server with all roles; disposing ends them all. */
export async function startClusterSite({
  cluster: options = {},
  env: more = {},
  prepare,
}: ClusterSiteOptions = {}): Promise<ClusterSite> {
  const stack = new AsyncDisposableStack();
  try {
    const redis = stack.use(await startRedis());
    const folder = stack.use(await makeFolder());
    const knobs = { ...QUICK, ...options.knobs };
    const cluster = stack.use(await startKubernetes({ ...options, knobs }));
    const env = {
      PROVISIONER: 'kubernetes',
      KUBECONFIG: cluster.kubeconfig,
      ...more,
      ...(await prepare?.(folder.path)),
    };

    async function start({ env: own, ...rest }: Partial<SluiceOptions> = {}): Promise<Sluice> {
      const common = { dataDir: `${folder.path}/data`, redisUrl: redis.url, timeoutMs: 60_000 };
      return stack.use(await startSluice({ ...common, ...rest, env: { ...env, ...own } }));
    }
    const sluice = await start();
    const site: ClusterSite = {
      url: sluice.url,
      sluice,
      redis,
      folder,
      cluster,
      env,
      start,
      template: async (changes = {}) =>
        createTemplate(site.url, 'runpod', { accelerator: { type: 'H100' }, ...changes }),
      [Symbol.asyncDispose]: () => stack.disposeAsync(),
    };
    return site;
  } catch (error) {
    await stack.disposeAsync();
    throw error;
  }
}
