import { openYard, whyNoNamespaces } from '../machines/yard.ts';
import type { Yard } from '../machines/yard.ts';
import { createControl } from './control.ts';
import type { CloudControl, RequestEntry, Steered } from './control.ts';
import { createFaultPlan } from './faults.ts';
import { startCloudServer } from './server.ts';
import type { CloudApi } from './server.ts';

/** How to start a simulated cloud; its command line takes flags that say the same. */
export interface CloudOptions {
  /** 0, the default, takes a free one. */
  port?: number;
  host?: string;
  apiKeys?: readonly string[];
  /** Of faults, boot times, refusals and flicker. */
  seed?: number;
  /** `none`: machines are entries of the ledger, and nothing runs in them. Default `real`. */
  machines?: 'real' | 'none';
  /** What differs from the defaults of its state.ts and of knobs.ts. */
  knobs?: Record<string, unknown>;
  /** Public keys of the account. */
  sshKeys?: readonly string[];
}

export interface CloudSimulator extends AsyncDisposable {
  /** Without the version of its API. */
  url: string;
  port: number;
  control: CloudControl;
  /** Ends every machine and stops. */
  stop(): Promise<void>;
}

/** What real machines stand on; undefined for machines that are none. Throws where they cannot run here, with the mend. */
export async function openGround({ machines = 'real' }: CloudOptions): Promise<Yard | undefined> {
  if (machines === 'none') return undefined;
  const problem = await whyNoNamespaces();
  if (problem !== undefined) throw new Error(problem);
  return openYard();
}

/** Serves a simulated cloud in this process. */
export async function serveCloud<Extra>(
  { port = 0, host = '127.0.0.1', seed = 1 }: CloudOptions,
  cloud: Omit<Steered<Extra>, 'faults' | 'requests'> & { yard: Yard | undefined; api: CloudApi },
): Promise<CloudSimulator> {
  const faults = createFaultPlan(seed);
  const requests: RequestEntry[] = [];
  const control = createControl<Extra>({ ...cloud, faults, requests });
  const server = await startCloudServer({ port, host, api: cloud.api, control, faults, requests });
  let stopped: Promise<void> | undefined;

  async function stopAll(): Promise<void> {
    await server.close();
    await cloud.fleet.close();
    await cloud.yard?.close();
  }

  async function stop(): Promise<void> {
    stopped ??= stopAll();
    await stopped;
  }

  return { url: server.url, port: server.port, control, stop, [Symbol.asyncDispose]: stop };
}
