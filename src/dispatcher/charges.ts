import type { Clock } from './clock.ts';
import type { Engine } from './engine.ts';

/** Engines die for many reasons; that one line is in flight at two deaths is what makes it a suspect. */
const DEATHS_TO_ISOLATE = 2;
/** A line is blamed when it was alone in flight so often, and oftener where other processes send to the engine, too. */
const DEATHS_ALONE = 2;
const DEATHS_ALONE_BESIDE_OTHERS = 3;
/** How long before a death an attempt may have failed to be part of it: the first few fail before the breaker opens. */
const RECENT_MS = 5_000;
/** An engine or machine is replaced within that time; whoever is not asked again by then is forgotten. */
const KEEP_MS = 30 * 60_000;
const MOST_JOBS = 100;
const MOST_LINES_OF_A_JOB = 20_000;
const MOST_RECENT = 4_096;

/** One end of an engine; `lines` counts what was in flight there. */
interface Death {
  lines: number;
}

/** What is held against a line. */
export interface Charge {
  deaths: number;
  alone: number;
  last: Death | null;
  isBlamed: boolean;
}

interface JobCharges {
  lines: Map<number, Charge>;
  until: number;
}

/** What is held against lines, by job and line: within bounds, and for a while. */
export interface Charges {
  find(jobId: string, line: number): Charge | undefined;
  /** Of a line that may have to do with an engine's death; made if need be. */
  of(jobId: string, line: number): Charge;
  forget(jobId: string, line: number): void;
}

export function createCharges(clock: Clock): Charges {
  const jobs = new Map<string, JobCharges>();

  function linesOf(jobId: string): Map<number, Charge> {
    const now = clock.now();
    for (const [id, { until }] of jobs) if (until < now) jobs.delete(id);
    const lines = jobs.get(jobId)?.lines ?? new Map<number, Charge>();
    // The one that was touched last is the last to go.
    jobs.delete(jobId);
    jobs.set(jobId, { lines, until: now + KEEP_MS });
    const [oldest] = jobs.keys();
    if (jobs.size > MOST_JOBS && oldest !== undefined) jobs.delete(oldest);
    return lines;
  }

  return {
    find: (jobId, line) => (jobs.size === 0 ? undefined : jobs.get(jobId)?.lines.get(line)),
    of(jobId, line) {
      const lines = linesOf(jobId);
      const known = lines.get(line);
      if (known !== undefined) return known;
      const charge: Charge = { deaths: 0, alone: 0, last: null, isBlamed: false };
      if (lines.size < MOST_LINES_OF_A_JOB) lines.set(line, charge);
      return charge;
    },
    forget(jobId, line) {
      const lines = jobs.get(jobId)?.lines;
      lines?.delete(line);
      if (lines?.size === 0) jobs.delete(jobId);
    },
  };
}

/** Which lines were in flight at which deaths. */
export interface Deaths {
  /** An engine's breaker opened. */
  died(engine: Engine): void;
  /** A line's attempt ended as if the engine had died of it; `wasAlone`: and nothing else was in flight. */
  fell(engine: Engine, charge: Charge, wasAlone: boolean): void;
}

export function createDeaths(clock: Clock): Deaths {
  const last = new WeakMap<Engine, Death>();
  const recent = new WeakMap<Engine, { charge: Charge; at: number }[]>();
  return {
    died(engine) {
      const death: Death = { lines: 0 };
      last.set(engine, death);
      const begun = clock.now() - RECENT_MS;
      for (const { charge, at } of recent.get(engine) ?? []) if (at >= begun) accuse(charge, death);
      recent.delete(engine);
    },
    fell(engine, charge, wasAlone) {
      const death = last.get(engine);
      if (!engine.isOpen || death === undefined) {
        const list = recent.get(engine) ?? [];
        recent.set(engine, list);
        if (list.push({ charge, at: clock.now() }) > MOST_RECENT) list.shift();
        return;
      }
      accuse(charge, death);
      if (!wasAlone) return;
      charge.alone += 1;
      const isShared = engine.window.processes > 1;
      charge.isBlamed = charge.alone >= (isShared ? DEATHS_ALONE_BESIDE_OTHERS : DEATHS_ALONE);
    },
  };
}

function accuse(charge: Charge, death: Death): void {
  if (charge.last === death) return;
  charge.last = death;
  charge.deaths += 1;
  death.lines += 1;
}

/** Whether a line has to be isolated. */
export function isCharged(charge: Charge | undefined): charge is Charge {
  return charge !== undefined && charge.deaths >= DEATHS_TO_ISOLATE;
}

/** With how many others it may be in flight next: half of those of the last time. */
export function mostBeside({ last }: Charge): number {
  return Math.max(1, Math.floor((last?.lines ?? 2) / 2));
}
