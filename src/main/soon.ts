/**
 * Resolves when the promise settles, or after so many ms: for ends that must not hang on somebody else's. ioredis, for
 * one, never ends a connection that is closed while it tries to connect again, and BullMQ waits for that.
 */
export async function soon(promise: Promise<unknown>, ms: number): Promise<void> {
  const { promise: late, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  try {
    await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
