import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { quote } from './cloud-init.ts';
import type { CloudInit } from './cloud-init.ts';
import type { MachineKnobs } from './knobs.ts';

/** A container as RunPod starts one: process 1 is what was asked for, its environment reaches nobody else. */
export interface ContainerBoot {
  kind: 'container';
  /** Entrypoint and command in one. */
  argv: readonly string[];
  env: Readonly<Record<string, string>>;
  /** false: the image has no sshd until somebody installs one. */
  sshdInstalled: boolean;
}

/** A virtual machine as Lambda boots one: sshd and cloud-init are there. */
export interface VmBoot {
  kind: 'vm';
  authorizedKeys: readonly string[];
  cloudInit: CloudInit;
}

/** sshd_config of Debian's package, without PAM, which a machine made of nothing lacks. */
const SSHD_CONFIG = `KbdInteractiveAuthentication no
UsePAM no
X11Forwarding yes
PrintMotd no
AcceptEnv LANG LC_*
Subsystem sftp /usr/lib/openssh/sftp-server
`;

const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

const seconds = (ms: number): string => String(ms / 1000);

function containerScript({ argv, env, sshdInstalled }: ContainerBoot): string {
  const words = { PATH, HOME: '/root', ...env };
  const pairs = Object.entries(words).map(([key, value]) => quote(`${key}=${value}`));
  const command = ['exec env -i', ...pairs, ...argv.map(quote)].join(' ');
  const keys = `cp /sim/sshd_config /etc/ssh/\nssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key\n`;
  return [
    'cd /',
    sshdInstalled ? keys : '',
    `sh -c ${quote(command)} >>/sim/container.log 2>&1`,
    'echo $? >/sim/exit',
    '',
  ].join('\n');
}

/** Keys of the account and of the user data; mode and owner matter to sshd. */
function authorize(keys: readonly string[]): string {
  return [
    'mkdir -p /home/ubuntu/.ssh',
    `printf '%s\\n' ${keys.map(quote).join(' ')} >/home/ubuntu/.ssh/authorized_keys`,
    'chmod 700 /home/ubuntu/.ssh',
    'chmod 600 /home/ubuntu/.ssh/authorized_keys',
    'chown -R ubuntu:ubuntu /home/ubuntu/.ssh',
  ].join('\n');
}

function hostKeys(keys: Readonly<Record<string, string>>): string {
  const own = Object.entries(keys).map(([name, text]) => {
    const file = quote(`/etc/ssh/${name}`);
    const mode = name.endsWith('.pub') ? '644' : '600';
    return `printf '%s' ${quote(text)} >${file}; chmod ${mode} ${file}`;
  });
  if (own.length > 0) return own.join('\n');
  return "ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key";
}

function vmScript({ authorizedKeys, cloudInit }: VmBoot, knobs: MachineKnobs): string {
  const { files, commands, script, error } = cloudInit;
  const keys = [...authorizedKeys, ...cloudInit.authorizedKeys];
  const written = files.map(
    ({ path: file, content, mode, owner }) =>
      `mkdir -p "$(dirname ${quote(file)})"; printf '%s' ${quote(content)} >${quote(file)}; chmod ${quote(mode)} ${quote(file)}; chown ${quote(owner)} ${quote(file)}`,
  );
  const delay = knobs.auth_delay_ms;
  return [
    `sleep ${seconds(knobs.sshd_delay_ms)}`,
    'cp /sim/sshd_config /etc/ssh/',
    hostKeys(cloudInit.hostKeys),
    delay > 0 ? `(sleep ${seconds(delay)}; ${authorize(keys)}) &` : authorize(keys),
    'mkdir -p /run/sshd',
    '/usr/sbin/sshd -D -e &',
    ...written,
    `sleep ${seconds(knobs.cloud_init_ms)}`,
    ...commands.map((line) => `sh -c ${quote(line)}`),
    script === undefined
      ? ''
      : `printf '%s' ${quote(script)} >/run/user-data; chmod 700 /run/user-data; /run/user-data`,
    error === undefined
      ? 'echo done >/run/cloud-init-done'
      : `echo ${quote(error)}; echo error >/run/cloud-init-done`,
    'wait',
    '',
  ].join('\n');
}

/** Writes what the machine finds in /sim when it starts. */
export async function writeBoot(
  folder: string,
  boot: ContainerBoot | VmBoot,
  knobs: MachineKnobs,
): Promise<void> {
  await mkdir(path.join(folder, 'engines'), { recursive: true, mode: 0o777 });
  const script = boot.kind === 'container' ? containerScript(boot) : vmScript(boot, knobs);
  await Promise.all([
    writeFile(path.join(folder, 'boot'), script),
    writeFile(path.join(folder, 'sshd_config'), SSHD_CONFIG),
    writeFile(path.join(folder, 'engine.json'), JSON.stringify(knobs.engine)),
    writeFile(path.join(folder, 'machine.json'), JSON.stringify(knobs)),
    writeFile(path.join(folder, 'gpu-fault'), knobs.gpu_fault ?? ''),
    writeFile(path.join(folder, 'container.log'), ''),
  ]);
}
