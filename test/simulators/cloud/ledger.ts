import type { EngineReport } from '../machines/knobs.ts';

/** How far a machine is. `ending` was told to end and has not yet. */
export type Phase = 'booting' | 'up' | 'stopped' | 'preempted' | 'ending' | 'gone';

export type EndReason = 'terminated' | 'vanished' | 'preempted' | 'closed';

/** One machine from its creation to its end, as those who judge a run see it. Times are epoch milliseconds. */
export interface LedgerEntry {
  id: string;
  name: string;
  phase: Phase;
  type: string;
  gpus: number;
  region: string;
  usd_per_hour: number;
  interruptible: boolean;
  /** `key` and user agent of the request. */
  asked_by: string;
  /** The request body. */
  request: unknown;
  created_at: number;
  /** The container or the virtual machine runs. */
  up_at: number | null;
  /** sshd greets. */
  ready_at: number | null;
  /** Every terminate that named it, lost ones included. */
  terminate_asked_at: number[];
  ended_at: number | null;
  end_reason: EndReason | null;
  billed_seconds: number;
  cost_usd: number;
  engines: EngineReport[];
  /** What was paid for without use; null where a moment never came. */
  idle_ms: {
    ready_to_engine: number | null;
    healthy_to_first_request: number | null;
    last_answer_to_terminate: number | null;
  };
  /** From the first request to the last answer of its engines. */
  serving_seconds: number;
}

export interface Ledger {
  machines: LedgerEntry[];
  totals: {
    created: number;
    alive: number;
    /** Machines whose name another one had, too, while both lived. */
    created_twice: number;
    billed_seconds: number;
    cost_usd: number;
    serving_seconds: number;
  };
}

/** Seconds that are billed for so many milliseconds: started seconds, or started minutes. */
export function billedSeconds(ms: number, unit: 'second' | 'minute'): number {
  const seconds = Math.ceil(Math.max(0, ms) / 1000);
  return unit === 'second' ? seconds : Math.ceil(seconds / 60) * 60;
}

function between(from: number | null | undefined, to: number | null | undefined): number | null {
  return from === null || from === undefined || to === null || to === undefined ? null : to - from;
}

/** What the engines' own reports say about time that was paid for and not used. */
export function idleTimes(
  entry: Pick<LedgerEntry, 'ready_at' | 'terminate_asked_at'>,
  engines: readonly EngineReport[],
): Pick<LedgerEntry, 'idle_ms' | 'serving_seconds'> {
  const first = engines[0];
  const serving = engines.findLast(({ first_request_at: at }) => at !== null);
  let seconds = 0;
  for (const engine of engines) {
    seconds += (between(engine.first_request_at, engine.last_answer_at) ?? 0) / 1000;
  }
  return {
    idle_ms: {
      ready_to_engine: between(entry.ready_at, first?.started_at),
      healthy_to_first_request: between(serving?.healthy_at, serving?.first_request_at),
      last_answer_to_terminate: between(serving?.last_answer_at, entry.terminate_asked_at[0]),
    },
    serving_seconds: seconds,
  };
}

function overlaps(one: LedgerEntry, two: LedgerEntry): boolean {
  const end = (entry: LedgerEntry): number => entry.ended_at ?? Number.POSITIVE_INFINITY;
  return one.created_at < end(two) && two.created_at < end(one);
}

/** Adds the totals. */
export function summarize(machines: LedgerEntry[]): Ledger {
  const totals: Ledger['totals'] = {
    created: machines.length,
    alive: 0,
    created_twice: 0,
    billed_seconds: 0,
    cost_usd: 0,
    serving_seconds: 0,
  };
  const byName = Map.groupBy(machines, ({ name }) => name);
  for (const entry of machines) {
    if (entry.phase !== 'gone') totals.alive += 1;
    totals.billed_seconds += entry.billed_seconds;
    totals.cost_usd += entry.cost_usd;
    totals.serving_seconds += entry.serving_seconds;
    const namesakes = byName.get(entry.name) ?? [];
    if (namesakes.some((other) => other !== entry && overlaps(entry, other)))
      totals.created_twice += 1;
  }
  return { machines, totals };
}
