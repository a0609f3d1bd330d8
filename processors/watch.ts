import { isDeepStrictEqual } from 'node:util';
import { isPaused } from '../src/domain/job.ts';
import type { JobRecord } from '../src/domain/job.ts';
import type { ServingEngine } from '../src/domain/provision.ts';
import type { Store } from '../src/store/store.ts';
import type { Log } from './deps.ts';

/** What a process that sends lines of a job keeps knowing of it. */
export interface Watch {
  readonly job: JobRecord;
  /** Engines that serve the job now. */
  engines(): readonly ServingEngine[];
  /** Models of the job whose lines fail now, since no engine serves them. */
  givenUp(): readonly string[];
  /** Aborted when the job is in progress no longer, or its deadline is over. */
  readonly signal: AbortSignal;
  /** Aborted when the job is paused: no more is sent, and what is in flight may be answered. */
  readonly paused: AbortSignal;
  /** Lets go; the last one that does ends the watching. */
  close(): void;
}

/** Messages may be lost, so that the record is read again this often. */
const REFRESH_MS = 2_000;
const LONGEST_TIMER_MS = 2 ** 31 - 1;

interface Entry {
  job: JobRecord;
  engines: readonly ServingEngine[];
  abort: AbortController;
  pause: AbortController;
  users: number;
  refresh: NodeJS.Timeout | undefined;
  end: NodeJS.Timeout | undefined;
}

interface WatchDeps {
  store: Pick<Store, 'jobs' | 'provisions'>;
  /** Redis' time, ms: by it deadlines are set, and shards taken. */
  now(): number;
  /** The engines of a watched job, and the models that it has given up, were read again. */
  onEngines(): void;
  log: Pick<Log, 'warn'>;
}

/** Watches jobs for this process, each once however many of its shards are in hand. */
export class Watches {
  readonly #deps: WatchDeps;
  readonly #entries = new Map<string, Promise<Entry | null>>();
  /** Of jobs that were paused while lines were in flight; whoever opens a watch after that gets another one. */
  readonly #leaving = new Map<Entry, string>();

  constructor(deps: WatchDeps) {
    this.#deps = deps;
  }

  /** Starts watching a job, or joins; null when it is not in progress, or paused, or its deadline is over. */
  async open(jobId: string): Promise<Watch | null> {
    for (;;) {
      const entry = await this.#enter(jobId);
      if (entry === null) return null;
      // The last user of an entry may have ended it while we waited for it.
      if (entry.abort.signal.aborted || entry.pause.signal.aborted) continue;
      entry.users += 1;
      return this.#watch(jobId, entry);
    }
  }

  /** Reads a watched job again at once: somebody said that it was stopped, paused, or has another deadline. */
  poke(jobId: string): void {
    for (const [entry, id] of this.#leaving) if (id === jobId) void this.#refresh(jobId, entry);
    void this.#entries
      .get(jobId)
      // Whoever opens the watch hears of an error.
      ?.then(
        (entry) => entry && this.#refresh(jobId, entry),
        () => null,
      );
  }

  async #enter(jobId: string): Promise<Entry | null> {
    const entering = this.#entries.get(jobId) ?? this.#begin(jobId);
    this.#entries.set(jobId, entering);
    let entry: Entry | null = null;
    try {
      entry = await entering;
    } finally {
      if (entry === null && this.#entries.get(jobId) === entering) this.#entries.delete(jobId);
    }
    return entry;
  }

  async #begin(jobId: string): Promise<Entry | null> {
    const found = await this.#read(jobId);
    if (found === null || isPaused(found.job) || this.#timeLeft(found.job) <= 0) return null;
    const entry: Entry = {
      ...found,
      abort: new AbortController(),
      pause: new AbortController(),
      users: 0,
      refresh: undefined,
      end: undefined,
    };
    entry.refresh = setInterval(() => void this.#refresh(jobId, entry), REFRESH_MS);
    this.#awaitDeadline(jobId, entry);
    return entry;
  }

  /** Milliseconds until the deadline of a job. */
  #timeLeft({ deadline }: JobRecord): number {
    return deadline - this.#deps.now();
  }

  /**
   * The record may say `in_progress` for longer: nobody has to be there who ends the job. Asked again with each look,
   * since the deadline may be another one, or the clock put right.
   */
  #awaitDeadline(jobId: string, entry: Entry): void {
    clearTimeout(entry.end);
    const left = this.#timeLeft(entry.job);
    if (left <= 0) {
      this.#end(jobId, entry, 'the deadline is over');
      return;
    }
    const wait = Math.min(left, LONGEST_TIMER_MS);
    entry.end = setTimeout(() => this.#awaitDeadline(jobId, entry), wait);
  }

  #watch(jobId: string, entry: Entry): Watch {
    let open = true;
    return {
      job: entry.job,
      engines: () => entry.engines,
      givenUp: () => entry.job.givenUp,
      signal: entry.abort.signal,
      paused: entry.pause.signal,
      close: () => {
        if (open) entry.users -= 1;
        open = false;
        if (entry.users > 0 || entry.abort.signal.aborted) return;
        this.#end(jobId, entry, 'nobody sends lines of this job');
      },
    };
  }

  async #read(jobId: string): Promise<{ job: JobRecord; engines: ServingEngine[] } | null> {
    const job = await this.#deps.store.jobs.get(jobId);
    if (job?.state !== 'in_progress') return null;
    const provisions = await this.#deps.store.provisions.ofJob(jobId);
    const serving = provisions.filter(({ state }) => state === 'serving');
    return { job, engines: serving.map(({ address, models }) => ({ address, models })) };
  }

  async #refresh(jobId: string, entry: Entry): Promise<void> {
    try {
      const fresh = await this.#read(jobId);
      if (fresh === null) {
        this.#end(jobId, entry, 'the job is in progress no longer');
        return;
      }
      // The same ones stay the same array: whoever holds it need not look.
      if (!isDeepStrictEqual(fresh.engines, entry.engines)) entry.engines = fresh.engines;
      entry.job = fresh.job;
      this.#deps.onEngines();
      if (entry.abort.signal.aborted) return;
      this.#awaitDeadline(jobId, entry);
      if (isPaused(fresh.job)) this.#leave(jobId, entry);
    } catch (error) {
      // It is read again soon; the job is sent on until then, and once it is over no commit is accepted.
      this.#deps.log.warn({ jobId, err: error }, 'a job that is being sent cannot be read');
    }
  }

  #leave(jobId: string, entry: Entry): void {
    if (entry.abort.signal.aborted || entry.pause.signal.aborted) return;
    this.#entries.delete(jobId);
    this.#leaving.set(entry, jobId);
    entry.pause.abort(new Error('the job is paused'));
  }

  #end(jobId: string, entry: Entry, reason: string): void {
    if (entry.abort.signal.aborted) return;
    // Where it was leaving, the job's place is another one's.
    if (!this.#leaving.delete(entry)) this.#entries.delete(jobId);
    clearInterval(entry.refresh);
    clearTimeout(entry.end);
    entry.abort.abort(new Error(reason));
  }
}
