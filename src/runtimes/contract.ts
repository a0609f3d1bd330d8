import type { Dispatcher } from 'undici';

/**
 * What a look at an engine found. `healthy`: it serves `models`, at least one of those that it was asked for.
 * `down`: it does not answer. `unfit`: it answers, but cannot serve this job (other models, a refused key).
 */
export type Look =
  | { is: 'healthy'; models: readonly string[] }
  | { is: 'down' | 'unfit'; reason: string };

/** A process's own way to an engine; nothing of it is ever stored. */
export interface Connection {
  readonly dispatcher: Dispatcher;
  /** Scheme, host and port that requests name. */
  readonly origin: string;
  /** What stands before `/v1` and `/health`, without a trailing slash. */
  readonly pathPrefix: string;
  /** Sent with every request, credentials among them. */
  readonly headers: Readonly<Record<string, string>>;
  /** Cuts what is in flight and lets go of the sockets. May be called twice. */
  close(): Promise<void>;
}

/** How an engine is reached. */
export interface Runtime {
  /** Opens this process's own connection to the engine at `address`; asks nothing of it yet. */
  connect(address: string): Connection;
  /**
   * Asks an engine whether it is healthy and which of `models` it serves; one is enough, and of none any engine is fit.
   * Never throws for what the engine does.
   */
  look(address: string, models: readonly string[], signal: AbortSignal): Promise<Look>;
}
