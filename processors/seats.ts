import type { Processor, QueueWorker } from '../queues/worker.ts';
import type { Dispatcher } from '../src/dispatcher/dispatcher.ts';
import type { Deps } from './deps.ts';

/**
 * How many deliveries a process may have in hand: the shards that it holds, and one more. So whoever has something
 * small to send is met at once, however large what is in hand; a shard of a job that has enough here already is put
 * aside again by the processor. One is taken at a time: what it brings has to count before the next is looked at.
 */
export class Seats {
  #worker: QueueWorker | undefined;
  #held = 0;
  #taking = 0;
  #seats = 1;

  /** Steers this worker from now on. */
  follow(worker: QueueWorker | undefined): void {
    this.#worker = worker;
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
      this.#adjust();
      const run: Dispatcher['run'] = (...args) => {
        const running = deps.dispatcher.run(...args);
        endTaking();
        this.#adjust();
        return running;
      };
      const { dispatcher } = deps;
      const counted: Deps['dispatcher'] = {
        asideMs: (jobId) => dispatcher.asideMs(jobId),
        run,
      };
      try {
        return await processor(task, { ...deps, dispatcher: counted });
      } finally {
        endTaking();
        this.#held -= 1;
        this.#adjust();
      }
    };
  }

  #adjust(): void {
    const wish = Math.max(1, this.#held + (this.#taking === 0 ? 1 : 0));
    if (wish === this.#seats) return;
    this.#seats = wish;
    this.#worker?.setConcurrency(wish);
  }
}
