import { randomBytes } from 'node:crypto';
import { createCollector } from '../../processors/collect.ts';
import { createExpiry } from '../../processors/expiry.ts';
import { createSweeper } from '../../processors/sweep.ts';
import { createCourier } from '../../processors/webhooks.ts';
import { batchView } from '../api/views.ts';
import { clock } from './clock.ts';
import { collectDeps, collectRound } from './gc.ts';
import { openInventorySweep } from './machines.ts';
import { soon } from './soon.ts';
import { createWebhookSender } from './webhook-sender.ts';
import { settleDeps } from './worker.ts';
import type { System } from './system.ts';

const SWEEP_EVERY_MS = 2_000;
const EXPIRE_EVERY_MS = 1_000;
const CLEAR_EVERY_MS = 2_000;
const TELL_EVERY_MS = 500;
const COLLECT_LOOK_MS = 5_000;
const COMPARE_EVERY_MS = 15_000;
const CLOSE_MS = 2_000;

/** Mends lost deliveries, ends overdue jobs, removes what has expired and tells webhooks of ends; of all processes that do, one at a time sweeps. */
export function startSweeper(system: System): { close(): Promise<void> } {
  const { log, patient } = system;
  const stop = new AbortController();
  const holder = randomBytes(8).toString('hex');
  const inventory = openInventorySweep(holder, system);
  const sweeper = createSweeper(holder, {
    ...settleDeps(system, patient, () => 2),
    store: patient.store,
    isLive: patient.queues.isLive.bind(patient.queues),
    now: clock.now,
  });
  const { store } = patient;
  const expiry = createExpiry(holder, { store, storage: system.storage, now: clock.now, log });
  const collector = createCollector(holder, collectDeps(system));
  const collectEveryMs = Math.min(COLLECT_LOOK_MS, system.settings.gcInterval);
  const courier = createCourier(holder, {
    store: patient.store,
    send: createWebhookSender({ allowPrivate: system.settings.webhookAllowPrivate }),
    view: batchView,
    jobSecret: system.settings.webhookSecret,
    giveUpMs: system.settings.webhookGiveUp,
    now: clock.now,
    random: clock.random,
    log,
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
    repeat(CLEAR_EVERY_MS, 'expiry', () => expiry.round()),
    repeat(collectEveryMs, 'collect', () => collectRound(collector, stop.signal, log)),
    repeat(TELL_EVERY_MS, 'webhooks', () => courier.round()),
    repeat(COMPARE_EVERY_MS, 'machines', () => inventory.round(stop.signal)),
  ];
  return {
    async close() {
      stop.abort();
      await soon(
        Promise.all([...loops, courier.close(), inventory.close()]).then(() => sweeper.close()),
        CLOSE_MS,
      );
    },
  };
}
