import { SluiceError, transient } from '../../domain/errors.ts';
import type { MachineSite } from '../contract.ts';
import { createKept } from '../kept.ts';
import { openSession } from './session.ts';
import type { Session } from './session.ts';

/** Sessions to machines, one each, shared by all who have something to do there. */
export interface SessionPool {
  /**
   * Does something over a session of a machine. Where one that was kept proves to be cut, it is done again over a new
   * one: `work` has to bear that. Rejects as `openSession` and `work` do, and with the signal's reason.
   */
  use<R>(
    site: MachineSite,
    signal: AbortSignal,
    work: (session: Session) => Promise<R>,
  ): Promise<R>;
  /** Ends all sessions, and handshakes that are under way. May be called twice. */
  close(): Promise<void>;
}

interface PoolOptions {
  privateKey: string;
  /** How long a session is kept that nobody uses, ms. */
  idleMs: number;
}

export function createSessionPool({ privateKey, idleMs }: PoolOptions): SessionPool {
  const stop = new AbortController();
  const kept = createKept<Seat>({ idleMs, close: async (seat) => seat.close() });
  return {
    async use({ login, hostKey }, signal, work) {
      stop.signal.throwIfAborted();
      const open = () => createSeat({ ...login, privateKey, hostKeys: [hostKey] }, stop.signal);
      const key = JSON.stringify([login.host, login.port, login.user, hostKey]);
      return kept.use(key, open, async (seat) => {
        const isKept = seat.stands;
        const session = await orAborted(seat.session(), signal);
        try {
          return await work(session);
        } catch (error) {
          if (!isKept || !isCut(error)) throw error;
          // Its commands may end before the connection itself is known to be over: it is of no use either way.
          session.close();
          return work(await orAborted(seat.session(), signal));
        }
      });
    },
    async close() {
      stop.abort(transient('ssh.cut', 'the connections to machines were closed'));
      await kept.close();
    },
  };
}

function isCut(error: unknown): boolean {
  return error instanceof SluiceError && error.code === 'ssh.cut';
}

/** The one session to a machine, now or next. */
interface Seat {
  readonly stands: boolean;
  /** The session that stands, or one that is made: whoever asks meanwhile gets the same. */
  session(): Promise<Session>;
  close(): Promise<void>;
}

function createSeat(options: Parameters<typeof openSession>[0], stop: AbortSignal): Seat {
  const closed = new AbortController();
  const signal = AbortSignal.any([stop, closed.signal]);
  let standing: Session | null = null;
  let opening: Promise<Session> | null = null;

  async function open(): Promise<Session> {
    const session = await openSession({ ...options, signal });
    if (signal.aborted) session.close();
    signal.throwIfAborted();
    standing = session;
    return session;
  }
  return {
    get stands() {
      return standing?.error === null;
    },
    async session() {
      if (standing?.error === null) return standing;
      opening ??= open().finally(() => (opening = null));
      return opening;
    },
    async close() {
      closed.abort(transient('ssh.cut', 'the connection to a machine was closed'));
      standing?.close();
      // Who waits for it is told; here it only has to be over.
      await opening?.catch(() => {});
    },
  };
}

/** What others wait for, too, goes on when one of them waits no more. */
async function orAborted<T>(coming: Promise<T>, signal: AbortSignal): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>();
  const abort = (): void => reject(signal.reason);
  if (signal.aborted) abort();
  signal.addEventListener('abort', abort, { once: true });
  try {
    return await Promise.race([coming, promise]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}
