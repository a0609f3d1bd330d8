import { describeError, errorCode, permanent, transient } from '../../domain/errors.ts';
import type { SluiceError } from '../../domain/errors.ts';

/** Where an sshd is, and who logs in. */
export interface SshAddress {
  host: string;
  port: number;
  user: string;
}

export function showAddress({ host, port, user }: SshAddress): string {
  return `${user}@${host.includes(':') ? `[${host}]` : host}:${port}`;
}

const UNREACHABLE = new Set([
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'EHOSTDOWN',
  'ENETUNREACH',
  'ENETDOWN',
  'ENOTFOUND',
  'EAI_AGAIN',
  'EADDRNOTAVAIL',
]);
const CUT = new Set(['ECONNRESET', 'EPIPE']);

/**
 * What went wrong while a connection was made or used:
 * - `ssh.refused`: nobody listens there (yet)
 * - `ssh.unreachable`: no way there, or no answer
 * - `ssh.auth`: the machine does not let this key in. Transient, since a machine that boots may write its keys only
 *   after sshd is up
 * - `ssh.cut`: the connection ended, or the machine fell silent
 * - `ssh.protocol`: what listens there does not speak SSH as we do
 */
export function sshError(error: unknown, address: SshAddress): SluiceError {
  const where = showAddress(address);
  const code = errorCode(error);
  const details = { cause: error };
  if (code === 'ECONNREFUSED') {
    return transient('ssh.refused', `${where} refuses connections: no sshd listens there`, details);
  }
  if (UNREACHABLE.has(code)) {
    return transient('ssh.unreachable', `${where} cannot be reached (${code})`, details);
  }
  const level = error instanceof Error && 'level' in error ? error.level : '';
  if (level === 'client-authentication') {
    return transient(
      'ssh.auth',
      `${where} does not let us in: its authorized keys lack the one that was used, or the user is another`,
      details,
    );
  }
  const text = describeError(error);
  if (CUT.has(code) || /lost before handshake|^No response/.test(text)) return cut(address, text);
  return transient('ssh.protocol', `${where} does not speak SSH as expected: ${text}`, details);
}

export function cut(address: SshAddress, why: string): SluiceError {
  return transient('ssh.cut', `the SSH connection to ${showAddress(address)} was cut: ${why}`);
}

export function silent(address: SshAddress, what: string, ms: number): SluiceError {
  return transient('ssh.unreachable', `${showAddress(address)} ${what} within ${ms} ms`);
}

export function otherHostKey(
  address: SshAddress,
  found: string,
  pinned: readonly string[],
): SluiceError {
  return permanent(
    'ssh.host_key_changed',
    `${showAddress(address)} proves itself with ${found} and not with the pinned host key (${pinned.join(', ')}): ` +
      'another machine answers there, or it was made anew. It is refused',
  );
}
