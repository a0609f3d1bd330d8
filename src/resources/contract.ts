import type { Provider, Slot } from '../domain/provision.ts';

/**
 * Where engines come from. A manager never waits: it says what a job should have, and the queues do the waiting.
 */
export interface ResourceManager {
  readonly provider: Provider;
  /**
   * The engines that a job should have, one a slot. Empty when this manager has none to give.
   * Answers the same for the same job as long as the settings stand.
   */
  slots(job: { engines: readonly string[] }): readonly Slot[];
}
