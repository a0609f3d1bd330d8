import type { Redis } from 'ioredis';
import { openaiClient, upload } from './batch.ts';
import type { Input } from './batch.ts';
import { openRedis, startRedis } from './redis.ts';
import type { TestRedis } from './redis.ts';
import { makeFolder, startSluice } from './server.ts';
import type { Sluice, SluiceOptions, TestFolder } from './server.ts';
import { startVllmProcess } from './vllm-process.ts';
import type { VllmProcess } from './vllm-process.ts';

/** All that servers need, for tests that start and end them. */
export interface Ground extends AsyncDisposable {
  redis: TestRedis;
  /** A client of that Redis. */
  store: Redis;
  folder: TestFolder;
  /** The first of the engines. */
  engine: VllmProcess;
  engines: VllmProcess[];
  /** What each server here is started with. */
  shared: { dataDir: string; redisUrl: string; engines: string[] };
}

export interface GroundOptions {
  /** How many engines there are. */
  count?: number | undefined;
  /** Flags of each engine. */
  flags?: readonly string[] | undefined;
}

/** Starts engines that answer at once and a Redis, and makes a folder; disposing ends all. */
export async function openGround({
  count = 1,
  flags = ['--profile', 'zero'],
}: GroundOptions = {}): Promise<Ground> {
  await using stack = new AsyncDisposableStack();
  const redis = stack.use(await startRedis());
  const { client: store } = stack.use(openRedis(redis.url));
  const folder = stack.use(await makeFolder());
  const engines: VllmProcess[] = [];
  while (engines.length < count) engines.push(stack.use(await startVllmProcess({ flags })));
  const [engine] = engines;
  if (engine === undefined) throw new Error('there is an engine');
  const urls = engines.map(({ url }) => url);
  const shared = { dataDir: folder.path, redisUrl: redis.url, engines: urls };
  const all = stack.move();
  const end = () => all.disposeAsync();
  return { redis, store, folder, engine, engines, shared, [Symbol.asyncDispose]: end };
}

/** A server with all that it needs, for the tests of a whole file. */
export interface Site extends Ground {
  url: string;
  sluice: Sluice;
}

/** Starts a server with all that it needs; disposing ends them all. */
export async function openSite(
  options: GroundOptions & Partial<SluiceOptions> = {},
): Promise<Site> {
  const { count, flags, ...server } = options;
  await using stack = new AsyncDisposableStack();
  const ground = stack.use(await openGround({ count, flags }));
  const sluice = stack.use(await startSluice({ ...ground.shared, ...server }));
  const all = stack.move();
  return { ...ground, url: sluice.url, sluice, [Symbol.asyncDispose]: () => all.disposeAsync() };
}

/** Uploads an input and starts a batch at an engine that is none of the server's own; `more` is of `aibrix`. */
export async function submitTo(
  { url }: Pick<Site, 'url'>,
  engine: { url: string },
  input: Pick<Input, 'text'>,
  client: Record<string, unknown> = {},
  more: Record<string, unknown> = {},
): Promise<string> {
  const runtime = { target: 'External', options: { base_url: engine.url } };
  const wish = {
    input_file_id: await upload(url, input.text),
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    aibrix: { client, runtime, ...more },
  } as const;
  return (await openaiClient(url).batches.create(wish)).id;
}
