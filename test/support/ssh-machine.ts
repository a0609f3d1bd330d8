import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import * as v from 'valibot';
import type { MachineSite } from '../../src/runtimes/contract.ts';
import { createKeyPair } from '../../src/runtimes/ssh/keys.ts';
import type { KeyPair } from '../../src/runtimes/ssh/keys.ts';
import { openSession } from '../../src/runtimes/ssh/session.ts';
import type { Session, SessionOptions } from '../../src/runtimes/ssh/session.ts';
import { parseUserData } from '../simulators/machines/cloud-init.ts';
import { machineKnobs } from '../simulators/machines/knobs.ts';
import { startMachine } from '../simulators/machines/machine.ts';
import type { Machine, MachineSpec } from '../simulators/machines/machine.ts';
import { openYard } from '../simulators/machines/yard.ts';
import { until } from './until.ts';

/** As a container's start command does it; the host key comes in the environment. */
const BOOTSTRAP = `set -e
mkdir -p /run/sshd ~/.ssh; chmod 700 ~/.ssh
printf '%s\\n' "$PUBLIC_KEY" >>~/.ssh/authorized_keys; chmod 600 ~/.ssh/authorized_keys
umask 077; printf '%s\\n' "$HOST_KEY" >/etc/ssh/ssh_host_ed25519_key; rm -f /etc/ssh/ssh_host_*.pub
exec /usr/sbin/sshd -D -e -o HostKey=/etc/ssh/ssh_host_ed25519_key $SSHD_OPTIONS`;

const H100 = { name: 'NVIDIA H100 80GB HBM3', memoryMib: 81_559 };

export interface SshMachine extends AsyncDisposable {
  machine: Machine;
  key: KeyPair;
  hostKey: KeyPair;
  /** What opens a session; fields of `more` come instead. */
  options(more?: Partial<SessionOptions>): SessionOptions;
  /** Where it is now, as its record would tell. */
  site(): MachineSite;
  /** SSH connections to it that stand. */
  connections(): Promise<number>;
  /** Opens one that is closed with the machine. */
  open(more?: Partial<SessionOptions>): Promise<Session>;
}

interface Wanted {
  knobs?: v.InferInput<typeof machineKnobs>;
  gpus?: number;
  /** More of sshd's command line. */
  sshd?: string;
}

function bootOf(
  kind: 'container' | 'vm',
  key: KeyPair,
  hostKey: KeyPair,
  sshd: string,
): MachineSpec['boot'] {
  if (kind === 'container') {
    const env = {
      PUBLIC_KEY: key.publicKey,
      HOST_KEY: hostKey.privateKey,
      SSHD_OPTIONS: sshd,
      CUDA_VERSION: '13.0',
      RUNPOD_API_KEY: 'pod-scoped',
    };
    return { kind, argv: ['/bin/bash', '-lc', BOOTSTRAP], env, sshdInstalled: true };
  }
  const cloudInit = parseUserData(`#cloud-config
ssh_deletekeys: true
ssh_keys:
  ed25519_private: |
${hostKey.privateKey
  .trimEnd()
  .split('\n')
  .map((line) => `    ${line}`)
  .join('\n')}
  ed25519_public: "${hostKey.publicKey}"
`);
  return { kind, authorizedKeys: [key.publicKey], cloudInit };
}

/** Boots a machine with a real sshd and waits until that answers. `container`: as RunPod has them; `vm`: as Lambda has. */
export async function startSshMachine(
  kind: 'container' | 'vm' = 'container',
  { knobs = {}, gpus = 1, sshd = '' }: Wanted = {},
): Promise<SshMachine> {
  const yard = await openYard();
  const [key, hostKey] = [createKeyPair(), createKeyPair()];
  const machine = await startMachine(yard.folder, {
    id: `m-${kind}`,
    gpus: Array.from({ length: gpus }, () => H100),
    diskGb: 20,
    mounts: [],
    boot: bootOf(kind, key, hostKey, sshd),
    knobs: v.parse(machineKnobs, knobs),
  });
  const sessions: Session[] = [];
  await until(async () => machine.answersSsh(), { what: 'sshd' });
  const options: SshMachine['options'] = (more = {}) => ({
    host: machine.address,
    port: 22,
    user: kind === 'vm' ? 'ubuntu' : 'root',
    privateKey: key.privateKey,
    hostKeys: [hostKey.publicKey],
    ...more,
  });
  return {
    machine,
    key,
    hostKey,
    options,
    site() {
      const { host, port, user } = options();
      const provider = kind === 'vm' ? 'lambdaCloud' : 'runpod';
      return { provider, login: { host, port, user }, hostKey: hostKey.publicKey };
    },
    async connections() {
      const { stdout } = await machine.exec('ss -Hnt state established sport = :22 | wc -l');
      return Number(stdout);
    },
    async open(more) {
      const session = await openSession(options(more));
      sessions.push(session);
      return session;
    },
    async [Symbol.asyncDispose]() {
      for (const session of sessions) session.close();
      await machine.stop();
      await yard.close();
    },
  };
}

/** A file of a folder of its own. */
export async function temporaryFile(
  text: string,
  mode: number,
): Promise<AsyncDisposable & { path: string }> {
  const folder = await mkdtemp(path.join(tmpdir(), 'sluice-key-'));
  const file = path.join(folder, 'key');
  await writeFile(file, text, { mode });
  return { path: file, [Symbol.asyncDispose]: async () => rm(folder, { recursive: true }) };
}
