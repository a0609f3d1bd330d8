import type { ServerResponse } from 'node:http';
import { apiVersionOf } from './kinds.ts';
import type { KubeObject } from './objects.ts';
import type { Ask, Rest } from './rest.ts';
import { StatusError } from './status.ts';
import type { Change, Store } from './store.ts';

/** How an object is shown: as it is, or as a table. */
export type Show = (object: KubeObject) => unknown;

export interface WatchOptions {
  store: Store;
  rest: Rest;
  bookmarkMs(): number;
}

const DEFAULT_S = 1800;

/** Events of a change as a watch with a selector sees it: what begins to match is new, what ceases is gone. */
function seen(
  change: Change,
  matches: (object: KubeObject) => boolean,
): { type: Change['type']; object: KubeObject } | undefined {
  const { type, object, before } = change;
  const did = before !== undefined && matches(before);
  const does = type !== 'DELETED' && matches(object);
  if (does) return { type: did ? 'MODIFIED' : 'ADDED', object };
  if (!did) return undefined;
  // The real one shows the object as it is now, also where it only ceased to match.
  return { type: 'DELETED', object };
}

/** Answers a watch until its time is over or its reader is gone. */
export function watch(
  response: ServerResponse,
  ask: Ask,
  show: Show,
  { store, rest, bookmarkMs }: WatchOptions,
): void {
  const { kind, namespace, query } = ask;
  const test = rest.predicate(ask);
  const matches = (object: KubeObject): boolean =>
    (namespace === undefined || object.metadata.namespace === namespace) && test(object);
  const wanted = query.get('resourceVersion') ?? '';
  const wantsBookmarks = query.get('allowWatchBookmarks') === 'true';

  function write(type: string, object: unknown): void {
    response.write(`${JSON.stringify({ type, object })}\n`);
  }

  function bookmark(annotations?: Record<string, string>): void {
    const metadata = {
      resourceVersion: String(store.version()),
      creationTimestamp: null,
      ...(annotations === undefined ? {} : { annotations }),
    };
    const object = { kind: kind.kind, apiVersion: apiVersionOf(kind), metadata };
    write('BOOKMARK', show(object as unknown as KubeObject));
  }

  function deliver(change: Change): void {
    if (change.kind !== kind) return;
    const event = seen(change, matches);
    if (event !== undefined) write(event.type, show(event.object));
  }

  response.writeHead(200, { 'content-type': 'application/json' });
  response.flushHeaders();
  try {
    if (wanted === '' || wanted === '0') {
      for (const object of store.list(kind, namespace).filter(matches))
        write('ADDED', show(object));
      if (query.get('sendInitialEvents') === 'true')
        bookmark({ 'k8s.io/initial-events-end': 'true' });
    } else for (const change of store.since(Number(wanted))) deliver(change);
  } catch (error) {
    if (!(error instanceof StatusError)) throw error;
    write('ERROR', error.status);
    response.end();
    return;
  }
  const stop = store.subscribe(deliver);
  const marks = wantsBookmarks ? setInterval(() => bookmark(), bookmarkMs()) : undefined;
  const seconds = Number(query.get('timeoutSeconds') ?? DEFAULT_S);
  const over = setTimeout(() => {
    if (wantsBookmarks) bookmark();
    response.end();
  }, seconds * 1000);
  response.once('close', () => {
    stop();
    clearInterval(marks);
    clearTimeout(over);
  });
}
