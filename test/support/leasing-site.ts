import { leasingEnvironment, makeKeyFile, startCloud } from './clouds.ts';
import type { Cloud, CloudKind, CloudOptions, KeyFile } from './clouds.ts';
import { startRedis } from './redis.ts';
import type { TestRedis } from './redis.ts';
import { makeFolder, startSluice } from './server.ts';
import type { Environment, Sluice, SluiceOptions, TestFolder } from './server.ts';

/** Simulated clouds and servers that lease there. */
export interface LeasingSite extends AsyncDisposable {
  /** Of its first server. */
  url: string;
  sluice: Sluice;
  redis: TestRedis;
  folder: TestFolder;
  key: KeyFile;
  /** The first of `clouds`. */
  cloud: Cloud;
  clouds: readonly Cloud[];
  /** What each process of this deployment is started with. */
  env: Environment;
  /** Starts one more process of the deployment; it ends with the site, if not before. */
  start(options?: Partial<SluiceOptions>): Promise<Sluice>;
}

export interface LeasingSiteOptions {
  /** In the order in which they are asked for machines; RunPod alone unless given. */
  kinds?: readonly CloudKind[];
  /** Of each of the clouds. */
  cloud?: CloudOptions;
  /** More settings of every server. */
  env?: Environment;
  /** Of the first server only. */
  server?: Partial<SluiceOptions>;
}

/** Starts clouds, a Redis and one server with all roles; disposing ends them all. */
export async function startLeasingSite(options: LeasingSiteOptions = {}): Promise<LeasingSite> {
  const stack = new AsyncDisposableStack();
  try {
    return await startOn(stack, options);
  } catch (error) {
    await stack.disposeAsync();
    throw error;
  }
}

async function startOn(
  stack: AsyncDisposableStack,
  { kinds = ['runpod'], cloud: cloudOptions, env: more = {}, server = {} }: LeasingSiteOptions,
): Promise<LeasingSite> {
  const redis = stack.use(await startRedis());
  const folder = stack.use(await makeFolder());
  const key = await makeKeyFile(`${folder.path}/keys`);
  const clouds: Cloud[] = [];
  for (const kind of kinds) clouds.push(stack.use(await startCloud(kind, key, cloudOptions)));
  const [cloud] = clouds;
  if (cloud === undefined) throw new Error('a leasing site has a cloud');
  const env = { ...leasingEnvironment(clouds, key), ...more };

  async function start({ env: own, ...rest }: Partial<SluiceOptions> = {}): Promise<Sluice> {
    const common = { dataDir: `${folder.path}/data`, redisUrl: redis.url, timeoutMs: 60_000 };
    return stack.use(await startSluice({ ...common, ...rest, env: { ...env, ...own } }));
  }

  const sluice = await start(server);
  return {
    url: sluice.url,
    sluice,
    redis,
    folder,
    key,
    cloud,
    clouds,
    env,
    start,
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}
