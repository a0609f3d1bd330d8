import { openaiClient, upload } from './batch.ts';
import type { Input } from './batch.ts';
import { startRedis } from './redis.ts';
import type { TestRedis } from './redis.ts';
import { makeFolder, startSluice } from './server.ts';
import type { Sluice, SluiceOptions, TestFolder } from './server.ts';
import { startVllmProcess } from './vllm-process.ts';
import type { VllmProcess } from './vllm-process.ts';

/** A server with all that it needs, for the tests of a whole file. */
export interface Site extends AsyncDisposable {
  url: string;
  sluice: Sluice;
  redis: TestRedis;
  folder: TestFolder;
  /** The first of the server's engines. */
  engine: VllmProcess;
  engines: VllmProcess[];
}

export interface SiteOptions extends Partial<SluiceOptions> {
  /** How many engines the server has. */
  count?: number;
  /** Flags of each engine. */
  flags?: readonly string[];
}

/** Starts engines that answer at once, a Redis and a server; disposing ends them all. */
export async function openSite(options: SiteOptions = {}): Promise<Site> {
  const { count = 1, flags = ['--profile', 'zero'], ...server } = options;
  await using stack = new AsyncDisposableStack();
  const redis = stack.use(await startRedis());
  const folder = stack.use(await makeFolder());
  const engines: VllmProcess[] = [];
  while (engines.length < count) engines.push(stack.use(await startVllmProcess({ flags })));
  const [engine] = engines;
  if (engine === undefined) throw new Error('a site has an engine');
  const urls = engines.map(({ url }) => url);
  const dataDir = folder.path;
  const sluice = stack.use(
    await startSluice({
      dataDir,
      redisUrl: redis.url,
      engines: urls,
      timeoutMs: 60_000,
      ...server,
    }),
  );
  const all = stack.move();
  return {
    url: sluice.url,
    sluice,
    redis,
    folder,
    engine,
    engines,
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
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
