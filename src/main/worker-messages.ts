import type { Settings } from '../../config/schema.ts';
import type { Load } from '../dispatcher/dispatcher.ts';
import type { Snapshot } from '../observability/metrics.ts';

/** What a worker process is to be; the first message that it gets. It gets ready, and stands by. */
export interface WorkOrder {
  settings: Settings;
  logLevel: string;
  namespace: string;
  /** Its name in heartbeats and deliveries, by which its supervisor finds what it had in hand. */
  name: string;
}

/** Lets it work; the second message. */
export interface Go {
  /** Which of the supervisor's it is, from 1. */
  number: number;
}

/** Asks for a report now; any further message. */
export const REPORT = 'report';

/** What a worker process tells its supervisor; by structured clone, so that no number is bent. */
export type WorkerMessage =
  | { type: 'up' }
  | { type: 'load'; load: Load }
  | { type: 'report'; metrics: Snapshot };
