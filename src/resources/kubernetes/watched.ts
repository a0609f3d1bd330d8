import { setTimeout as sleep } from 'node:timers/promises';
import * as v from 'valibot';
import { describeError, SluiceError, toError } from '../../domain/errors.ts';
import type { KubernetesApi } from './api.ts';

/** What there is of one kind, kept by one list and a watch from there on. */
export interface Watched<T> {
  /**
   * As it is by what was told so far, by name. Waits for the first list, and rejects where that fails; later what was
   * told last is what counts, since an API server that is away says nothing of what runs.
   */
  read(): Promise<ReadonlyMap<string, T>>;
  close(): void;
}

export interface WatchedOptions<Schema extends v.GenericSchema> {
  api: Pick<KubernetesApi, 'ask' | 'watch'>;
  /** Of the list, without a query. */
  path: string;
  /** What both the list and the watch are narrowed by. */
  query: Readonly<Record<string, string>>;
  item: Schema;
  /** A watch that says nothing for so long, bookmarks included, is not believed any more, ms. */
  silenceMs?: number;
  /** Told where it has to begin anew. */
  onTrouble?: (reason: string) => void;
}

const PAGE = 500;
/** Servers send a bookmark about once a minute. */
const SILENCE_MS = 90_000;
/** The server ends a watch after so long, and the next one goes on from there, s. */
const WATCH_SECONDS = 300;
const FIRST_AGAIN_MS = 250;
const LONGEST_AGAIN_MS = 5_000;
/** Nothing is watched that nobody has asked for in so long, ms. */
const IDLE_MS = 120_000;

const listSchema = v.object({
  metadata: v.object({
    resourceVersion: v.nullish(v.string(), ''),
    continue: v.nullish(v.string(), ''),
  }),
  items: v.nullish(v.array(v.unknown()), []),
});

const eventSchema = v.object({
  type: v.picklist(['ADDED', 'MODIFIED', 'DELETED', 'BOOKMARK', 'ERROR']),
  object: v.looseObject({}),
});

const metaSchema = v.object({
  metadata: v.object({ name: v.string(), resourceVersion: v.nullish(v.string(), '') }),
});
const bookmarkSchema = v.object({ metadata: v.object({ resourceVersion: v.string() }) });

/** Lists all pages of a kind. Rejects as the API does. */
export async function listAll<Schema extends v.GenericSchema>(
  api: Pick<KubernetesApi, 'ask'>,
  path: string,
  query: Readonly<Record<string, string>>,
  item: Schema,
): Promise<{ items: v.InferOutput<Schema>[]; version: string }> {
  const items: v.InferOutput<Schema>[] = [];
  let more = '';
  for (;;) {
    const page = { ...query, limit: String(PAGE), ...(more === '' ? {} : { continue: more }) };
    const answer = await api.ask({ method: 'GET', path: withQuery(path, page) });
    const list = v.parse(listSchema, answer);
    items.push(...list.items.map((each) => v.parse(item, each)));
    more = list.metadata.continue;
    if (more === '') return { items, version: list.metadata.resourceVersion };
  }
}

function withQuery(path: string, query: Readonly<Record<string, string>>): string {
  const text = new URLSearchParams(query).toString();
  return text === '' ? path : `${path}?${text}`;
}

/** What one watch keeps. */
interface Keeping<Schema extends v.GenericSchema> {
  options: WatchedOptions<Schema>;
  items: Map<string, v.InferOutput<Schema>>;
  /** When somebody read it last. */
  readAt: number;
}

/** Begins to watch when it is read first, and ends when nobody reads it any more. */
export function createWatched<Schema extends v.GenericSchema>(
  options: WatchedOptions<Schema>,
): Watched<v.InferOutput<Schema>> {
  const keeping: Keeping<Schema> = { options, items: new Map(), readAt: 0 };
  let run: { stop: AbortController; listed: Promise<void> } | null = null;

  function start(): Promise<void> {
    const stop = new AbortController();
    const { promise, resolve, reject } = Promise.withResolvers<undefined>();
    const listed = promise.then(() => undefined);
    run = { stop, listed };
    const onListed = (error: Error | null) => (error === null ? resolve(undefined) : reject(error));
    void keep(keeping, onListed, stop.signal).finally(() => {
      if (run?.stop === stop) run = null;
      resolve(undefined);
    });
    return listed;
  }

  return {
    async read() {
      keeping.readAt = performance.now();
      await (run?.listed ?? start());
      return keeping.items;
    },
    close() {
      run?.stop.abort();
      run = null;
    },
  };
}

/** Lists, and watches from there; whatever goes wrong with a watch is mended by the next list. */
async function keep<Schema extends v.GenericSchema>(
  keeping: Keeping<Schema>,
  onListed: (error: Error | null) => void,
  signal: AbortSignal,
): Promise<void> {
  const isWanted = () => performance.now() - keeping.readAt < IDLE_MS;
  let isListed = false;
  let againMs = FIRST_AGAIN_MS;
  while (!signal.aborted) {
    try {
      let version = await list(keeping);
      isListed = true;
      onListed(null);
      againMs = FIRST_AGAIN_MS;
      while (!signal.aborted && isWanted()) version = await follow(keeping, version, signal);
      return;
    } catch (error) {
      if (signal.aborted) return;
      keeping.options.onTrouble?.(describeError(error));
      if (!isListed) {
        onListed(toError(error));
        return;
      }
    }
    await sleep(againMs, undefined, { signal, ref: false }).catch(() => undefined);
    againMs = Math.min(2 * againMs, LONGEST_AGAIN_MS);
  }
}

async function list<Schema extends v.GenericSchema>(keeping: Keeping<Schema>): Promise<string> {
  const { api, path, query, item } = keeping.options;
  const found = await listAll(api, path, query, v.unknown());
  keeping.items = new Map(
    found.items.map((each) => [v.parse(metaSchema, each).metadata.name, v.parse(item, each)]),
  );
  return found.version;
}

/** Watches from a version until the server ends it; resolves to where to go on. */
async function follow<Schema extends v.GenericSchema>(
  { options, items }: Keeping<Schema>,
  from: string,
  signal: AbortSignal,
): Promise<string> {
  const { api, path, query, item, silenceMs = SILENCE_MS } = options;
  let version = from;
  const asked = {
    ...query,
    watch: 'true',
    allowWatchBookmarks: 'true',
    timeoutSeconds: String(WATCH_SECONDS),
    resourceVersion: version,
  };
  for await (const told of api.watch(withQuery(path, asked), silenceMs, signal)) {
    const { type, object } = v.parse(eventSchema, told);
    if (type === 'ERROR') throw new Error(`the watch says ${JSON.stringify(object)}`);
    if (type === 'BOOKMARK') {
      version = v.parse(bookmarkSchema, object).metadata.resourceVersion;
      continue;
    }
    const { name, resourceVersion } = v.parse(metaSchema, object).metadata;
    version = resourceVersion;
    if (type === 'DELETED') items.delete(name);
    else items.set(name, v.parse(item, object));
  }
  return version;
}

/** Whether an error says that something is not there, rather than that nobody can say. */
export function isAbsent(error: unknown): boolean {
  return error instanceof SluiceError && error.code === 'kubernetes.absent';
}
