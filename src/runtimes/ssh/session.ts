import { connect } from 'node:net';
import type { Socket } from 'node:net';
import ssh2 from 'ssh2';
import type { Client, ConnectConfig, ServerHostKeyAlgorithm } from 'ssh2';
import { describeError, errorCode, invalidInput, permanent } from '../../domain/errors.ts';
import type { SluiceError } from '../../domain/errors.ts';
import { cut, otherHostKey, silent, sshError } from './errors.ts';
import type { SshAddress } from './errors.ts';
import { fingerprint, hostKeyLine, readPin } from './keys.ts';
import type { Pin } from './keys.ts';
import { createTurns } from './turns.ts';
import type { Turns } from './turns.ts';

/** sshd gives a connection 10 sessions (`MaxSessions`), and some may still be closing. Forwarded ports do not count. */
const MOST_COMMANDS_AT_ONCE = 6;
/** A peer that has fallen silent takes no farewell. */
const FAREWELL_MS = 500;
const SILENT_TICKS = 3;

export interface SessionOptions extends SshAddress {
  /** The private key as text. */
  privateKey: string;
  /**
   * The public host keys that the machine may have, in one-line form or as `SHA256:…`. `first-seen`: whatever it has,
   * which the session then tells, to be recorded and pinned.
   */
  hostKeys: readonly string[] | 'first-seen';
  /** From the first packet to the login, ms. */
  handshakeMs?: number;
  /** How often a sign of life is asked for; after three times without a byte the connection counts as cut. ms. */
  keepaliveMs?: number;
  /** Ends the attempt; a session that stands is ended by `close`. */
  signal?: AbortSignal;
}

/** What ends with a session: commands that run, channels that are open. */
export interface Attached {
  cut(error: SluiceError): void;
}

/** A connection to a machine that has proved itself and let us in. */
export interface Session {
  readonly address: SshAddress;
  /** The host key that the machine proved, in one-line form. */
  readonly hostKey: string;
  readonly client: Client;
  readonly turns: Turns;
  readonly attached: Set<Attached>;
  /** Why it is over; null: it stands. */
  readonly error: SluiceError | null;
  /** Resolves, and never rejects, when it is over, with the reason. */
  readonly ended: Promise<SluiceError>;
  /** Ends it and all that is attached to it. May be called twice. */
  close(): void;
}

/**
 * Connects, checks the machine's host key and logs in. Throws what `sshError` makes, and `Permanent`
 * `ssh.host_key_changed` for a machine that has another key than the pinned ones: nothing was told to that one.
 */
export async function openSession(options: SessionOptions): Promise<Session> {
  const { host, port, user, signal } = options;
  const address = { host, port, user };
  const pins = options.hostKeys === 'first-seen' ? null : options.hostKeys.map(readPin);
  if (pins?.length === 0) {
    throw invalidInput('ssh.host_key', 'a session needs a host key to pin, or `first-seen`');
  }
  signal?.throwIfAborted();
  const socket = connect({ host, port, noDelay: true });
  gather(socket);
  const client = new ssh2.Client();
  const check = createCheck(pins);
  try {
    await logIn(client, socket, { ...options, address, check, pins });
  } catch (error) {
    // Whatever it still says, nobody listens.
    client.on('error', () => {});
    socket.destroy();
    throw error;
  }
  return stand(client, socket, {
    address,
    hostKey: check.seen() ?? '',
    keepaliveMs: options.keepaliveMs ?? 5_000,
  });
}

interface Check {
  verify(key: Buffer): boolean;
  /** The host key that the machine has shown, in one-line form. */
  seen(): string | null;
  refused(): string | null;
}

function createCheck(pins: readonly Pin[] | null): Check {
  let seen: Buffer | null = null;
  let isRefused = false;
  return {
    verify(key) {
      const found = fingerprint(key);
      // Keys are exchanged again while a session stands, and that has to be by the same.
      isRefused =
        pins === null
          ? seen !== null && !key.equals(seen)
          : !pins.some((pin) => pin.fingerprint === found);
      seen = key;
      return !isRefused;
    },
    seen: () => (seen === null ? null : hostKeyLine(seen)),
    refused: () => (isRefused && seen !== null ? fingerprint(seen) : null),
  };
}

interface Login extends SessionOptions {
  address: SshAddress;
  check: Check;
  pins: readonly Pin[] | null;
}

async function logIn(client: Client, socket: Socket, login: Login): Promise<void> {
  const { address, check, pins, signal } = login;
  const limit = login.handshakeMs ?? 20_000;
  const { promise, resolve, reject } = Promise.withResolvers<undefined>();
  let hasConnected = false;
  socket.once('connect', () => (hasConnected = true));
  function fail(error: unknown): void {
    const pinned = pins?.map((pin) => pin.fingerprint) ?? [];
    const refused = check.refused();
    if (refused !== null) reject(otherHostKey(address, refused, pinned));
    else if (pins !== null && /no matching host key/.test(describeError(error))) {
      reject(otherHostKey(address, 'a key of another type', pinned));
    } else reject(sshError(error, address));
  }
  const timer = setTimeout(() => {
    const what = hasConnected ? 'took the connection, but let nobody in' : 'did not answer';
    reject(silent(address, what, limit));
  }, limit);
  const abort = (): void => reject(signal?.reason);
  signal?.addEventListener('abort', abort, { once: true });
  client.once('ready', () => resolve(undefined));
  client.on('error', fail);
  client.once('close', () => fail(new Error('Connection lost before handshake')));
  try {
    client.connect(configFor(socket, login));
    await promise;
  } catch (error) {
    // Thrown at once, it is the key that cannot be used.
    if (!isParseError(error)) throw error;
    throw permanent('ssh.key', `the private key cannot be used: ${describeError(error)}`);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', abort);
    client.removeAllListeners('error').removeAllListeners('close');
  }
}

function isParseError(error: unknown): boolean {
  return error instanceof Error && errorCode(error) === '' && /privateKey/.test(error.message);
}

function configFor(sock: Socket, { user, privateKey, check, pins, keepaliveMs }: Login) {
  const types = pins?.map((pin) => pin.type) ?? [null];
  const config: ConnectConfig = {
    sock,
    username: user,
    privateKey,
    authHandler: ['publickey'],
    hostVerifier: (key: Buffer) => check.verify(key),
    readyTimeout: 0,
    keepaliveInterval: keepaliveMs ?? 5_000,
    // It asks for ever; whether the machine is silent is counted by `watch`.
    keepaliveCountMax: Number.POSITIVE_INFINITY,
  };
  // A machine with several keys has to show the one that is pinned.
  if (types.every((type) => type !== null)) {
    config.algorithms = { serverHostKey: types.flatMap(algorithmsOf) };
  }
  return config;
}

/** How a key of a type may sign. */
function algorithmsOf(type: string): ServerHostKeyAlgorithm[] {
  // `readPin` lets no other types through.
  return type === 'ssh-rsa' ? ['rsa-sha2-512', 'rsa-sha2-256'] : [type as ServerHostKeyAlgorithm];
}

interface Standing {
  address: SshAddress;
  hostKey: string;
  keepaliveMs: number;
}

function stand(client: Client, socket: Socket, { address, hostKey, keepaliveMs }: Standing) {
  const attached = new Set<Attached>();
  const { promise, resolve } = Promise.withResolvers<SluiceError>();
  let over: SluiceError | null = null;
  let last = 'the machine closed it';

  function end(error: SluiceError): void {
    if (over !== null) return;
    over = error;
    stop();
    for (const each of attached) each.cut(error);
    attached.clear();
    resolve(error);
  }
  const stop = watch(socket, keepaliveMs, (ms) => {
    end(cut(address, `no byte came for ${ms} ms`));
    socket.destroy();
  });
  client.on('error', (error) => (last = describeError(error)));
  client.on('close', () => end(cut(address, last)));
  const session: Session = {
    address,
    hostKey,
    client,
    attached,
    turns: createTurns(MOST_COMMANDS_AT_ONCE),
    get error() {
      return over;
    },
    ended: promise,
    close() {
      if (over === null) {
        client.end();
        const timer = setTimeout(() => socket.destroy(), FAREWELL_MS);
        socket.once('close', () => clearTimeout(timer));
      }
      end(cut(address, 'it was closed here'));
    },
  };
  // It may have ended between its login and now.
  if (socket.destroyed) end(cut(address, last));
  return session;
}

/**
 * Tells when nothing has come for three times `everyMs`. What counts are bytes of any kind, not answers to keepalives:
 * on a slow line these stand behind megabytes of requests. Counted in ticks, so that a process that was held up itself
 * does not blame the machine.
 */
function watch(socket: Socket, everyMs: number, onSilence: (ms: number) => void): () => void {
  let seen = socket.bytesRead;
  let ticks = 0;
  const timer = setInterval(() => {
    ticks = socket.bytesRead === seen ? ticks + 1 : 0;
    seen = socket.bytesRead;
    if (ticks > SILENT_TICKS) onSilence(ticks * everyMs);
  }, everyMs);
  return () => clearInterval(timer);
}

/**
 * What is written in one turn of the loop goes out together: ssh2 writes each packet by itself, and each of hundreds of
 * requests is a packet. That takes off two thirds of the time in the system.
 */
function gather(socket: Socket): void {
  const write = socket.write.bind(socket);
  // One of the overloads of `write` stands for all: the words are only handed on.
  socket.write = ((...args: Parameters<typeof write>) => {
    if (socket.writableCorked === 0) {
      socket.cork();
      setImmediate(() => socket.uncork());
    }
    return write(...args);
  }) as Socket['write'];
}
