import { randomBytes } from 'node:crypto';
import { createSweeper } from '../../processors/sweep.ts';
import { clock } from './clock.ts';
import { soon } from './soon.ts';
import { settleDeps } from './worker.ts';
import type { System } from './system.ts';

const SWEEP_EVERY_MS = 2_000;
const EXPIRE_EVERY_MS = 1_000;
const CLOSE_MS = 2_000;

/** Mends lost deliveries and ends overdue jobs; of all processes that do, one at a time sweeps. */
export function startSweeper(system: System): { close(): Promise<void> } {
  const { log, patient } = system;
  const stop = new AbortController();
  const holder = randomBytes(8).toString('hex');
  const sweeper = createSweeper(holder, {
    ...settleDeps(system, patient, () => 2),
    store: patient.store,
    isLive: patient.queues.isLive.bind(patient.queues),
    now: clock.now,
  });

  async function repeat(
    everyMs: number,
    what: string,
    task: () => Promise<unknown>,
  ): Promise<void> {
    while (!stop.signal.aborted) {
      try {
        await task();
      } catch (error) {
        // Whatever it is, what was not mended now is found again by the next round.
        log.error({ what, err: error }, 'sweeping failed');
      }
      await clock.sleep(everyMs, stop.signal);
    }
  }

  const loops = [
    repeat(SWEEP_EVERY_MS, 'sweep', () => sweeper.sweep(stop.signal)),
    repeat(EXPIRE_EVERY_MS, 'deadlines', () => sweeper.expire()),
  ];
  return {
    async close() {
      stop.abort();
      await soon(
        Promise.all(loops).then(() => sweeper.close()),
        CLOSE_MS,
      );
    },
  };
}
