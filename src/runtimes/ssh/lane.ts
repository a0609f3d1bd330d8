import { setTimeout as sleep } from 'node:timers/promises';
import { SluiceError, toError, transient } from '../../domain/errors.ts';
import { openChannel } from './channel.ts';
import type { ChannelSocket } from './channel.ts';
import type { SshAddress } from './errors.ts';
import { openSession } from './session.ts';
import type { Session, SessionOptions } from './session.ts';

const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5_000;
/** A session that stood so long was no failure, so that the next may come at once. */
const STOOD_MS = 10_000;

type Login = Omit<SessionOptions, keyof SshAddress | 'hostKeys' | 'signal'>;

/** A machine that engines run on has been seen before, and its key with it. */
export interface LaneTarget extends SshAddress {
  hostKeys: readonly string[];
}

export interface LaneOptions extends Login {
  /**
   * Where the machine is now, and how it proves itself; asked before each attempt, since an address may change while the
   * machine runs, and another machine may have taken the engine's place. What it rejects with is an attempt that failed: one of our errors that is not `Transient` is told at once, anything else is
   * tried again.
   */
  target(signal: AbortSignal): Promise<LaneTarget>;
}

/**
 * One SSH connection that many channels share: made when it is needed, and made anew after it was cut, with a pause that
 * grows, because sshd drops connections that come too fast (`MaxStartups`).
 */
export class Lane {
  readonly #options: LaneOptions;
  readonly #stop = new AbortController();
  #session: Session | null = null;
  #opening: Promise<Session> | null = null;
  #problem: Error | null = null;
  #pauseMs = 0;
  #notBefore = 0;
  #waiting = 0;
  #load = 0;

  constructor(options: LaneOptions) {
    this.#options = options;
  }

  /** Channels that are open or on their way. */
  get load(): number {
    return this.#load;
  }

  /** Why there is no connection; null: there is one, or none was needed yet. */
  get problem(): Error | null {
    return this.#session === null ? this.#problem : null;
  }

  /**
   * Connects to a port of the machine. Waits for the connection to be made, `limitMs` in all; at once rejects what
   * waiting cannot mend, such as another host key.
   */
  async connect(port: number, limitMs: number): Promise<ChannelSocket> {
    this.#load += 1;
    this.#waiting += 1;
    try {
      const socket = await within(this.#channel(port), limitMs, () => this.#late(limitMs));
      socket.once('close', () => (this.#load -= 1));
      return socket;
    } catch (error) {
      this.#load -= 1;
      throw error;
    } finally {
      this.#waiting -= 1;
    }
  }

  close(): void {
    this.#stop.abort(transient('ssh.cut', 'the tunnel was closed'));
    this.#session?.close();
  }

  async #channel(port: number): Promise<ChannelSocket> {
    for (;;) {
      const session = await this.#standing();
      try {
        return await openChannel(session, port);
      } catch (error) {
        // Cut before the channel was open, nothing was sent: the next connection is as good.
        if (session.error === null) throw error;
      }
    }
  }

  /** Time ran out before there was a connection: undici's own code, which says that nothing was sent. */
  #late(limitMs: number): Error {
    const cause = this.problem ?? undefined;
    const error = new Error(`no connection through the tunnel within ${limitMs} ms`, { cause });
    return Object.assign(error, { code: 'UND_ERR_CONNECT_TIMEOUT' });
  }

  async #standing(): Promise<Session> {
    if (this.#session !== null) return this.#session;
    this.#stop.signal.throwIfAborted();
    const known = this.#problem;
    if (this.#opening === null && known !== null && !isPassing(known)) {
      // Who asks within the pause is told what is known.
      if (performance.now() < this.#notBefore) throw known;
    }
    this.#opening ??= this.#open().finally(() => (this.#opening = null));
    return this.#opening;
  }

  /** Tries as long as somebody waits. */
  async #open(): Promise<Session> {
    const { signal } = this.#stop;
    for (;;) {
      const pause = this.#notBefore - performance.now();
      if (pause > 0) await sleep(pause, undefined, { signal });
      try {
        return await this.#attempt(signal);
      } catch (error) {
        signal.throwIfAborted();
        this.#failed(toError(error));
        if (!isPassing(error) || this.#waiting === 0) throw error;
      }
    }
  }

  async #attempt(signal: AbortSignal): Promise<Session> {
    const target = await this.#options.target(signal);
    const session = await openSession({ ...this.#options, ...target, signal });
    if (signal.aborted) session.close();
    signal.throwIfAborted();
    const since = performance.now();
    this.#session = session;
    this.#problem = null;
    void session.ended.then((error) => {
      this.#session = null;
      this.#failed(error);
      if (performance.now() - since < STOOD_MS) return;
      this.#pauseMs = 0;
      this.#notBefore = 0;
    });
    return session;
  }

  #failed(error: Error): void {
    this.#problem = error;
    this.#pauseMs = Math.min(LONGEST_PAUSE_MS, Math.max(FIRST_PAUSE_MS, this.#pauseMs * 2));
    this.#notBefore = performance.now() + this.#pauseMs * (0.5 + Math.random() / 2);
  }
}

/** What is not ours counts as passing. */
function isPassing(error: unknown): boolean {
  return !(error instanceof SluiceError) || error.kind === 'Transient';
}

/** A socket that comes too late is let go of. */
async function within(
  coming: Promise<ChannelSocket>,
  limitMs: number,
  late: () => Error,
): Promise<ChannelSocket> {
  const limit = Promise.withResolvers<never>();
  let isLate = false;
  const timer = setTimeout(() => {
    isLate = true;
    limit.reject(late());
  }, limitMs);
  coming.then(
    (socket) => (isLate ? socket.destroy() : undefined),
    // Whoever still waits is told by the race below.
    () => {},
  );
  try {
    return await Promise.race([coming, limit.promise]);
  } finally {
    clearTimeout(timer);
  }
}
