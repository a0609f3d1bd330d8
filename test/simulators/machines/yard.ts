import { readdirSync, readFileSync, rmSync } from 'node:fs';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { openBlackHole, runProgram } from './network.ts';

/*
 * The folder of one simulator: its machines and what outlives them. Namespaces end with the
 * simulator by themselves; files of one that was killed are swept by the next that starts.
 */

const PREFIX = 'sluice-machines-';

export interface Yard {
  folder: string;
  /** A folder that machines mount and that stays when they go. */
  volume(id: string): Promise<string>;
  dropVolume(id: string): Promise<void>;
  close(): Promise<void>;
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM';
  }
}

/** Ends a machine whose simulator is gone, if the number still belongs to it. */
function endLeftover(folder: string, machine: string): void {
  try {
    const place = path.join(folder, 'machines', machine);
    const pid = Number(readFileSync(path.join(place, 'pid'), 'utf8'));
    if (readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(place)) process.kill(pid, 'SIGKILL');
  } catch {
    // no such file or process: it has ended
  }
}

function machinesIn(folder: string): string[] {
  try {
    return readdirSync(path.join(folder, 'machines'));
  } catch {
    return []; // it never had one
  }
}

/** Removes what simulators that are dead have left; returns how many. */
function sweepYards(): number {
  let swept = 0;
  for (const name of readdirSync(tmpdir())) {
    const pid = Number(new RegExp(`^${PREFIX}(\\d+)-`).exec(name)?.[1]);
    if (!(pid > 0) || isAlive(pid)) continue;
    const folder = path.join(tmpdir(), name);
    for (const machine of machinesIn(folder)) endLeftover(folder, machine);
    rmSync(folder, { recursive: true, force: true });
    swept += 1;
  }
  return swept;
}

/**
 * Whether machines can be real here. The mend, where they cannot, is in the message.
 * Needs Linux, root (or CAP_SYS_ADMIN and CAP_NET_ADMIN), util-linux, iproute2 and openssh-server.
 */
export async function whyNoNamespaces(): Promise<string | undefined> {
  const test = 'test -x /usr/sbin/sshd && command -v ip unshare nsenter && ip link set lo up';
  try {
    const flags = ['--net', '--mount', '--pid', '--uts', '--fork', '/bin/sh', '-c', test];
    const { code, stderr } = await runProgram('unshare', flags);
    if (code === 0) return undefined;
    const why = stderr.trim() || 'sshd, ip, unshare or nsenter is missing';
    return `no machine can run here (${why}): run as root with openssh-server, iproute2 and util-linux installed, or ask for machines without processes (--machines none)`;
  } catch (error) {
    return `no machine can run here (${String(error)}): namespaces need Linux with util-linux; ask for --machines none`;
  }
}

/** Opens the folder of this simulator, after sweeping what dead ones left. */
export async function openYard(): Promise<Yard> {
  sweepYards();
  const folder = await mkdtemp(path.join(tmpdir(), `${PREFIX}${process.pid}-`));
  const volumeOf = (id: string): string => path.join(folder, 'volumes', id);
  await mkdir(path.join(folder, 'machines'), { recursive: true });
  const hole = await openBlackHole();
  return {
    folder,
    async volume(id) {
      await mkdir(volumeOf(id), { recursive: true });
      return volumeOf(id);
    },
    async dropVolume(id) {
      await rm(volumeOf(id), { recursive: true, force: true });
    },
    async close() {
      await hole.close();
      await rm(folder, { recursive: true, force: true, maxRetries: 5 });
    },
  };
}
