import { Dispatcher } from 'undici';
import { toError } from '../domain/errors.ts';
import { ClientPool } from './client-pool.ts';

/** Where requests go. */
export interface Way {
  dispatcher: Dispatcher;
  /** Scheme, host and port. */
  origin: string;
  /** What stands before their paths. */
  pathPrefix: string;
  /** Added to their own. */
  headers: Readonly<Record<string, string>>;
  close(): Promise<void>;
}

/** Names no machine: requests that never find their way are refused under it. */
const NOWHERE = 'http://127.0.0.1';

/**
 * Sends requests on a way that is found out when the first of them comes. While it cannot be, they fail with the reason as
 * if no connection could be made, and the next one asks anew.
 */
export class LateDispatcher extends Dispatcher {
  readonly #find: () => Promise<Way>;
  readonly #nowhere: ClientPool;
  #way: Way | null = null;
  #finding: Promise<void> | null = null;
  #isDestroyed = false;
  #problem = new Error('nobody has looked for the way yet');

  constructor(find: () => Promise<Way>) {
    super();
    this.#find = find;
    this.#nowhere = new ClientPool(NOWHERE, {
      connect: (_options, callback) => callback(this.#problem, null),
    });
  }

  override dispatch(
    options: Dispatcher.DispatchOptions,
    handler: Dispatcher.DispatchHandler,
  ): boolean {
    if (this.#way !== null) return sendOn(this.#way, options, handler);
    this.#finding ??= this.#look();
    void this.#finding.then(() => {
      if (this.#way !== null) sendOn(this.#way, options, handler);
      else this.#nowhere.dispatch({ ...options, origin: NOWHERE }, handler);
    });
    return true;
  }

  override async destroy(): Promise<void> {
    this.#isDestroyed = true;
    await Promise.all([this.#nowhere.destroy(), this.#way?.close()]);
  }

  async #look(): Promise<void> {
    try {
      const way = await this.#find();
      if (this.#isDestroyed) await way.close();
      else this.#way = way;
    } catch (error) {
      this.#problem = toError(error);
    } finally {
      this.#finding = null;
    }
  }
}

function sendOn(
  { dispatcher, origin, pathPrefix, headers }: Way,
  options: Dispatcher.DispatchOptions,
  handler: Dispatcher.DispatchHandler,
): boolean {
  const path = `${pathPrefix}${options.path}`;
  const added = Object.entries(headers).flat();
  if (added.length === 0) return dispatcher.dispatch({ ...options, origin, path }, handler);
  const all = [...flat(options.headers), ...added];
  return dispatcher.dispatch({ ...options, origin, path, headers: all }, handler);
}

/** Names and values in turn, which is the shape that the senders of lines use already. */
function flat(headers: Dispatcher.DispatchOptions['headers']): string[] {
  if (headers === undefined || headers === null) return [];
  if (Array.isArray(headers)) return headers;
  const pairs = Symbol.iterator in headers ? [...headers] : Object.entries(headers);
  return pairs.flatMap(([name, value]) => (value === undefined ? [] : [name, String(value)]));
}
