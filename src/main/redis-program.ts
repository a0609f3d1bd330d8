import { spawnSync } from 'node:child_process';
import { join } from 'node:path';

/** What a user reads when neither program is installed. */
export const REDIS_MISSING =
  'redis-server is not installed: run `npm run setup`, or install it yourself ' +
  '(Debian, Ubuntu: apt-get install redis-server · Fedora: dnf install valkey · ' +
  'Alpine: apk add redis · macOS: brew install redis), or set REDIS_URL to a Redis of yours';

/** Names of programs that speak our dialect, best first. */
const NAMES = ['redis-server', 'valkey-server'];

// Set-up may have put a link there, and a process started by hand lacks it on its PATH.
const LOCAL_PROGRAMS = join(import.meta.dirname, '../../node_modules/.bin');

/** Absolute path of redis-server or valkey-server, or null if this machine has neither. */
export function findRedisProgram(): string | null {
  const look = `PATH="$PATH:$0"; ${NAMES.map((name) => `command -v ${name}`).join(' || ')}`;
  const { stdout } = spawnSync('/bin/sh', ['-c', look, LOCAL_PROGRAMS], { encoding: 'utf8' });
  return stdout.trim() || null;
}

/** How a child is bound to its parent's life: by the kernel (Linux), or by a pipe and a shell. */
export type Tie = 'kernel' | 'pipe';

/** A command that ends when the process that spawned it ends, however that happened. */
export interface TiedCommand {
  command: string;
  args: string[];
  /** With `pipe`, spawn it with a piped stdin and keep that open: closing it ends the program. */
  tie: Tie;
}

// The signal is set before the parent is compared: a parent that died in between shows here as
// another parent, one that dies later is answered by the signal. So no instant is uncovered.
const KERNEL_GUARD = '[ "$PPID" = "$0" ] && exec "$@"';

// For systems without PR_SET_PDEATHSIG: end of file on stdin means that the parent is gone.
const PIPE_GUARD = `
exec 3<&0
"$@" 3<&- </dev/null & program=$!
trap 'kill -s "$0" $program' TERM INT HUP
{ cat >/dev/null; kill -s "$0" $program 2>/dev/null; } <&3 & watcher=$!
exec 3<&-
wait $program; wait $program
kill $watcher 2>/dev/null`;

/** The best tie that this machine offers. BusyBox has a setpriv that lacks the option. */
function bestTie(): Tie {
  if (process.platform !== 'linux') return 'pipe';
  const probe = spawnSync('setpriv', ['--pdeathsig', 'keep', 'true'], { stdio: 'ignore' });
  return probe.status === 0 ? 'kernel' : 'pipe';
}

/**
 * Wraps a program so that `signal` reaches it when the caller's process ends, SIGKILL included.
 * It has to be spawned from the main thread: the kernel's tie is to the thread that forks.
 */
export function tiedCommand(
  program: string,
  args: string[],
  signal: 'TERM' | 'KILL',
  tie: Tie = bestTie(),
): TiedCommand {
  if (tie === 'pipe') {
    return { command: '/bin/sh', args: ['-c', PIPE_GUARD, signal, program, ...args], tie };
  }
  const guard = ['/bin/sh', '-c', KERNEL_GUARD, String(process.pid), program, ...args];
  return { command: 'setpriv', args: ['--pdeathsig', signal, ...guard], tie };
}
