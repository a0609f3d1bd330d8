import { connect } from 'node:net';

/** What stands before the answer where a client asked whether to send its body. */
const CONTINUE = /^HTTP\/1\.1 100 Continue\r\n\r\n/;

/** What became of a request that was written byte by byte. */
export interface Outcome {
  /** null: the connection was closed without an answer. */
  status: number | null;
  /** Head and body as they came, as far as they came. */
  text: string;
  /** Neither answered nor closed in time. */
  hung: boolean;
}

/** Node's server gives a request up when its client ends its side: only one that may wait for more is told so. */
const PATIENCE_MS = 250;

/** Writes bytes that need be no HTTP, and reads what comes until the end of an answer; soon it ends its own side. */
export function sendRaw(url: string, bytes: Buffer, timeoutMs: number): Promise<Outcome> {
  const { hostname, port } = new URL(url);
  const { promise, resolve } = Promise.withResolvers<Outcome>();
  const socket = connect({ host: hostname, port: Number(port), allowHalfOpen: true });
  let text = '';
  function settle(hung: boolean): void {
    clearTimeout(timer);
    clearTimeout(patience);
    socket.destroy();
    text = text.replace(CONTINUE, '');
    const [, status] = /^HTTP\/1\.1 (\d{3})/.exec(text) ?? [];
    resolve({ status: status === undefined ? null : Number(status), text, hung });
  }
  const timer = setTimeout(() => settle(text.replace(CONTINUE, '') === ''), timeoutMs);
  const patience = setTimeout(() => socket.end(), PATIENCE_MS);
  socket.on('data', (chunk) => {
    text += chunk.toString('latin1');
    if (isWhole(text.replace(CONTINUE, ''))) settle(false);
  });
  // A refusal may come while the body is still being written: the rest of it then meets a closed socket.
  socket.on('error', () => settle(false));
  socket.on('close', () => settle(false));
  socket.on('end', () => settle(false));
  socket.write(bytes);
  return promise;
}

function isWhole(text: string): boolean {
  const end = text.indexOf('\r\n\r\n');
  if (end < 0) return false;
  const head = text.slice(0, end);
  // A stream of events has no end: that it began is its answer.
  if (/^content-type: text\/event-stream/im.test(head)) return true;
  const [, length] = /^content-length: *(\d+)/im.exec(head) ?? [];
  return length !== undefined && text.length >= end + 4 + Number(length);
}
