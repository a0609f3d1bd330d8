import { setTimeout as sleep } from 'node:timers/promises';
import { startMachine } from '../machines/machine.ts';
import type { Machine, MachineSpec } from '../machines/machine.ts';
import { machineKnobs } from '../machines/knobs.ts';
import type { EngineReport, MachineKnobs } from '../machines/knobs.ts';
import { startRelay } from '../machines/relay.ts';
import type { Relay } from '../machines/relay.ts';
import type { Yard } from '../machines/yard.ts';
import { fraction, seededRandom, sha256 } from '../vllm/digest.ts';
import type { LogEntry } from '../vllm/request-log.ts';
import { merge, parseControl } from './knobs.ts';
import type { CloudKnobs, Override } from './knobs.ts';
import { billedSeconds, idleTimes, summarize } from './ledger.ts';
import type { EndReason, Ledger, LedgerEntry, Phase } from './ledger.ts';

/** One machine of the account. Times are epoch milliseconds. */
export interface Lease<Extra> {
  readonly id: string;
  name: string;
  readonly type: string;
  readonly gpus: number;
  /** What it takes of the stock. */
  readonly units: number;
  readonly region: string;
  readonly usdPerHour: number;
  readonly interruptible: boolean;
  readonly askedBy: string;
  readonly request: unknown;
  readonly createdAt: number;
  phase: Phase;
  upAt: number | null;
  readyAt: number | null;
  readonly terminateAskedAt: number[];
  endedAt: number | null;
  endReason: EndReason | null;
  /** What the provider says instead of the truth. */
  shownStatus: string | null;
  /** Address and ports are not shown before; null is never. */
  addressAt: number | null;
  machine: Machine | undefined;
  relay: Relay | undefined;
  /** Counts boots: a step of an older one has no say any more. */
  boots: number;
  engines: EngineReport[];
  /** Of machines that it had before. */
  asked: LogEntry[];
  override: Override | undefined;
  extra: Extra;
}

export type NewLease<Extra> = Pick<
  Lease<Extra>,
  | 'id'
  | 'name'
  | 'type'
  | 'gpus'
  | 'units'
  | 'region'
  | 'usdPerHour'
  | 'interruptible'
  | 'askedBy'
  | 'request'
  | 'extra'
>;

export interface FleetOptions<Extra> {
  /** Without one, machines are entries of the ledger only: nothing runs. */
  yard: Yard | undefined;
  seed: number;
  billed: 'second' | 'minute';
  knobs(): CloudKnobs;
  spec(lease: Lease<Extra>, knobs: MachineKnobs): Promise<MachineSpec>;
  /** A public port of another address stands before sshd, as RunPod's network has it. */
  relayed: boolean;
}

export interface Fleet<Extra> {
  create(input: NewLease<Extra>): Lease<Extra>;
  /** Every machine there ever was. */
  all(): Lease<Extra>[];
  alive(): Lease<Extra>[];
  /** What a list shows at this moment, with what lag there is. */
  listed(): Lease<Extra>[];
  /** What its id finds. */
  find(id: string): Lease<Extra> | undefined;
  /** Units left of a type in a region; for one that plenty are left of, Infinity. */
  stock(type: string, region: string): number;
  /** Draws whether a create is refused although there is stock. */
  refuses(): boolean;
  terminate(lease: Lease<Extra>, lost: boolean): void;
  /** Ends the machine at once, whatever the provider was told. */
  end(lease: Lease<Extra>, reason: EndReason): Promise<void>;
  /** Ends what runs in it and keeps the lease. */
  halt(lease: Lease<Extra>, phase: 'stopped' | 'preempted'): Promise<void>;
  boot(lease: Lease<Extra>): void;
  /** Where clients reach its SSH, once that is shown. */
  endpoint(lease: Lease<Extra>): { host: string; port: number } | undefined;
  ledger(): Ledger;
  /** Ends all and forgets them. */
  reset(): Promise<void>;
  close(): Promise<void>;
}

/** Namespaces, file copies and key generation of more at once would only wait for each other. */
const STARTS_AT_ONCE = 4;

function createGate(width: number) {
  const waiting: (() => void)[] = [];
  let inside = 0;
  return async function pass<T>(work: () => Promise<T>): Promise<T> {
    if (inside >= width) {
      const { promise, resolve } = Promise.withResolvers<undefined>();
      waiting.push(() => resolve(undefined));
      await promise;
    }
    inside += 1;
    try {
      return await work();
    } finally {
      inside -= 1;
      waiting.shift()?.();
    }
  };
}

function fits(override: Override, lease: Lease<unknown>): boolean {
  if (override.type !== undefined && override.type !== lease.type) return false;
  if (override.region !== undefined && override.region !== lease.region) return false;
  return override.name === undefined || new RegExp(override.name).test(lease.name);
}

/** Machines of one account and their lives; providers differ in how they are asked for and shown. */
export function createFleet<Extra>(options: FleetOptions<Extra>): Fleet<Extra> {
  const { yard, knobs } = options;
  const gate = createGate(STARTS_AT_ONCE);
  const leases = new Map<string, Lease<Extra>>();
  const used = new Map<number, number>();
  const pending = new Set<Promise<void>>();
  const ends = new Map<string, Promise<void>>();
  const timers = new Set<NodeJS.Timeout>();
  const random = seededRandom(options.seed);
  let closing = false;

  function track(work: Promise<void>): void {
    pending.add(work);
    void work.catch((error: unknown) => console.error(error)).finally(() => pending.delete(work));
  }

  function later(delayMs: number, act: () => unknown): void {
    const timer = setTimeout(() => {
      timers.delete(timer);
      act();
    }, delayMs);
    timers.add(timer);
  }

  function overrideFor(lease: Lease<Extra>): Override | undefined {
    for (const [at, one] of knobs().overrides.entries()) {
      const count = used.get(at) ?? 0;
      if (!fits(one, lease) || (one.count !== null && count >= one.count)) continue;
      used.set(at, count + 1);
      return one;
    }
    return undefined;
  }

  function knobsFor({ override }: Lease<Extra>): MachineKnobs {
    const base = knobs().machine as Record<string, unknown>; // its fields are read by name below
    return parseControl(machineKnobs, merge(base, override?.machine ?? {}));
  }

  async function watchReady(lease: Lease<Extra>, boot: number): Promise<void> {
    while (lease.boots === boot && lease.phase === 'up' && !closing) {
      if ((await lease.machine?.answersSsh()) === true) {
        lease.readyAt ??= Date.now();
        return;
      }
      await sleep(50);
    }
  }

  function scheduleLoss(lease: Lease<Extra>, boot: number): void {
    const { preempt_after_ms: preempt } = knobs();
    const vanish = lease.override?.vanish_after_ms;
    const still = (): boolean => lease.boots === boot && lease.phase === 'up';
    if (vanish !== undefined) later(vanish, () => still() && track(end(lease, 'vanished')));
    if (preempt === null || !lease.interruptible) return;
    const [from, to] = preempt;
    later(from + random() * (to - from), () => still() && track(halt(lease, 'preempted')));
  }

  async function halt(lease: Lease<Extra>, phase: 'stopped' | 'preempted'): Promise<void> {
    lease.boots += 1;
    lease.phase = phase;
    lease.addressAt = null;
    await quench(lease);
  }

  async function openRelay(lease: Lease<Extra>): Promise<void> {
    const machine = lease.machine;
    if (!options.relayed || machine === undefined) return;
    // Each machine has a public address of its own; all of 127/8 is this host.
    const host = machine.address.replace(/^10\.213\./, '127.213.');
    lease.relay = await startRelay(host, () => ({ host: machine.address, port: 22 }));
  }

  async function start(lease: Lease<Extra>, boot: number): Promise<void> {
    const current = (): boolean => lease.boots === boot && lease.phase === 'booting' && !closing;
    if (yard !== undefined) {
      const machine = await gate(async () => {
        if (!current()) return undefined;
        return startMachine(yard.folder, await options.spec(lease, knobsFor(lease)));
      });
      if (machine === undefined) return;
      if (!current()) {
        await machine.stop();
        return;
      }
      lease.machine = machine;
      await openRelay(lease);
    }
    if (!current()) {
      await quench(lease);
      return;
    }
    lease.phase = 'up';
    lease.upAt = Date.now();
    const late = lease.override?.address_late_ms ?? knobs().address_late_ms;
    lease.addressAt = lease.override?.address_never === true ? null : Date.now() + late;
    scheduleLoss(lease, boot);
    if (yard === undefined) lease.readyAt ??= lease.upAt;
    else track(watchReady(lease, boot));
  }

  function boot(lease: Lease<Extra>): void {
    lease.boots += 1;
    lease.phase = 'booting';
    lease.addressAt = null;
    const number = lease.boots;
    const [from, to] = lease.override?.boot_ms ?? knobs().boot_ms;
    later(from + random() * (to - from), () => track(start(lease, number)));
  }

  /** Ends what runs, keeping what its engines have reported. */
  async function quench(lease: Lease<Extra>): Promise<void> {
    const { machine, relay } = lease;
    lease.machine = undefined;
    lease.relay = undefined;
    if (machine !== undefined) lease.engines.push(...machine.engines());
    await Promise.all([machine?.stop(), relay?.close()]);
    lease.asked.push(...(machine?.requests() ?? []));
  }

  async function end(lease: Lease<Extra>, reason: EndReason): Promise<void> {
    if (lease.phase !== 'gone') {
      lease.phase = 'gone';
      lease.boots += 1;
      lease.endedAt = Date.now();
      lease.endReason = reason;
      const work = quench(lease);
      ends.set(lease.id, work);
      track(work);
    }
    await ends.get(lease.id);
  }

  function toEntry(lease: Lease<Extra>): LedgerEntry {
    const engines = [...lease.engines, ...(lease.machine?.engines() ?? [])];
    const seconds = billedSeconds((lease.endedAt ?? Date.now()) - lease.createdAt, options.billed);
    const moments = { ready_at: lease.readyAt, terminate_asked_at: lease.terminateAskedAt };
    return {
      id: lease.id,
      name: lease.name,
      phase: lease.phase,
      type: lease.type,
      gpus: lease.gpus,
      region: lease.region,
      usd_per_hour: lease.usdPerHour,
      interruptible: lease.interruptible,
      asked_by: lease.askedBy,
      request: lease.request,
      created_at: lease.createdAt,
      up_at: lease.upAt,
      ended_at: lease.endedAt,
      end_reason: lease.endReason,
      billed_seconds: seconds,
      cost_usd: (seconds / 3600) * lease.usdPerHour,
      engines,
      ...moments,
      ...idleTimes(moments, engines),
    };
  }

  function isOut(type: string, region: string): boolean {
    const { flicker } = knobs();
    if (flicker === null || flicker.period_ms === 0) return false;
    const period = Math.floor(Date.now() / flicker.period_ms);
    return fraction(sha256(`${options.seed}|${type}|${region}|${period}`)) < flicker.share;
  }

  function stock(type: string, region: string): number {
    if (isOut(type, region)) return 0;
    const given = knobs().capacity[type];
    const perRegion = typeof given === 'object' && given !== null;
    const limit = perRegion ? (given[region] ?? (region in given ? null : 0)) : (given ?? null);
    if (limit === null) return Number.POSITIVE_INFINITY;
    let taken = 0;
    for (const lease of leases.values()) {
      const holds = lease.phase !== 'gone' && lease.phase !== 'stopped' && lease.type === type;
      if (holds && (!perRegion || lease.region === region)) taken += lease.units;
    }
    return Math.max(0, limit - taken);
  }

  async function reset(): Promise<void> {
    for (const timer of timers) clearTimeout(timer);
    timers.clear();
    await Promise.all([...leases.values()].map(async (lease) => end(lease, 'closed')));
    await Promise.allSettled(pending);
    leases.clear();
    used.clear();
    ends.clear();
  }

  return {
    create(input) {
      const lease: Lease<Extra> = {
        ...input,
        createdAt: Date.now(),
        phase: 'booting',
        upAt: null,
        readyAt: null,
        terminateAskedAt: [],
        endedAt: null,
        endReason: null,
        shownStatus: null,
        addressAt: null,
        machine: undefined,
        relay: undefined,
        boots: 0,
        engines: [],
        asked: [],
        override: undefined,
      };
      lease.override = overrideFor(lease);
      leases.set(lease.id, lease);
      boot(lease);
      return lease;
    },
    all: () => [...leases.values()],
    alive: () => [...leases.values()].filter(({ phase }) => phase !== 'gone'),
    listed() {
      const now = Date.now();
      const { list_lag_ms: lag, gone_lag_ms: goneLag } = knobs();
      return [...leases.values()].filter((lease) => {
        if (now - lease.createdAt < lag) return false;
        return lease.endedAt === null || now - lease.endedAt < goneLag;
      });
    },
    find(id) {
      const lease = leases.get(id);
      if (lease === undefined) return undefined;
      if (Date.now() - lease.createdAt < knobs().get_404_ms) return undefined;
      if (lease.endedAt !== null && Date.now() - lease.endedAt >= knobs().gone_lag_ms)
        return undefined;
      return lease;
    },
    stock,
    refuses: () => random() < knobs().refuse_share,
    terminate(lease, lost) {
      lease.terminateAskedAt.push(Date.now());
      if (lost || lease.phase === 'gone' || lease.phase === 'ending') return;
      const { terminate_ms: delay } = knobs();
      lease.phase = 'ending';
      lease.boots += 1;
      if (delay === 0) void end(lease, 'terminated');
      else later(delay, () => void end(lease, 'terminated'));
    },
    end,
    halt,
    boot,
    endpoint(lease) {
      const shown = lease.addressAt !== null && Date.now() >= lease.addressAt;
      if (!shown || lease.phase !== 'up') return undefined;
      if (yard === undefined)
        return { host: '203.0.113.7', port: options.relayed ? 10_021 + lease.boots : 22 };
      if (lease.relay !== undefined) return { host: lease.relay.host, port: lease.relay.port };
      return lease.machine === undefined ? undefined : { host: lease.machine.address, port: 22 };
    },
    ledger: () => summarize([...leases.values()].map(toEntry)),
    reset,
    async close() {
      closing = true;
      await reset();
    },
  };
}
