import { Duplex } from 'node:stream';
import type { ClientChannel } from 'ssh2';
import { describeError, toError, transient } from '../../domain/errors.ts';
import type { SluiceError } from '../../domain/errors.ts';
import { showAddress } from './errors.ts';
import type { Attached, Session } from './session.ts';

/** Of RFC 4254, 5.1. */
const PROHIBITED = 1;
const CONNECT_FAILED = 2;

/** An error with the code that a socket of the system would have given. */
function systemError(code: string, message: string, cause?: unknown): Error {
  return Object.assign(new Error(message, { cause }), { code });
}

/**
 * A connection to a port of the machine's own loopback, through a session. It behaves as a TCP socket does, which a
 * channel of ssh2 does not: that says `close` only once the machine has agreed and all is read, and its `destroy`
 * forgets the error.
 */
export class ChannelSocket extends Duplex implements Attached {
  readonly #session: Session;
  readonly #channel: ClientChannel;
  #isHeld = false;

  constructor(session: Session, channel: ClientChannel) {
    super({ allowHalfOpen: false });
    this.#session = session;
    this.#channel = channel;
    session.attached.add(this);
    // Cut before its user listens, it says so by being destroyed.
    this.on('error', () => {});
    channel.on('data', (chunk: Buffer) => this.#take(chunk));
    channel.on('end', () => this.destroyed || this.push(null));
    channel.on('close', () => this.destroy());
    channel.on('error', (error: Error) => this.destroy(error));
  }

  #take(chunk: Buffer): void {
    // What still comes after its end is dropped.
    if (this.destroyed || this.push(chunk)) return;
    this.#isHeld = true;
    this.#channel.pause();
  }

  cut(error: SluiceError): void {
    this.destroy(systemError('ECONNRESET', error.message, error));
  }

  override _read(): void {
    if (!this.#isHeld) return;
    this.#isHeld = false;
    this.#channel.resume();
  }

  override _write(chunk: Buffer, _encoding: string, done: (error?: Error | null) => void): void {
    this.#channel.write(chunk, done);
  }

  /** A request's head and body are one packet: each has its own cipher run and MAC. */
  override _writev(chunks: { chunk: Buffer }[], done: (error?: Error | null) => void): void {
    this.#channel.write(Buffer.concat(chunks.map(({ chunk }) => chunk)), done);
  }

  override _final(done: () => void): void {
    this.#channel.end();
    done();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#session.attached.delete(this);
    this.#channel.destroy();
    // Only one that is read to its end is closed.
    this.#channel.resume();
    done(error);
  }

  // What undici asks of a socket, and what the connection below does for all channels.

  setNoDelay(): this {
    return this;
  }

  setKeepAlive(): this {
    return this;
  }

  setTimeout(): this {
    return this;
  }

  ref(): this {
    return this;
  }

  unref(): this {
    return this;
  }
}

/**
 * Connects to a port of the machine's loopback. Rejects with `ECONNREFUSED` where nobody listens there, with
 * `ssh.forwarding` where its sshd forwards nothing (`AllowTcpForwarding no`), which waiting does not mend, and with the
 * session's error where that ends meanwhile.
 */
export async function openChannel(session: Session, port: number): Promise<ChannelSocket> {
  if (session.error !== null) throw session.error;
  const { promise, resolve, reject } = Promise.withResolvers<ChannelSocket>();
  const waiting: Attached = { cut: reject };
  session.attached.add(waiting);
  try {
    session.client.forwardOut('127.0.0.1', 0, '127.0.0.1', port, (error, channel) => {
      if (error === undefined) resolve(new ChannelSocket(session, channel));
      else reject(error);
    });
    return await promise;
  } catch (error) {
    throw session.error ?? refusal(session, port, toError(error));
  } finally {
    session.attached.delete(waiting);
  }
}

function refusal(session: Session, port: number, error: Error): Error {
  const reason = 'reason' in error ? error.reason : null;
  const where = showAddress(session.address);
  if (reason === CONNECT_FAILED) {
    return systemError('ECONNREFUSED', `nothing listens on port ${port} of ${where}`, error);
  }
  const text = describeError(error);
  if (reason === PROHIBITED) {
    return transient(
      'ssh.forwarding',
      `the sshd of ${where} forwards no ports (AllowTcpForwarding): ${text}`,
      { cause: error },
    );
  }
  return systemError('ECONNRESET', `${where} opened no channel: ${text}`, error);
}
