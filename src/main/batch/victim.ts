import { readdir, readFile } from 'node:fs/promises';
import { errorCode } from '../../domain/errors.ts';
import type { Logger } from '../../observability/log.ts';

const MARK = '\0WORKER_VICTIM=1\0';
const LOOK_MS = 100;

interface EndEngine {
  log: Logger;
  sleep(ms: number): Promise<void>;
  /** How long it may take to end after SIGTERM, ms; then it is killed. */
  graceMs: number;
  /** Where processes are listed. */
  proc?: string;
}

/**
 * Ends the engine of a pod where Kubernetes would keep it running: in clusters before 1.29 it is a plain second
 * container, and the pod ends only with it. It is the process with `WORKER_VICTIM=1` in its environment, which is seen
 * where containers share their processes. Waits until it is gone. Never rejects.
 */
export async function endEngine({ log, sleep, graceMs, proc = '/proc' }: EndEngine): Promise<void> {
  const victims = await findVictims(proc);
  const [first] = victims;
  if (first === undefined) {
    log.debug({}, 'no process is marked WORKER_VICTIM=1, so no engine is ended');
    return;
  }
  // What it started ends with it; a signal to all of them at once would look like a crash to it.
  if (!send(first, 'SIGTERM', log)) return;
  log.info({ pid: first }, 'engine is told to end');
  const deadline = performance.now() + graceMs;
  for (;;) {
    const left = (await findVictims(proc)).filter((pid) => victims.includes(pid));
    if (left.length === 0) return;
    if (performance.now() > deadline) {
      log.warn({ pids: left, graceMs }, 'engine did not end in time and is killed');
      for (const pid of left) send(pid, 'SIGKILL', log);
      return;
    }
    await sleep(LOOK_MS);
  }
}

/** Processes that are marked, the oldest first; ours never is. */
async function findVictims(proc: string): Promise<number[]> {
  const pids = (await readdir(proc)).filter((name) => /^\d+$/.test(name)).map(Number);
  const marked = await Promise.all(
    pids.map(async (pid) => pid !== process.pid && (await isMarked(proc, pid))),
  );
  return pids.filter((_pid, place) => marked[place]).toSorted((a, b) => a - b);
}

async function isMarked(proc: string, pid: number): Promise<boolean> {
  try {
    const environment = await readFile(`${proc}/${pid}/environ`, 'latin1');
    return `\0${environment}\0`.includes(MARK);
  } catch {
    // It has ended meanwhile, or belongs to another user, whom we could not signal either.
    return false;
  }
}

/** False where it cannot be told. */
function send(pid: number, signal: NodeJS.Signals, log: Logger): boolean {
  try {
    process.kill(pid, signal);
    return true;
  } catch (error) {
    if (errorCode(error) !== 'ESRCH') {
      log.warn(
        { pid, err: error },
        'the engine cannot be told to end: both containers need the same runAsUser',
      );
    }
    return false;
  }
}
