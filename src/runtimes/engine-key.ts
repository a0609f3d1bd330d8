import { createHmac } from 'node:crypto';

/**
 * The API key of an engine that the world can reach. It is derived and never stored: whoever may log in to the machine can
 * tell it, and as each lease has a fresh host key, no two have the same.
 */
export function engineKey(privateKey: string, hostKey: string): string {
  const words = `sluice engine key\n${hostKey.trim()}`;
  return createHmac('sha256', privateKey.trim()).update(words).digest('base64url');
}
