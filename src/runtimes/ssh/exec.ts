import { constants } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ClientChannel } from 'ssh2';
import { describeError, transient } from '../../domain/errors.ts';
import { cut, showAddress } from './errors.ts';
import { quoteCommand } from './quote.ts';
import type { Attached, Session } from './session.ts';

const USUAL_LIMIT_MS = 30_000;
const BUSY_PAUSE_MS = 50;
/** What shells add to the number of a signal. */
const SIGNALLED = 128;
const SIGNALS = new Map<string, number>(Object.entries(constants.signals));

export interface ExecOptions {
  /** What the command reads; the only way for a secret, since command lines are shown by `ps` on the machine. */
  stdin?: string;
  /** For all of it, waiting for a turn too. */
  timeoutMs?: number;
  /** Of each of stdout and stderr; what is more is read and dropped. */
  maxBytes?: number;
  signal?: AbortSignal;
}

/** How a command ended. */
export interface Executed {
  /** 128 and more: it was ended by the signal of that number less 128. */
  code: number;
  stdout: string;
  stderr: string;
  /** There was more than `maxBytes`. */
  truncated: boolean;
}

export interface ExecutedBytes extends Omit<Executed, 'stdout' | 'stderr'> {
  stdout: Buffer;
  stderr: Buffer;
}

/**
 * Runs a command line by `sh` on the machine. Its exit code is an answer, not an error. Throws `Transient`:
 * `ssh.cut` when the connection ended before the command (whether it ran to its end is then unknown),
 * `ssh.exec_timeout` (the machine kills it by itself then).
 */
export async function exec(
  session: Session,
  command: string,
  options: ExecOptions = {},
): Promise<Executed> {
  const done = await execBytes(session, command, options);
  return { ...done, stdout: done.stdout.toString(), stderr: done.stderr.toString() };
}

/** As `exec`, and leaves the bytes as they came. */
export async function execBytes(
  session: Session,
  command: string,
  options: ExecOptions = {},
): Promise<ExecutedBytes> {
  const { timeoutMs = USUAL_LIMIT_MS, signal } = options;
  const { promise, resolve, reject } = Promise.withResolvers<ExecutedBytes>();
  const attached: Attached = { cut: reject };
  let isOver = false;
  const abort = (): void => reject(signal?.reason);
  signal?.throwIfAborted();
  if (session.error !== null) throw session.error;
  session.attached.add(attached);
  signal?.addEventListener('abort', abort, { once: true });
  const timer = setTimeout(() => {
    const what = `a command on ${showAddress(session.address)} took more than ${timeoutMs} ms`;
    reject(transient('ssh.exec_timeout', what));
  }, timeoutMs);
  void session.turns
    .take()
    .then(async () => {
      const channel = await openExec(session, bounded(command, timeoutMs), () => isOver);
      if (channel !== null) resolve(await run(session, channel, options));
    })
    .catch(reject)
    // Only now: what was given up is one of the machine's few sessions until it ends.
    .finally(() => session.turns.give());
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
    session.attached.delete(attached);
    signal?.removeEventListener('abort', abort);
    isOver = true;
  }
}

async function run(
  session: Session,
  channel: ClientChannel,
  { stdin = '', maxBytes = 1024 * 1024 }: ExecOptions,
): Promise<ExecutedBytes> {
  const { promise, resolve, reject } = Promise.withResolvers<ExecutedBytes>();
  const stdout = createSink(maxBytes);
  const stderr = createSink(maxBytes);
  channel.on('data', (chunk: Buffer) => stdout.take(chunk));
  channel.stderr.on('data', (chunk: Buffer) => stderr.take(chunk));
  channel.on('error', (error: Error) => reject(cut(session.address, describeError(error))));
  // Not by `exit`: that comes with the answer to the request itself where all of it is read at once, before anybody listens.
  channel.on('close', (ended?: number | null, signal?: string) => {
    if (ended === undefined) {
      reject(session.error ?? cut(session.address, 'a command was given up by the machine'));
      return;
    }
    const code = ended ?? SIGNALLED + (SIGNALS.get(signal ?? '') ?? 0);
    const truncated = stdout.isOver() || stderr.isOver();
    resolve({ code, stdout: stdout.bytes(), stderr: stderr.bytes(), truncated });
  });
  // Not ended: a channel that is over in both directions closes itself, and a machine that is told so before it has seen
  // the command's end says nothing of that.
  if (stdin === '') channel.eof();
  else channel.write(stdin, () => channel.eof());
  return promise;
}

/** Null: it was given up while it waited. */
async function openExec(
  session: Session,
  command: string,
  isOver: () => boolean,
): Promise<ClientChannel | null> {
  for (let tries = 1; !isOver(); tries += 1) {
    const { promise, resolve } = Promise.withResolvers<ClientChannel | Error>();
    try {
      session.client.exec(command, (error, channel) => resolve(error ?? channel));
    } catch (error) {
      // Its connection is about to end.
      throw session.error ?? cut(session.address, describeError(error));
    }
    const opened = await promise;
    if (!(opened instanceof Error)) return opened;
    if (session.error !== null) throw session.error;
    // A busy sshd still counts sessions that have ended, and one may give fewer than others do.
    await sleep(Math.min(1_000, BUSY_PAUSE_MS * tries));
  }
  return null;
}

/**
 * The machine itself ends what takes too long, also when nobody is left here to say so. Closing the channel would not
 * end it, and ssh2 sends no signal once stdin has ended.
 */
function bounded(command: string, timeoutMs: number): string {
  const seconds = String(Math.ceil(timeoutMs / 1_000));
  return quoteCommand(['timeout', '-s', 'KILL', seconds, 'sh', '-c', command]);
}

function createSink(maxBytes: number) {
  const chunks: Buffer[] = [];
  let length = 0;
  let isOver = false;
  return {
    take(chunk: Buffer): void {
      const room = maxBytes - length;
      if (chunk.length > room) isOver = true;
      if (room <= 0) return;
      chunks.push(chunk.length > room ? chunk.subarray(0, room) : chunk);
      length += Math.min(room, chunk.length);
    },
    bytes: () => Buffer.concat(chunks),
    isOver: () => isOver,
  };
}
