import { readFileSync } from 'node:fs';
import type { LogLine, Sluice } from './server.ts';
import { until } from './until.ts';

/** Whether a process runs. One that has ended and waits for somebody to notice, as an orphan may for long, does not. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch {
    return false; // ESRCH: gone
  }
  try {
    return !/\) Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return process.platform !== 'linux'; // only Linux shows it, and there it has gone meanwhile
  }
}

/** Log lines of a server with one of these messages, oldest first. */
export function logged(sluice: Pick<Sluice, 'logs'>, ...messages: string[]): LogLine[] {
  return sluice.logs().filter(({ msg }) => messages.includes(msg));
}

/** Process ids of the worker processes that work or worked, oldest first. */
export function workerPids(sluice: Pick<Sluice, 'logs'>): number[] {
  return logged(sluice, 'worker process started').map((line) => Number(line['childPid']));
}

/** Waits until a process stands by, after so many replacements. */
export async function untilOneStandsBy(sluice: Sluice, replaced: number): Promise<void> {
  const count = workerPids(sluice).length + 1;
  await until(() => logged(sluice, 'worker process is ready').length >= count, {
    timeoutMs: 60_000,
    what: `a process that stands by, after ${replaced} replacements`,
  });
}

/** Waits until so many starts of worker processes have come to work. */
export async function untilWorking(sluice: Sluice, count: number): Promise<void> {
  await until(() => logged(sluice, 'worker process is up').length >= count, {
    timeoutMs: 60_000,
    what: `start ${count} of a worker process`,
  });
}
