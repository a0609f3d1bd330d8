import type { Engine } from './engine.ts';
import { parseFaults } from './faults.ts';
import type { FaultPlan } from './faults.ts';
import type { Metrics } from './metrics.ts';
import { changeProfile, InvalidSetting } from './profile.ts';
import type { Profile } from './profile.ts';
import type { Counts, LogLevel, RequestLog } from './request-log.ts';

/** All that a running simulator is. */
export interface SimulatorState {
  /** Names it answers to; the first is its `model_name` in metrics. */
  models: readonly string[];
  anyModel: boolean;
  apiKey: string | undefined;
  requestIdHeaders: boolean;
  profile: Profile;
  engine: Engine;
  metrics: Metrics;
  log: RequestLog;
  faults: FaultPlan;
  /** The model is still being loaded. */
  starting: boolean;
  startedAt: number;
  connections: { opened: number; open: number };
  /** Nothing is answered any more, except under /admin. */
  silent: boolean;
  /** Refuses new connections and closes idle ones. */
  stopListening(): void;
  /** Ends the simulator as a crash does. */
  exit(code: number): void;
}

/** `GET /admin/counts`. */
export interface SimulatorCounts extends Counts {
  /** CPU of the simulator's process since it started, so that a bench can tell it from its own. */
  cpu_seconds: { user: number; system: number };
  uptime_seconds: number;
  connections: { opened: number; open: number };
  engine: { running: number; waiting: number; kv_cache_usage: number; preemptions: number };
  prefix_cache: { queries: number; hits: number };
  generated_tokens: number;
}

/** `GET /admin/config`. */
export interface SimulatorConfig extends Profile {
  log: LogLevel;
  keep_bodies: boolean;
}

/** Totals at this moment. */
export function countsOf(state: SimulatorState): SimulatorCounts {
  const { user, system } = process.cpuUsage();
  const { running, waiting, kvUsage } = state.engine.stats();
  const { preemptions, prefixQueries, prefixHits, generationTokens } = state.metrics.counters;
  return {
    ...state.log.counts(),
    cpu_seconds: { user: user / 1e6, system: system / 1e6 },
    uptime_seconds: (Date.now() - state.startedAt) / 1000,
    connections: { ...state.connections },
    engine: { running, waiting, kv_cache_usage: kvUsage, preemptions },
    prefix_cache: { queries: prefixQueries, hits: prefixHits },
    generated_tokens: generationTokens,
  };
}

/** What applyConfig may change, as it is now. */
export function configOf({ profile, log }: SimulatorState): SimulatorConfig {
  return { ...profile, log: log.level, keep_bodies: log.keepBodies };
}

/** Replaces all faults, or throws InvalidSetting for `{"faults": [...]}` that makes no sense. */
export function applyFaults(state: SimulatorState, input: unknown): void {
  const faults = parseFaults(input);
  state.faults.set(faults);
  if (!faults.some(({ kind }) => kind === 'drain_silently')) return;
  state.silent = true;
  state.engine.stall();
  state.stopListening();
}

function asLogLevel(value: unknown): LogLevel {
  if (value === 'off' || value === 'counts' || value === 'full') return value;
  throw new InvalidSetting(`log must be off, counts or full, got ${JSON.stringify(value)}`);
}

/** Changes speed, limits and log of a running simulator: all of it or, with InvalidSetting, nothing. */
export function applyConfig(state: SimulatorState, changes: Record<string, unknown>): void {
  const { log, keep_bodies: keep, ...rest } = changes;
  const profile = changeProfile(state.profile, rest);
  const level = log === undefined ? state.log.level : asLogLevel(log);
  if (keep !== undefined && typeof keep !== 'boolean') {
    throw new InvalidSetting('keep_bodies must be true or false');
  }
  state.profile = profile;
  state.engine.configure(profile);
  state.log.keepBodies = keep ?? state.log.keepBodies;
  // A body is kept with its entry, so keeping bodies needs entries.
  state.log.level = keep === true ? 'full' : level;
}
