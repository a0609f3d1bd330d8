import { lookup } from 'node:dns/promises';
import type { LookupAddress } from 'node:dns';
import { toError, transient } from '../domain/errors.ts';

/** All addresses of a name. */
export type Resolve = (name: string) => Promise<LookupAddress[]>;

/** As the system resolves it: /etc/hosts counts, too. */
export function resolveName(name: string): Promise<LookupAddress[]> {
  return lookup(name, { all: true });
}

/** Look-ups hold threads of the process, which its files and other look-ups need as well. */
const AT_ONCE = 4;
const RESOLVE_MS = 5_000;

/** Rejects once `signal` aborts, which leaves the look-up itself running. */
type BoundResolve = (name: string, signal: AbortSignal) => Promise<LookupAddress[]>;

/**
 * Bounds look-ups in number and, with the wait for a place, in time. The system cannot be told to stop one: it keeps
 * its place until it ends, so that slow name servers take no more threads than there are places.
 */
export function boundResolve(
  resolve: Resolve,
  { atOnce = AT_ONCE, timeoutMs = RESOLVE_MS } = {},
): BoundResolve {
  const waiting = new Set<() => void>();
  let running = 0;
  function startNext(): void {
    const [start] = waiting;
    if (start === undefined || running >= atOnce) return;
    waiting.delete(start);
    start();
  }
  return function resolveBounded(name, signal) {
    const { promise, resolve: done, reject } = Promise.withResolvers<LookupAddress[]>();
    async function run(): Promise<void> {
      running += 1;
      try {
        done(await resolve(name));
      } catch (error) {
        reject(toError(error));
      }
      running -= 1;
      startNext();
    }
    function start(): void {
      void run();
    }
    function leave(): void {
      waiting.delete(start);
      const message = `The name could not be looked up within ${timeoutMs / 1_000} s.`;
      reject(transient('webhook.lookup_timeout', message));
    }
    const timer = setTimeout(leave, timeoutMs);
    signal.addEventListener('abort', leave);
    waiting.add(start);
    startNext();
    return promise.finally(() => {
      clearTimeout(timer);
      signal.removeEventListener('abort', leave);
    });
  };
}
