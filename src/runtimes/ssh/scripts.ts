import { readFileSync } from 'node:fs';
import { permanent, transient } from '../../domain/errors.ts';
import { showAddress } from './errors.ts';
import { execBytes } from './exec.ts';
import type { ExecOptions, ExecutedBytes } from './exec.ts';
import { quoteCommand } from './quote.ts';
import type { Session } from './session.ts';

function read(name: string): string {
  const text = readFileSync(new URL(`scripts/${name}.sh`, import.meta.url), 'utf8');
  // The text is part of a command line, whose length has a limit.
  return text.replaceAll(/^\s*#.*\n/gm, '');
}

function withCommon(name: string): string {
  return read('common') + read(name);
}

/** What runs on machines; the text of each begins with the functions that all use. */
export const SCRIPTS = {
  start: withCommon('start'),
  look: withCommon('look'),
  stop: withCommon('stop'),
  log: withCommon('log'),
  probe: withCommon('probe'),
  file: withCommon('file'),
  runDocker: withCommon('run-docker'),
  runProcess: withCommon('run-process'),
} as const;

/** Exit codes of the scripts (as in sysexits.h) that another try may mend: docker or the machine is busy, or was. */
const PASSING = new Set([69, 70, 75]);
const SIGNALLED = 128;
const SHOWN = 500;

/**
 * Runs one of our scripts; `words` are its parameters. An exit code other than 0 is thrown as `ssh.script`: `Transient`
 * where trying again may help, else `Permanent` (a program that the machine lacks, a full disk).
 */
export async function runScript(
  session: Session,
  script: string,
  words: readonly string[],
  options: ExecOptions = {},
): Promise<ExecutedBytes> {
  const command = quoteCommand(['sh', '-c', script, 'sluice', ...words]);
  const done = await execBytes(session, command, options);
  if (done.code === 0) return done;
  const said = done.stderr.toString().trim().slice(-SHOWN) || 'it said nothing';
  const message = `a script on ${showAddress(session.address)} ended with code ${done.code}: ${said}`;
  throw PASSING.has(done.code) || done.code > SIGNALLED
    ? transient('ssh.script', message)
    : permanent('ssh.script', message);
}
