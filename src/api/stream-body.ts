import type { ServerResponse } from 'node:http';
import type { Readable } from 'node:stream';
import type { ApiContext } from './routes.ts';

/**
 * A stream of Node's as the body of this answer; it is destroyed when the client hangs up. When it fails, `onError`
 * hears why and the connection is cut: an answer that just ended would seem to be whole. The body itself never fails,
 * since `@hono/node-server` prints what a body fails with, and tells it to the client.
 * With the number of its `bytes`, where that is known, the answer ends with the last of them: a client that counts
 * hangs up there, and would seem to have broken off while the source still looks for its own end.
 */
export function streamBody(
  c: ApiContext,
  source: Readable,
  onError: (err: Error) => void,
  bytes = Infinity,
): ReadableStream<Uint8Array> {
  const { outgoing } = c.env;
  source.once('error', (err) => {
    // Who hung up has made it fail.
    if (!outgoing.destroyed) onError(err);
    outgoing.destroy();
  });
  // Who hung up before there was a stream is told of no more.
  if (outgoing.destroyed) source.destroy();
  else outgoing.once('close', () => source.destroy());
  const chunks = source.iterator();
  let left = bytes;
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const next = await chunks.next().catch(() => null); // told above
        if (next === null || next.done === true) {
          controller.close();
          return;
        }
        controller.enqueue(next.value);
        left -= next.value.length;
        if (left <= 0) controller.close();
      },
      cancel: () => void source.destroy(),
    },
    { highWaterMark: 0 },
  );
}

/** Cuts an answer of which bytes wait for the reader while nothing moves for so long; one that is only silent goes on. */
export function cutWhenUnread(outgoing: ServerResponse, ms: number): void {
  // A listener keeps Node from cutting every silent socket; whatever is written next starts the time anew.
  outgoing.setTimeout(ms, () => {
    if (outgoing.writableLength > 0) outgoing.destroy();
  });
}
