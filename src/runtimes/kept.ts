/** Things that are opened when they are needed, shared, and closed when nobody has needed them for a while. */
export interface Kept<T> {
  /** Does something with what is kept under `key`, opening it first where there is none. */
  use<R>(key: string, open: () => T, work: (thing: T) => Promise<R>): Promise<R>;
  /** Closes all, also what is in use. May be called twice. */
  close(): Promise<void>;
}

interface Entry<T> {
  thing: T;
  users: number;
  idle: NodeJS.Timeout | undefined;
}

interface KeptOptions<T> {
  /** How long a thing is kept that nobody uses, ms. */
  idleMs: number;
  close: (thing: T) => Promise<void>;
}

export function createKept<T>({ idleMs, close }: KeptOptions<T>): Kept<T> {
  const entries = new Map<string, Entry<T>>();
  const closing = new Set<Promise<void>>();

  function drop(key: string, { thing, idle }: Entry<T>): void {
    clearTimeout(idle);
    entries.delete(key);
    const closed = close(thing).finally(() => closing.delete(closed));
    closing.add(closed);
  }

  function enter(key: string, open: () => T): Entry<T> {
    const entry = entries.get(key) ?? { thing: open(), users: 0, idle: undefined };
    clearTimeout(entry.idle);
    entry.users += 1;
    entries.set(key, entry);
    return entry;
  }

  return {
    async use(key, open, work) {
      const entry = enter(key, open);
      try {
        return await work(entry.thing);
      } finally {
        entry.users -= 1;
        // It may have been closed meanwhile, and another one opened.
        if (entry.users === 0 && entries.get(key) === entry) {
          entry.idle = setTimeout(() => drop(key, entry), idleMs);
        }
      }
    },
    async close() {
      for (const [key, entry] of entries) drop(key, entry);
      await Promise.all(closing);
    },
  };
}
