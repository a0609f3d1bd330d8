import type { Processor, QueueWorker } from '../queues/worker.ts';
import type { Dispatcher } from '../src/dispatcher/dispatcher.ts';
import type { Deps } from './deps.ts';

/** A process that is full for so long looks whether somebody else's shard, for other engines, waits behind its own. */
const EXPLORE_EVERY_MS = 1_000;

/**
 * How many shards a process may hold: those that it has, and one more while fewer lines wait here than its engines
 * take. So a shard's last lines never leave an engine idle, and nobody hoards shards that others could send. One shard
 * is taken at a time: what it brings has to count before there can be room for another.
 */
export class Seats {
  readonly #dispatcher: Pick<Dispatcher, 'wantsMore' | 'onRoom'>;
  #worker: QueueWorker | undefined;
  #held = 0;
  #taking = 0;
  #seats = 1;
  #isExploring = false;
  #fullSince = performance.now();
  #timer: NodeJS.Timeout | undefined;

  constructor(dispatcher: Pick<Dispatcher, 'wantsMore' | 'onRoom'>) {
    this.#dispatcher = dispatcher;
    dispatcher.onRoom(() => this.#adjust());
  }

  /** Steers this worker from now on. */
  follow(worker: QueueWorker | undefined): void {
    this.#worker = worker;
    this.#timer = setInterval(() => this.#explore(), EXPLORE_EVERY_MS);
  }

  close(): void {
    clearInterval(this.#timer);
  }

  /** The processor, counted while it takes and while it holds. */
  occupy(processor: Processor<Deps>): Processor<Deps> {
    return async (task, deps) => {
      let isTaking = true;
      const endTaking = (): void => {
        if (isTaking) this.#taking -= 1;
        isTaking = false;
      };
      this.#held += 1;
      this.#taking += 1;
      this.#isExploring = false;
      this.#adjust();
      const dispatcher: Deps['dispatcher'] = {
        isFull: (jobId) => deps.dispatcher.isFull(jobId),
        run: (...args) => {
          const running = deps.dispatcher.run(...args);
          endTaking();
          this.#adjust();
          return running;
        },
      };
      try {
        return await processor(task, { ...deps, dispatcher });
      } finally {
        endTaking();
        this.#held -= 1;
        this.#adjust();
      }
    };
  }

  #explore(): void {
    this.#isExploring = performance.now() - this.#fullSince >= EXPLORE_EVERY_MS;
    this.#adjust();
  }

  #adjust(): void {
    const { wantsMore } = this.#dispatcher;
    if (wantsMore) this.#fullSince = performance.now();
    const oneMore = this.#taking === 0 && (wantsMore || this.#isExploring);
    const wish = Math.max(1, this.#held + (oneMore ? 1 : 0));
    if (wish === this.#seats) return;
    this.#seats = wish;
    this.#worker?.setConcurrency(wish);
  }
}
