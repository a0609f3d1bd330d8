import type { Logger } from 'pino';
import { SluiceError, transient } from '../domain/errors.ts';
import { isFinal } from '../domain/job.ts';
import type { JobEvent, JobRecord } from '../domain/job.ts';
import type { Events } from '../store/events.ts';
import type { Jobs } from '../store/jobs.ts';

/** How often histories are looked at: what happened is seen at most so much later. */
const LOOK_MS = 500;
/** Counts change with every commit; people read no faster. */
const PROGRESS_MS = 1_000;
/** Proxies cut a connection that is silent for half a minute or more. */
const KEEP_ALIVE_MS = 15_000;
/** A reader that takes nothing for so long has gone without saying so. */
const STALLED_MS = 60_000;
/** What waits for one reader; beyond it nothing is written, and events are read from Redis again later. */
const BUFFER_BYTES = 64 * 1024;
const AGAIN_MS = 5_000;
const SAY_AGAIN_MS = 10_000;

/** Ends the id of the last message of a stream, so that who comes back with it is known to have had everything. */
export const DONE_MARK = '-done';

export interface LiveHubDeps {
  store: { jobs: Pick<Jobs, 'get'>; events: Events };
  log: Logger;
  /** How many streams this process keeps open at once. */
  liveStreams: number;
  /** Aborted when this process stops: all streams end at once. */
  stopping: AbortSignal;
}

/** What one of the two interfaces says of a job, each as JSON. */
export interface Wording {
  state(event: JobEvent, job: JobRecord): object;
  progress(job: JobRecord): object;
  done(job: JobRecord): object;
}

/** A message of Server-Sent Events; JSON has no line ends, which would end its data. */
export interface Message {
  event: 'snapshot' | 'state' | 'progress' | 'done';
  id?: string;
  data: object;
}

export function renderMessage({ event, id, data }: Message): string {
  const named = id === undefined ? '' : `id: ${id}\n`;
  return `${named}event: ${event}\ndata: ${JSON.stringify(data)}\n\n`;
}

export interface Subscription {
  /** As it was when the stream was asked for, and as `opening` tells it. */
  job: JobRecord;
  /** The id of the last event that the reader has; `0-0` for none. */
  after: string;
  /** Sent before all else. */
  opening: string;
  wording: Wording;
  /** Cuts the connection: a stream that only ended would look as if all had been told. */
  cut(): void;
}

/** All streams of this process. */
export interface LiveHub {
  /**
   * A stream that says what happens to a job, until it is over and the end has been said. Rejects with
   * `too_many_streams` (Transient) when no more may be open, and `stopping` (Transient) when the process stops.
   */
  open(subscription: Subscription): ReadableStream<Uint8Array>;
}

/** One reader. */
interface Watcher extends Omit<Subscription, 'job'> {
  controller: ReadableStreamDefaultController<Uint8Array>;
  /** The last progress that it was told, as text. */
  progress: string;
  /** The end was said; it still counts until it has taken all that waits for it. */
  isOver: boolean;
  /** When it was last written to, and when it last had room. */
  toldAt: number;
  roomAt: number;
}

/** One job, with all who watch it: Redis is asked once for all of them. */
interface Watch {
  jobId: string;
  watchers: Set<Watcher>;
  isLooking: boolean;
  /** Somebody came while it was being looked at. */
  again: boolean;
  progressAt: number;
}

interface Hub extends LiveHubDeps {
  watches: Map<string, Watch>;
  /** How many streams are open. */
  count: number;
  timer: NodeJS.Timeout | null;
  /** When it was last said that Redis cannot be read. */
  saidAt: number;
}

/**
 * Watches jobs for the streams of this process. Histories are read in a rhythm, those of all watched jobs with one
 * breath, and not by blocking reads: those need a connection for each slot of a cluster, and one that is made anew
 * whenever a job more is watched. Nothing is kept but how far each reader is, so that a slow reader costs no memory
 * and a Redis that was away is read on where it stopped.
 */
export function createLiveHub(deps: LiveHubDeps): LiveHub {
  const hub: Hub = { ...deps, watches: new Map(), count: 0, timer: null, saidAt: -Infinity };
  deps.stopping.addEventListener('abort', () => endAll(hub), { once: true });
  return { open: (subscription) => openStream(hub, subscription) };
}

function openStream(hub: Hub, subscription: Subscription): ReadableStream<Uint8Array> {
  if (hub.stopping.aborted) throw transient('stopping', 'This server is stopping.');
  if (hub.count >= hub.liveStreams) {
    const message = `This server has ${hub.liveStreams} event streams open and takes no more (LIVE_STREAMS).`;
    throw transient('too_many_streams', message, { retryAfterMs: AGAIN_MS });
  }
  let quit: () => void = () => undefined;
  let onTaken: () => void = () => undefined;
  return new ReadableStream<Uint8Array>(
    {
      start(controller) {
        const watcher = newWatcher(subscription, controller);
        const watch = join(hub, subscription.job.id, watcher);
        quit = () => leave(hub, watch, watcher);
        onTaken = () => endWhenTaken(hub, watch, watcher);
        write(watcher, subscription.opening);
        void look(hub, watch);
      },
      pull: () => onTaken(),
      cancel: () => quit(),
    },
    new ByteLengthQueuingStrategy({ highWaterMark: BUFFER_BYTES }),
  );
}

function newWatcher(
  { job, ...subscription }: Subscription,
  controller: ReadableStreamDefaultController<Uint8Array>,
): Watcher {
  const now = performance.now();
  const progress = JSON.stringify(subscription.wording.progress(job));
  return { ...subscription, controller, progress, isOver: false, toldAt: now, roomAt: now };
}

function join(hub: Hub, jobId: string, watcher: Watcher): Watch {
  const watch = hub.watches.get(jobId) ?? {
    jobId,
    watchers: new Set(),
    isLooking: false,
    again: false,
    progressAt: 0,
  };
  hub.watches.set(jobId, watch);
  watch.watchers.add(watcher);
  hub.count += 1;
  hub.timer ??= setInterval(() => tick(hub), LOOK_MS).unref();
  return watch;
}

function leave(hub: Hub, watch: Watch, watcher: Watcher): void {
  if (!watch.watchers.delete(watcher)) return;
  hub.count -= 1;
  if (watch.watchers.size === 0) hub.watches.delete(watch.jobId);
  if (hub.count > 0 || hub.timer === null) return;
  clearInterval(hub.timer);
  hub.timer = null;
}

function hasRoom({ controller }: Watcher): boolean {
  return (controller.desiredSize ?? 0) > 0;
}

function write(watcher: Watcher, text: string): void {
  watcher.controller.enqueue(Buffer.from(text));
  watcher.toldAt = performance.now();
}

function tick(hub: Hub): void {
  const now = performance.now();
  for (const watch of hub.watches.values()) {
    for (const watcher of watch.watchers) attend(hub, watch, watcher, now);
    void look(hub, watch);
  }
}

function attend(hub: Hub, watch: Watch, watcher: Watcher, now: number): void {
  if (hasRoom(watcher) && !watcher.isOver) {
    watcher.roomAt = now;
    if (now - watcher.toldAt >= KEEP_ALIVE_MS) write(watcher, ': keep-alive\n\n');
  } else if (now - watcher.roomAt >= STALLED_MS) {
    cut(hub, watch, watcher);
  }
}

/** Tells all readers of a job what is new; never rejects. */
async function look(hub: Hub, watch: Watch): Promise<void> {
  watch.again = true;
  if (watch.isLooking) return;
  watch.isLooking = true;
  try {
    while (watch.again) {
      watch.again = false;
      await lookOnce(hub, watch);
    }
  } catch (error) {
    notSeen(hub, watch, error);
  } finally {
    watch.isLooking = false;
  }
}

/** A Redis that is away comes back, and the next look tells what was missed; what is damaged stays so. */
function notSeen(hub: Hub, watch: Watch, error: unknown): void {
  if (error instanceof SluiceError && error.kind === 'Permanent') {
    hub.log.error({ err: error, jobId: watch.jobId }, 'the streams of a job were broken off');
    cutAll(hub, watch);
    return;
  }
  if (performance.now() - hub.saidAt < SAY_AGAIN_MS) return;
  hub.saidAt = performance.now();
  hub.log.warn({ err: error }, 'event streams cannot be fed, trying again');
}

function cutAll(hub: Hub, watch: Watch): void {
  for (const watcher of watch.watchers) cut(hub, watch, watcher);
}

function cut(hub: Hub, watch: Watch, watcher: Watcher): void {
  leave(hub, watch, watcher);
  watcher.cut();
}

async function lookOnce(hub: Hub, watch: Watch): Promise<void> {
  const { jobs, events: histories } = hub.store;
  const { jobId } = watch;
  const watchers = [...watch.watchers].filter((watcher) => hasRoom(watcher) && !watcher.isOver);
  const from = earliest(watchers);
  if (from === null) return;
  let events = await histories.after(jobId, from);
  const isDue = performance.now() - watch.progressAt >= PROGRESS_MS;
  if (events.length === 0 && !isDue) return;
  const job = await jobs.get(jobId);
  if (job === null) {
    cutAll(hub, watch); // it was deleted: who comes back is told so
    return;
  }
  // The last event may have come between the look at the history and the one at the record.
  if (isFinal(job.state)) events = await histories.after(jobId, from);
  if (isDue) watch.progressAt = performance.now();
  for (const watcher of watchers) {
    // It may have left meanwhile.
    if (watch.watchers.has(watcher)) tell(watcher, { events, job, isDue });
  }
}

function tell(
  watcher: Watcher,
  { events, job, isDue }: { events: readonly JobEvent[]; job: JobRecord; isDue: boolean },
): void {
  const { wording } = watcher;
  for (const event of events) {
    if (!isAfter(event.id, watcher.after)) continue;
    if (!hasRoom(watcher)) return; // what is left is told at a later look
    const { id } = event;
    write(watcher, renderMessage({ event: 'state', id, data: wording.state(event, job) }));
    watcher.after = id;
  }
  if (isFinal(job.state)) finish(watcher, wording.done(job));
  else if (isDue) tellProgress(watcher, wording.progress(job));
}

function finish(watcher: Watcher, data: object): void {
  const id = `${watcher.after}${DONE_MARK}`;
  watcher.isOver = true;
  write(watcher, renderMessage({ event: 'done', id, data }));
}

/** A stream that was closed sooner would be nobody's, with bytes that its reader never takes. */
function endWhenTaken(hub: Hub, watch: Watch, watcher: Watcher): void {
  const { controller, isOver } = watcher;
  if (!isOver || controller.desiredSize !== BUFFER_BYTES) return;
  leave(hub, watch, watcher);
  controller.close();
}

function tellProgress(watcher: Watcher, data: object): void {
  const text = JSON.stringify(data);
  if (text === watcher.progress || !hasRoom(watcher)) return;
  watcher.progress = text;
  write(watcher, renderMessage({ event: 'progress', data }));
}

function endAll(hub: Hub): void {
  for (const watch of hub.watches.values()) {
    for (const watcher of watch.watchers) {
      leave(hub, watch, watcher);
      if (!watcher.isOver) write(watcher, ': this server is stopping\n\n');
      watcher.controller.close();
    }
  }
}

/** Whether an id of a Redis stream, `<ms>-<number>`, is greater than another one. */
function isAfter(id: string, other: string): boolean {
  const [ms = 0, n = 0] = id.split('-').map(Number);
  const [otherMs = 0, otherN = 0] = other.split('-').map(Number);
  return ms > otherMs || (ms === otherMs && n > otherN);
}

/** Behind which event the one begins that is furthest behind; null for nobody. */
function earliest(watchers: readonly Watcher[]): string | null {
  let found: string | null = null;
  for (const { after } of watchers) {
    if (found === null || isAfter(found, after)) found = after;
  }
  return found;
}
