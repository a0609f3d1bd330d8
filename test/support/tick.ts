import { until } from './until.ts';

/** Lets the clock go on by a millisecond, where an order by time is looked at. */
export async function tick(): Promise<void> {
  const begun = Date.now();
  await until(() => Date.now() > begun, { everyMs: 1, what: 'the next millisecond' });
}
