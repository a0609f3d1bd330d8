import * as v from 'valibot';
import { engineKnobs } from '../machines/knobs.ts';
import type { LogEntry } from '../vllm/request-log.ts';
import type { FaultInput, FaultReport } from './faults.ts';
import type { Fleet, Lease } from './fleet.ts';
import { InvalidControl, merge, parseControl } from './knobs.ts';
import type { Ledger, LedgerEntry } from './ledger.ts';

/** One request as the simulator saw it. */
export interface RequestEntry {
  at: number;
  method: string;
  path: string;
  op: string;
  /** null: it got no answer. */
  status: number | null;
  /** The kind of the fault that hit it. */
  fault: string | null;
  asked_by: string;
}

/** One request that an engine on one of the machines has dealt with. */
export interface AskedEntry extends LogEntry {
  machine: string;
}

/**
 * What may be done to one machine from outside:
 * `vanish` (gone, and the provider says so) · `power_off` (dead, and the provider does not notice) ·
 * `preempt` · `change_address` · `change_host_key` · `cut_ssh` (connections end) · `freeze` and `thaw` (every
 * packet is swallowed) · `status` `{status}` (what the provider claims; null undoes it) ·
 * `engine` `{…engine knobs}` (of engines that start from now on) · `kill_engine` `{signal?}` ·
 * `gpu_fault` `{fault}` · `exec` `{command}` (a shell line as root: `{code, stdout, stderr}`).
 */
export const ACTS = [
  'vanish',
  'power_off',
  'preempt',
  'change_address',
  'change_host_key',
  'cut_ssh',
  'freeze',
  'thaw',
  'status',
  'engine',
  'kill_engine',
  'gpu_fault',
  'exec',
] as const;

export type Act = (typeof ACTS)[number];

/** How tests steer and judge a simulated cloud, in this process or over `/_sim`. */
export interface CloudControl {
  knobs(): Promise<Record<string, unknown>>;
  /** Lays changes over the knobs; `machine` and its `engine` are merged. Throws InvalidControl. */
  setKnobs(changes: Record<string, unknown>): Promise<Record<string, unknown>>;
  faults(): Promise<FaultReport[]>;
  /** Replaces all faults. Throws InvalidControl. */
  setFaults(faults: readonly FaultInput[]): Promise<FaultReport[]>;
  /** Machines that exist now, whatever any list shows. */
  inventory(): Promise<LedgerEntry[]>;
  ledger(): Promise<Ledger>;
  requests(): Promise<RequestEntry[]>;
  /** What engines on its machines have answered, refused or dropped; also on those that are gone. */
  asked(): Promise<AskedEntry[]>;
  /** Does something to the machine of this id. Throws InvalidControl. */
  act(id: string, act: Act, options?: Record<string, unknown>): Promise<unknown>;
  /** Ends all machines and forgets them, the faults and the requests; knobs stay. */
  reset(): Promise<void>;
}

const statusOptions = v.strictObject({ status: v.nullable(v.string()) });
const signalOptions = v.strictObject({ signal: v.optional(v.picklist(['TERM', 'KILL']), 'KILL') });
const gpuOptions = v.strictObject({
  fault: v.nullable(v.picklist(['driver', 'cuda802', 'cuda804'])),
});
const execOptions = v.strictObject({ command: v.string() });

/** Does one act; throws InvalidControl for one that this machine cannot suffer. */
async function actOn<Extra>(
  fleet: Fleet<Extra>,
  lease: Lease<Extra>,
  act: Act,
  options: Record<string, unknown>,
): Promise<unknown> {
  const { machine, relay } = lease;
  const needed = (): NonNullable<typeof machine> => {
    if (machine !== undefined) return machine;
    throw new InvalidControl(`machine ${lease.id} is ${lease.phase}: nothing runs in it`);
  };
  switch (act) {
    case 'vanish':
      return fleet.end(lease, 'vanished');
    case 'power_off':
      return needed().stop();
    case 'preempt':
      return fleet.halt(lease, 'preempted');
    case 'change_address':
      return { address: await needed().changeAddress() };
    case 'change_host_key':
      return needed().changeHostKey();
    case 'cut_ssh':
      relay?.cut();
      return needed().cutSsh();
    case 'freeze':
    case 'thaw':
      relay?.freeze(act === 'freeze');
      return needed().freeze(act === 'freeze');
    case 'status':
      lease.shownStatus = parseControl(statusOptions, options).status;
      return undefined;
    case 'engine':
      return needed().setEngine(parseControl(engineKnobs, options));
    case 'kill_engine': {
      const { signal } = parseControl(signalOptions, options);
      return needed().exec(`pkill -${signal} -f '[m]achines/engine.ts'`);
    }
    case 'gpu_fault':
      return needed().setGpuFault(parseControl(gpuOptions, options).fault);
    case 'exec':
      return needed().exec(parseControl(execOptions, options).command);
  }
}

export interface Steered<Extra> {
  fleet: Fleet<Extra>;
  faults: { set(faults: unknown): void; report(): FaultReport[] };
  requests: RequestEntry[];
  knobs(): Record<string, unknown>;
  /** Parses and keeps; throws InvalidControl. */
  setKnobs(next: Record<string, unknown>): void;
}

/** The control of a cloud in this process. */
export function createControl<Extra>(cloud: Steered<Extra>): CloudControl {
  return {
    knobs: async () => cloud.knobs(),
    async setKnobs(changes) {
      cloud.setKnobs(merge(cloud.knobs(), changes));
      return cloud.knobs();
    },
    faults: async () => cloud.faults.report(),
    async setFaults(faults) {
      cloud.faults.set(faults);
      return cloud.faults.report();
    },
    async inventory() {
      return cloud.fleet.ledger().machines.filter(({ phase }) => phase !== 'gone');
    },
    ledger: async () => cloud.fleet.ledger(),
    requests: async () => [...cloud.requests],
    asked: async () =>
      cloud.fleet.all().flatMap((lease) => {
        const entries = [...lease.asked, ...(lease.machine?.requests() ?? [])];
        return entries.map((entry) => ({ ...entry, machine: lease.id }));
      }),
    async act(id, act, options = {}) {
      const lease = cloud.fleet.all().find((one) => one.id === id);
      if (lease === undefined) throw new InvalidControl(`no machine ${id}`);
      return actOn(cloud.fleet, lease, act, options);
    },
    async reset() {
      cloud.faults.set([]);
      cloud.requests.length = 0;
      await cloud.fleet.reset();
    },
  };
}

async function ask(base: string, path: string, body?: unknown): Promise<unknown> {
  const post = { method: 'POST', body: JSON.stringify(body) };
  const answer = await fetch(`${base}/_sim${path}`, body === undefined ? {} : post);
  const value: unknown = await answer.json();
  if (answer.ok) return value;
  throw new InvalidControl((value as { error: string }).error); // what server.ts answers
}

/** The control of a cloud in another process. */
export function connectControl(url: string): CloudControl {
  // The shapes are those of createControl, which server.ts serves.
  return {
    knobs: async () => (await ask(url, '/knobs')) as Record<string, unknown>,
    setKnobs: async (changes) => (await ask(url, '/knobs', changes)) as Record<string, unknown>,
    faults: async () => (await ask(url, '/faults')) as FaultReport[],
    setFaults: async (faults) => (await ask(url, '/faults', faults)) as FaultReport[],
    inventory: async () => (await ask(url, '/inventory')) as LedgerEntry[],
    ledger: async () => (await ask(url, '/ledger')) as Ledger,
    requests: async () => (await ask(url, '/requests')) as RequestEntry[],
    asked: async () => (await ask(url, '/asked')) as AskedEntry[],
    act: async (id, act, options = {}) => ask(url, `/machines/${id}/${act}`, options),
    reset: async () => {
      await ask(url, '/reset', {});
    },
  };
}
