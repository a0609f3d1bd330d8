import { closeSync, openSync, readFileSync, writeSync } from 'node:fs';
import type { IncomingHttpHeaders } from 'node:http';

/** `off` counts requests only, `counts` also how often each body was asked, `full` keeps an entry each. */
export type LogLevel = 'off' | 'counts' | 'full';

export type Outcome = 'in_flight' | 'answered' | 'refused' | 'fault' | 'aborted';

/** One inference request as this engine saw it: the witness that exactness tests compare with. */
export interface LogEntry {
  seq: number;
  path: string;
  /** Of the raw body; empty when the client went away before all of it was here. */
  sha256: string;
  bytes: number;
  /** The `x-…` headers of the request. */
  headers: Record<string, string>;
  /** Milliseconds since the epoch. */
  at: number;
  finished_at: number | null;
  status: number | null;
  outcome: Outcome;
  /** The kind of the fault that hit it. */
  fault: string | null;
  /** The client closed before it had the whole answer. */
  aborted: boolean;
  /** The raw body in base64, if asked for and kept. */
  body?: string;
}

/** Totals since the start. A body is named by the first 14 digits of its SHA-256. */
export interface Counts {
  requests: number;
  by_status: Record<string, number>;
  by_outcome: Record<string, number>;
  in_flight: number;
  max_in_flight: number;
  bytes_in: number;
  distinct_bodies: number;
  /** How many bodies were asked more than once, and how often the first 100 of them. */
  repeated: number;
  repeated_bodies: Record<string, number>;
  /** How many bodies got a whole good answer more than once: work that was paid for twice. */
  answered_again: number;
  answered_again_bodies: Record<string, number>;
}

/** What is known of a request when its body is here. */
export interface Arrival {
  path: string;
  sha256: string;
  body: Buffer;
  headers: IncomingHttpHeaders;
}

export interface RequestLog {
  level: LogLevel;
  keepBodies: boolean;
  /** A request line came in. */
  begin(): void;
  /** Its body is here (or never will be). The entry is what `finish` wants back. */
  arrived(arrival: Arrival): LogEntry | undefined;
  finish(end: End): void;
  counts(): Counts;
  entries(bodies: boolean): LogEntry[];
  close(): void;
}

export interface End {
  entry: LogEntry | undefined;
  sha256: string;
  status: number | null;
  outcome: Outcome;
  fault: string | null;
  /** The client closed first. */
  aborted: boolean;
}

const SHOWN = 100;
/** A map entry counts asked times in steps of 1 and answered times in steps of this. */
const ANSWERED = 0x10_0000;

/**
 * Counts bodies by 56 bits of their digest, in 256 maps: one Map holds at most 2^24 keys, and a number
 * as key costs a third of a string's memory.
 */
function createBodyCounter() {
  const maps = Array.from({ length: 256 }, () => new Map<number, number>());

  function add(sha256: string, step: number): void {
    const map = maps[Number.parseInt(sha256.slice(0, 2), 16)];
    if (map === undefined) return; // no digest: the body never arrived
    const key = Number.parseInt(sha256.slice(2, 14), 16);
    map.set(key, (map.get(key) ?? 0) + step);
  }

  function repeated(times: (cell: number) => number): [number, Record<string, number>] {
    const shown: Record<string, number> = {};
    let found = 0;
    for (const [first, map] of maps.entries()) {
      for (const [key, cell] of map) {
        if (times(cell) < 2) continue;
        found += 1;
        if (found > SHOWN) continue;
        const name = first.toString(16).padStart(2, '0') + key.toString(16).padStart(12, '0');
        shown[name] = times(cell);
      }
    }
    return [found, shown];
  }

  return {
    asked: (sha256: string) => add(sha256, 1),
    answered: (sha256: string) => add(sha256, ANSWERED),
    sizes: () => maps.map((map) => map.size),
    askedAgain: () => repeated((cell) => cell % ANSWERED),
    answeredAgain: () => repeated((cell) => Math.floor(cell / ANSWERED)),
  };
}

function ownHeaders(headers: IncomingHttpHeaders): Record<string, string> {
  const own: Record<string, string> = {};
  for (const [name, value] of Object.entries(headers)) {
    if (name.startsWith('x-')) own[name] = String(value);
  }
  return own;
}

function readLines(file: string): LogEntry[] {
  const lines = readFileSync(file, 'utf8').split('\n').filter(Boolean);
  return lines.map((line) => JSON.parse(line) as LogEntry); // this module wrote them
}

/**
 * With a file, finished entries are appended to it and read back from it, so the witness outlives a crash
 * and a restart; a line is written before its answer is counted. Without one they stay in memory.
 */
export function createRequestLog(level: LogLevel, file?: string): RequestLog {
  let descriptor = file === undefined ? undefined : openSync(file, 'a');
  const statuses: number[] = []; // by status: an array costs the hot path less than a keyed object
  const outcomes: Record<Outcome, number> = {
    in_flight: 0,
    answered: 0,
    refused: 0,
    fault: 0,
    aborted: 0,
  };
  const bodies = createBodyCounter();
  const kept = new Map<number, Buffer>();
  const finished: LogEntry[] = [];
  const open = new Set<LogEntry>();
  let requests = 0;
  let sequence = 0;
  let inFlight = 0;
  let maxInFlight = 0;
  let bytesIn = 0;

  function write(entry: LogEntry): void {
    open.delete(entry);
    if (descriptor === undefined) finished.push(entry);
    else writeSync(descriptor, `${JSON.stringify(entry)}\n`);
  }

  function withBody(entry: LogEntry): LogEntry {
    const body = kept.get(entry.seq);
    return body === undefined ? entry : { ...entry, body: body.toString('base64') };
  }

  const log: RequestLog = {
    level,
    keepBodies: false,
    begin() {
      requests += 1;
      inFlight += 1;
      if (inFlight > maxInFlight) maxInFlight = inFlight;
    },
    arrived({ path, sha256, body, headers }) {
      bytesIn += body.length;
      if (log.level === 'off') return undefined;
      bodies.asked(sha256);
      if (log.level === 'counts') return undefined;
      sequence += 1;
      const entry: LogEntry = {
        seq: sequence,
        path,
        sha256,
        bytes: body.length,
        headers: ownHeaders(headers),
        at: Date.now(),
        finished_at: null,
        status: null,
        outcome: 'in_flight',
        fault: null,
        aborted: false,
      };
      if (log.keepBodies) kept.set(entry.seq, body);
      open.add(entry);
      return entry;
    },
    finish({ entry, sha256, status, outcome, fault, aborted }) {
      inFlight -= 1;
      outcomes[outcome] += 1;
      if (status !== null) statuses[status] = (statuses[status] ?? 0) + 1;
      if (outcome === 'answered' && log.level !== 'off') bodies.answered(sha256);
      if (entry === undefined) return;
      Object.assign(entry, { status, outcome, fault, aborted });
      entry.finished_at = Date.now();
      write(entry);
    },
    counts() {
      let distinct = 0;
      for (const size of bodies.sizes()) distinct += size;
      const [repeated, repeatedBodies] = bodies.askedAgain();
      const [answeredAgain, answeredAgainBodies] = bodies.answeredAgain();
      const byStatus = Object.entries(statuses); // skips the holes of the array
      return {
        requests,
        by_status: Object.fromEntries(byStatus),
        by_outcome: { ...outcomes, in_flight: inFlight },
        in_flight: inFlight,
        max_in_flight: maxInFlight,
        bytes_in: bytesIn,
        distinct_bodies: distinct,
        repeated,
        repeated_bodies: repeatedBodies,
        answered_again: answeredAgain,
        answered_again_bodies: answeredAgainBodies,
      };
    },
    entries(withBodies) {
      const done = file === undefined ? finished : readLines(file);
      const all = [...done, ...open];
      return withBodies ? all.map(withBody) : all.map((entry) => ({ ...entry }));
    },
    close() {
      // The end of a connection may be told after this; such an entry stays in memory.
      if (descriptor !== undefined) closeSync(descriptor);
      descriptor = undefined;
    },
  };
  return log;
}
