import { setTimeout as sleep } from 'node:timers/promises';

/**
 * Polls `probe` until it answers something other than `undefined` or `false`, and returns that.
 * For conditions of another process that no event announces; a late answer is an error that names `what`.
 */
export async function until<T>(
  probe: () => T | Promise<T>,
  { timeoutMs = 30_000, everyMs = 20, what = 'the condition' } = {},
): Promise<Exclude<T, undefined | false | null>> {
  const deadline = Date.now() + timeoutMs;
  for (;;) {
    const answer = await probe();
    if (answer !== undefined && answer !== false && answer !== null) {
      return answer as Exclude<T, undefined | false | null>;
    }
    if (Date.now() > deadline) throw new Error(`${what} did not hold within ${timeoutMs} ms`);
    await sleep(everyMs);
  }
}
