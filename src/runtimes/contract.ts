import type { Dispatcher } from 'undici';
import type { JobResources, MachineLogin } from '../domain/lease.ts';
import type { MachineProvider } from '../domain/provision.ts';

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
  /** Where the engine shows its metrics; absent: at `/metrics`. Rejects where that cannot be told now. */
  metricsPath?(): Promise<string>;
  /** Cuts what is in flight and lets go of the sockets. May be called twice. */
  close(): Promise<void>;
}

/** How an engine is reached. */
export interface Runtime {
  /** Opens this process's own connection to the engine at `address`; asks nothing of it yet. */
  connect(address: string): Connection;
  /**
   * Asks an engine whether it is healthy and which of `models` it serves; one is enough, and of none any engine is fit.
   * Never throws for what the engine or its machine does.
   */
  look(address: string, models: readonly string[], signal: AbortSignal): Promise<Look>;
}

/** A machine as one logs in to it. */
export interface MachineSite {
  provider: MachineProvider;
  login: MachineLogin;
  /** Public half of the key that it has to prove itself with, in one line, or the `SHA256:…` of that. */
  hostKey: string;
  /**
   * Where its engine is reached by the world, without a trailing slash; it asks for a key then. Absent: through a tunnel
   * only.
   */
  publicUrl?: string;
  /** It is the caller's, of the kind that `provider` leases out: nothing is mounted there that keeps weights. */
  isCallers?: true;
}

/** A leased machine with the engine on it. */
export interface LeasedSite extends MachineSite {
  /** Where the engine says that it is well, as its template has it; absent: at `/health`, which an engine may lack. */
  healthPath?: string;
  /** Where it shows its metrics, as its template has it; absent: at `/metrics`. */
  metricsPath?: string;
}

/** An engine that its provider runs, and how this process gets there. */
export interface HostedSite {
  /** What stands before `/v1` and `/health`. */
  url: string;
  /** Of a way that leads through somebody else, who has to be proven and asks who we are; null: none does. */
  tls: {
    ca?: string;
    cert?: string;
    key?: string;
    rejectUnauthorized?: boolean;
    servername?: string;
  } | null;
  /** Value of the header that each request carries; null: none. */
  authorization(): Promise<string | null>;
  /** As of a leased machine. */
  healthPath?: string;
  metricsPath?: string;
}

/**
 * The engine of a machine: `absent` was never started there, or was stopped; `launching` fetches its image; `running`
 * has a living process, which does not mean that it answers; `exited` with its exit code, null where nobody noted it,
 * and the end of what it said.
 */
export type EngineState =
  | { is: 'absent' | 'launching' | 'running' }
  | { is: 'exited'; code: number | null; lastWords: string };

/**
 * Logs in to machines and runs one engine on each. Keeps connections for a while, and opens them anew. All
 * methods reject with Transient `ssh.…` where the machine cannot be reached now, and Permanent `ssh.host_key_changed`
 * where another machine answers.
 */
export interface MachineRuntime {
  /** Logs in to a machine whose host key nobody knows yet, and resolves to that in one line: it is to be pinned. */
  readHostKey(login: MachineLogin, signal: AbortSignal): Promise<string>;
  /** Asks a machine what it has; resolves to why it is of no use, or to null where it is fit. */
  check(
    site: MachineSite,
    need: { gpuCount: number; vramGb: number; diskGb: number },
    signal: AbortSignal,
  ): Promise<string | null>;
  /**
   * Starts the engine of a template, and comes back before it is up. Where it was started already, that one is adopted,
   * whatever became of it. Throws InvalidInput `engine.…` for a template that cannot be started, and Permanent
   * `engine.other_command` where the machine has an engine of another template.
   */
  start(
    site: MachineSite,
    order: Pick<JobResources, 'spec' | 'servingName'>,
    signal: AbortSignal,
  ): Promise<EngineState>;
  look(site: MachineSite, signal: AbortSignal): Promise<EngineState>;
  /** Ends the engine, if there is one. */
  stop(site: MachineSite, signal: AbortSignal): Promise<void>;
  /** What the engine said from a byte on, whole lines only; `next` is where to read on. */
  readLog(
    site: MachineSite,
    offset: number,
    signal: AbortSignal,
  ): Promise<{ text: string; next: number }>;
}
