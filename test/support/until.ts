import { setTimeout as sleep } from 'node:timers/promises';

const LEAST_MS = 10;
const MOST_MS = 100;

interface UntilOptions {
  timeoutMs?: number;
  everyMs?: number;
  what?: string;
}

/**
 * Polls `probe` until it answers something other than `undefined` or `false`, and returns that.
 * For conditions of another process that no event announces; a late answer is an error that names `what`.
 * Unless `everyMs` says otherwise it looks ever more rarely: a look costs milliseconds of a machine that has other
 * tests to run, and one who has waited for seconds can wait for a twentieth more.
 */
export async function until<T>(
  probe: () => T | Promise<T>,
  { timeoutMs = 30_000, everyMs, what = 'the condition' }: UntilOptions = {},
): Promise<Exclude<T, undefined | false | null>> {
  const begun = Date.now();
  for (;;) {
    const answer = await probe();
    if (answer !== undefined && answer !== false && answer !== null) {
      return answer as Exclude<T, undefined | false | null>;
    }
    const waitedMs = Date.now() - begun;
    if (waitedMs > timeoutMs) throw new Error(`${what} did not hold within ${timeoutMs} ms`);
    await sleep(everyMs ?? Math.min(Math.max(LEAST_MS, waitedMs / 20), MOST_MS));
  }
}
