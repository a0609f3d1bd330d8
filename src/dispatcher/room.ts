import type { Engine } from './engine.ts';
import { onAbort } from './on-abort.ts';

/** A job as far as places at engines go. */
export interface Tenant {
  /** Its turn among others: who waits with a lower one is served first. */
  readonly rank: number;
  /** Lines in flight that this process may have of it at an engine. */
  cap(engine: Engine): number;
  /** False while rate limits keep its lines from the engine; one that has its permit waits behind no others. */
  mayAsk(engine: Engine, hasPermit: boolean): boolean;
  /** Whether the engine's window holds it back as well; else only `cap` does. */
  readonly isAdaptive: boolean;
  /** The engines that serve it now and can be asked for a model; null: all of them. */
  engines(model: string | null): readonly Engine[];
  /** Its lines that are sent or wait to be sent again. */
  inHand: number;
  /** Its lines in flight, by engine and in all: the room counts them. */
  readonly inFlight: Map<Engine, number>;
  allInFlight: number;
}

/** What a line needs a place for. */
export interface Wish {
  readonly tenant: Tenant;
  /** Only engines that serve it will do; null: any. */
  readonly model: string | null;
  /** Lines of equal affinity go to the same engine while it is not much busier than others; null: to any. */
  readonly affinity: number | null;
  /** Any engine but this one. */
  readonly avoid?: Engine;
  /** Lets it in where the room, or an engine, is kept clear for it. */
  pass?: Pass | null;
  /** The engine that rate limits let it be sent to already: there it goes if it can. */
  permitted?: Engine | null;
}

/** For lines that may have no others beside them. */
export interface Pass {
  /** Tells passes apart among those who wait, from 1. */
  readonly id: number;
  /** Its lines go nowhere else; null: to any engine. */
  readonly engine: Engine | null;
}

/**
 * The places at all engines of this process: one line in flight takes one. Jobs take turns: of those that wait, the one
 * with the least in flight is served next, and nobody waits behind a job that may not have more.
 */
export interface Room {
  /** Waits for a place, for a line in hand; null when the signal is aborted first. */
  take(wish: Wish, signal: AbortSignal): Promise<Engine | null>;
  /**
   * The same for a line that is not in hand yet, null at once where there is no place. While many lines wait to be
   * asked again, new ones have to wait too: a sick engine must not draw the whole input into memory.
   */
  tryTakeFresh(wish: Wish): Engine | null;
  takeFresh(wish: Wish, signal: AbortSignal): Promise<Engine | null>;
  give(engine: Engine, tenant: Tenant): void;
  /** Looks again who can be served: an engine came, went, is healthy again, or takes more. */
  kick(): void;
  /** Nobody gets a place while anybody keeps the room closed, but for a line whose pass closes it. */
  setClosed(by: object, closed: boolean): void;
  /** Until `letGo`, nobody gets a place at the engine but lines that have the pass. */
  keep(engine: Engine, pass: Pass): void;
  letGo(engine: Engine): void;
}

interface Waiter {
  wish: Wish;
  isFresh: boolean;
  resolve: (engine: Engine | null) => void;
}

/** Those of a job that wait for the same, in order: where the first gets nothing, none behind it does. */
interface Line {
  key: string;
  waiters: Waiter[];
}

/** Those of a job that wait, the line whose turn it is first. */
interface Queue {
  tenant: Tenant;
  lines: Line[];
}

/** By how much busier than the least busy one the engine of a line's affinity may be. */
const MOST_BUSIER = 1.25;
const SLACK = 0.05;
const NONE_KEPT: ReadonlyMap<Engine, Pass> = new Map();

/** Who waits for a place, by job. Arrays throughout: a Map or Set would outlive its changes, as `Roster` tells. */
function createWaiters() {
  const waiting: Queue[] = [];

  function enter(waiter: Waiter): void {
    const { tenant } = waiter.wish;
    const key = keyOf(waiter);
    const queue = waiting.find((each) => each.tenant === tenant);
    const line = queue?.lines.find((each) => each.key === key);
    if (line !== undefined) line.waiters.push(waiter);
    else if (queue !== undefined) queue.lines.push({ key, waiters: [waiter] });
    else waiting.push({ tenant, lines: [{ key, waiters: [waiter] }] });
  }

  function leave(waiter: Waiter): void {
    const queue = waiting.find(({ tenant }) => tenant === waiter.wish.tenant);
    const key = keyOf(waiter);
    const line = queue?.lines.find((each) => each.key === key);
    if (queue === undefined || line === undefined) return;
    takeOut(line.waiters, waiter);
    if (line.waiters.length === 0) takeOut(queue.lines, line);
    if (queue.lines.length === 0) takeOut(waiting, queue);
  }

  async function wait(wish: Wish, isFresh: boolean, signal: AbortSignal): Promise<Engine | null> {
    return new Promise((resolve) => {
      const waiter: Waiter = { wish, isFresh, resolve: finish };
      const forgetSignal = onAbort(signal, () => {
        leave(waiter);
        resolve(null);
      });
      function finish(found: Engine | null): void {
        forgetSignal();
        resolve(found);
      }
      enter(waiter);
    });
  }
  return { waiting, wait, leave };
}

export function createRoom(): Room {
  const { waiting, wait, leave } = createWaiters();
  const closers = new Set<object>();
  const kept = new Map<Engine, Pass>();

  function tryTake(wish: Wish, isFresh: boolean): Engine | null {
    const { tenant, pass = null } = wish;
    const isAlone = pass !== null && closers.has(pass);
    if (closers.size > (isAlone ? 1 : 0)) return null;
    if (isFresh && tenant.inHand >= 2 * placesOf(tenant)) return null;
    // Where it has closed the room, whoever an engine is kept for waits until it is open again.
    const engine = choose(wish, isAlone ? NONE_KEPT : kept);
    if (engine === null) tellWindows(wish);
    else occupy(engine, tenant, 1);
    return engine;
  }

  async function take(wish: Wish, isFresh: boolean, signal: AbortSignal): Promise<Engine | null> {
    if (signal.aborted) return null;
    const engine = tryTake(wish, isFresh);
    if (engine !== null) return engine;
    return wait(wish, isFresh, signal);
  }

  function kick(): void {
    while (serveNext());
  }

  /** Serves one line of the job whose turn it is; false where none of those that wait can be served. */
  function serveNext(): boolean {
    return waiting.length > 0 && inTurn(waiting).some((queue) => serve(queue));
  }

  /** Serves one line of a job; false where there is no place for any of them. */
  function serve({ lines }: Queue): boolean {
    for (const line of lines) {
      const [first] = line.waiters;
      const engine = first === undefined ? null : tryTake(first.wish, first.isFresh);
      if (first === undefined || engine === null) continue;
      leave(first);
      // What a job waits for takes turns, too: new lines come for ever, and one that is asked again comes once.
      if (line.waiters.length > 0) {
        takeOut(lines, line);
        lines.push(line);
      }
      first.resolve(engine);
      return true;
    }
    return false;
  }

  return {
    take: (wish, signal) => take(wish, false, signal),
    tryTakeFresh: (wish) => tryTake(wish, true),
    takeFresh: (wish, signal) => take(wish, true, signal),
    give(engine, tenant) {
      occupy(engine, tenant, -1);
      // One place for one line; whoever could have had another one has it already.
      serveNext();
    },
    kick,
    setClosed(by, closed) {
      if (closed) closers.add(by);
      else if (closers.delete(by)) kick();
    },
    keep: (engine, pass) => void kept.set(engine, pass),
    letGo(engine) {
      if (kept.delete(engine)) kick();
    },
  };
}

/** Lines that this process may have in flight for a job at all its engines, as things are. */
export function placesOf(tenant: Tenant): number {
  let places = 0;
  for (const engine of tenant.engines(null)) {
    const cap = tenant.cap(engine);
    places += tenant.isAdaptive ? Math.min(cap, engine.window.limit) : cap;
  }
  return places;
}

function keyOf({ wish, isFresh }: Waiter): string {
  const { pass, permitted, model } = wish;
  const kind = isFresh ? 'fresh' : 'again';
  return `${permitted?.address ?? ''} ${kind} ${pass?.id ?? 0} ${model ?? ''}`;
}

function occupy(engine: Engine, tenant: Tenant, change: 1 | -1): void {
  engine.inFlight += change;
  tenant.allInFlight += change;
  tenant.inFlight.set(engine, (tenant.inFlight.get(engine) ?? 0) + change);
}

function inTurn(queues: readonly Queue[]): readonly Queue[] {
  if (queues.length === 1) return queues;
  return queues.toSorted(
    ({ tenant: a }, { tenant: b }) => a.rank - b.rank || a.allInFlight - b.allInFlight,
  );
}

function takeOut<T>(all: T[], one: T): void {
  const at = all.indexOf(one);
  if (at === 0) all.shift();
  else if (at > 0) all.splice(at, 1);
}

function isFree(engine: Engine, { tenant, permitted }: Wish): boolean {
  const own = tenant.inFlight.get(engine) ?? 0;
  if (engine.isOpen || own >= tenant.cap(engine)) return false;
  if (!tenant.mayAsk(engine, permitted === engine)) return false;
  const { inFlight, window } = engine;
  // A job that takes more than the window allows, because it is told to, must not shut out the others.
  return !tenant.isAdaptive || inFlight < window.limit || (own === 0 && inFlight > window.limit);
}

/** Only windows that held the line back: one that the job's own cap keeps half empty has no reason to grow. */
function tellWindows({ tenant, model, avoid, permitted }: Wish): void {
  if (!tenant.isAdaptive) return;
  for (const engine of tenant.engines(model)) {
    if (engine === avoid || engine.isOpen) continue;
    const own = tenant.inFlight.get(engine) ?? 0;
    const isWindow = own < tenant.cap(engine) && tenant.mayAsk(engine, permitted === engine);
    if (isWindow) engine.window.wasFull();
  }
}

/** The engines that are not kept for others, and where a pass names one, only that. */
function openTo(
  pass: Pass | null,
  engines: readonly Engine[],
  kept: ReadonlyMap<Engine, Pass>,
): readonly Engine[] {
  if (kept.size === 0 && pass === null) return engines;
  return engines.filter((engine) => {
    const isRight = pass === null || pass.engine === null || pass.engine === engine;
    return isRight && (kept.get(engine) ?? pass) === pass;
  });
}

function choose(wish: Wish, kept: ReadonlyMap<Engine, Pass>): Engine | null {
  const { tenant, model, pass = null, permitted = null } = wish;
  const engines = openTo(pass, tenant.engines(model), kept);
  const isLeft = permitted !== null && engines.includes(permitted) && isFree(permitted, wish);
  return isLeft ? permitted : bestOf(engines, wish);
}

function bestOf(engines: readonly Engine[], wish: Wish): Engine | null {
  const { affinity, avoid } = wish;
  const best = leastBusy(engines, wish);
  if (best === null || affinity === null || engines.length === 1) return best;
  const home = homeOf(affinity, engines);
  const isThere = home !== null && home !== avoid && isFree(home, wish);
  return isThere && home.load <= best.load * MOST_BUSIER + SLACK ? home : best;
}

function leastBusy(engines: readonly Engine[], wish: Wish): Engine | null {
  let best: Engine | null = null;
  for (const engine of engines) {
    if (engine === wish.avoid) continue;
    if (isFree(engine, wish) && (best === null || engine.load < best.load)) best = engine;
  }
  return best;
}

/** Rendezvous hashing: an engine that comes or goes moves only the lines that it gets or had. */
function homeOf(affinity: number, engines: readonly Engine[]): Engine | null {
  let home: Engine | null = null;
  let highest = -1;
  for (const engine of engines) {
    const score = engine.isOpen ? -1 : mix(affinity ^ engine.seed);
    if (score > highest) {
      highest = score;
      home = engine;
    }
  }
  return home;
}

/** The last step of MurmurHash3 for 32 bits. */
function mix(bits: number): number {
  let hash = bits;
  hash = Math.imul(hash ^ (hash >>> 16), 0x85_eb_ca_6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2_b2_ae_35);
  return (hash ^ (hash >>> 16)) >>> 0;
}
