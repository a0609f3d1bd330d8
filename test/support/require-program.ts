import { spawnSync } from 'node:child_process';

/** Programs that tests run, and the Debian packages that carry them; set-up has the same table. */
const PACKAGES = {
  'redis-server': 'redis-server',
  sshd: 'openssh-server',
  chromium: 'chromium',
  kubectl: 'kubernetes-client',
  jq: 'jq',
  curl: 'curl',
} as const;

/**
 * Absolute path of a program that a test cannot do without. A missing one is an error that says
 * how to get it, never a skipped test.
 */
export function requireProgram(name: keyof typeof PACKAGES): string {
  // sshd lives in a folder that is on root's PATH only, and wants to be run by its full path.
  const look = 'PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"; command -v "$0"';
  const { stdout } = spawnSync('/bin/sh', ['-c', look, name], { encoding: 'utf8' });
  const path = stdout.trim();
  if (path) return path;
  throw new Error(
    `${name} is not installed: run \`sh src/main/setup.sh --tests\` ` +
      `(or apt-get install --no-install-recommends ${PACKAGES[name]})`,
  );
}
