import { transient } from '../../domain/errors.ts';
import type { Machine } from '../lease-contract.ts';
import { podHead, readAs } from './dialect.ts';
import type { Dialect } from './dialect.ts';
import type { Http } from './http.ts';

/** All pods whose name passes, of all pages, whatever else the account has. */
export async function listPods(
  http: Http,
  dialect: Dialect,
  isOurs: (name: string) => boolean,
): Promise<Machine[]> {
  const found = new Map<string, Machine>();
  const seen = new Set<string>();
  let cursor: string | null = null;
  do {
    const path = dialect.listPath(cursor);
    const answer = await http.ask({ purpose: 'look', method: 'GET', path, expects: [200] });
    const { pods, next } = dialect.readPage(answer);
    for (const pod of pods) {
      const { id, name } = readAs(podHead, 'a list of pods', pod);
      if (isOurs(name)) found.set(id, dialect.readMachine(pod));
    }
    if (next !== null && seen.has(next)) {
      throw transient('lease.unavailable', "RunPod's list of pods goes round in circles.");
    }
    if (next !== null) seen.add(next);
    cursor = next;
  } while (cursor !== null);
  return [...found.values()];
}

/** Null: RunPod knows none of that id. */
export async function lookAtPod(http: Http, dialect: Dialect, id: string): Promise<Machine | null> {
  const path = dialect.lookPath(id);
  const ask = { purpose: 'look', method: 'GET', path, expects: [200], orNone: true } as const;
  const answer = await http.ask(ask);
  return answer === null ? null : dialect.readMachine(answer);
}

/** 204 is a promise: pods were seen to live on after it. 404 is how RunPod says that it has none. */
export async function destroyPod(http: Http, id: string): Promise<'gone' | 'going'> {
  const path = `/pods/${encodeURIComponent(id)}`;
  const ask = { purpose: 'release', method: 'DELETE', path, expects: [204], orNone: true } as const;
  return (await http.ask(ask)) === null ? 'gone' : 'going';
}
