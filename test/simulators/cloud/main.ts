import { readFileSync } from 'node:fs';
import process from 'node:process';
import { parseArgs } from 'node:util';

/** What every simulated cloud is started with from the command line. */
export interface CloudFlags {
  port: number;
  host: string;
  apiKeys: string[];
  seed: number;
  machines: 'real' | 'none';
  knobs: Record<string, unknown>;
  sshKeys: string[];
}

export interface StartedCloud {
  url: string;
  stop(): Promise<void>;
}

const FLAGS = {
  port: { type: 'string', default: '0' },
  host: { type: 'string', default: '127.0.0.1' },
  'api-key': { type: 'string', multiple: true },
  seed: { type: 'string', default: '1' },
  machines: { type: 'string', default: 'real' },
  knobs: { type: 'string', default: '{}' },
  'ssh-key': { type: 'string', multiple: true, default: [] as string[] },
  'until-stdin-closes': { type: 'boolean', default: false },
  help: { type: 'boolean', default: false },
} as const;

/** Which cloud it is, for `--help`. */
export interface CloudProgram {
  name: string;
  /** As it is started from the top of the repository. */
  program: string;
  defaultKey: string;
  /** What `--ssh-key` is there. */
  keyFlag: string;
  /** Settings of a server that leases there, one a line; URL stands for the address. */
  settings: readonly string[];
}

function usage({ name, program, defaultKey, keyFlag, settings }: CloudProgram): string {
  return `${name} without GPUs, without money: node ${program} [FLAGS]
Prints {"listening": URL} once it listens, and ends with all its machines on SIGTERM and SIGINT.

  --port N               0, the default, takes a free one
  --host ADDRESS         default 127.0.0.1
  --api-key KEY          may be repeated; default ${defaultKey}
  --ssh-key FILE         ${keyFlag}; may be repeated
  --seed N               of faults, boot times, refusals and capacity that comes and goes
  --machines real|none   real: each machine has namespaces and an sshd of its own (Linux, root);
                         none: machines are entries of the ledger only
  --knobs JSON           what differs from the defaults; POST /_sim/knobs changes it later
  --until-stdin-closes   ends when its standard input does
  --help

GET  /_sim/knobs /_sim/faults /_sim/inventory /_sim/ledger /_sim/requests /_sim/asked
POST /_sim/knobs /_sim/faults /_sim/reset /_sim/machines/{id}/{act}
What knobs and faults there are, and what may be done to a machine, is told by cloud/knobs.ts,
machines/knobs.ts, cloud/faults.ts and cloud/control.ts of this folder.

A server leases there with AIBRIX_BATCH_SSH_KEY_FILE, the other half of the key, and with
${settings.map((line) => `  ${line}`).join('\n')}`;
}

function parseFlags(args: string[], defaultKey: string): CloudFlags | undefined {
  const { values } = parseArgs({ args, options: FLAGS });
  if (values.help) return undefined;
  const { machines } = values;
  if (machines !== 'real' && machines !== 'none')
    throw new Error('--machines must be real or none');
  if (values['until-stdin-closes']) {
    const end = (): void => {
      process.kill(process.pid, 'SIGTERM');
    };
    process.stdin.on('end', end).on('error', end).resume();
  }
  return {
    port: Number(values.port),
    host: values.host,
    apiKeys: values['api-key'] ?? [defaultKey],
    seed: Number(values.seed),
    machines,
    knobs: JSON.parse(values.knobs) as Record<string, unknown>, // parsed as knobs by the simulator
    sshKeys: values['ssh-key'].map((file) => readFileSync(file, 'utf8').trim()),
  };
}

/** Runs a simulated cloud as a process of its own: until SIGTERM, SIGINT or the end of its standard input. */
export async function runCloud(
  cloud: CloudProgram,
  start: (flags: CloudFlags) => Promise<StartedCloud>,
): Promise<void> {
  try {
    const flags = parseFlags(process.argv.slice(2), cloud.defaultKey);
    if (flags === undefined) {
      console.log(usage(cloud));
      return;
    }
    const started = await start(flags);
    for (const signal of ['SIGTERM', 'SIGINT'] as const) {
      process.once(signal, () => void started.stop().then(() => process.exit(0)));
    }
    console.log(JSON.stringify({ listening: started.url, machines: flags.machines }));
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1); // an open standard input would keep a failed start alive
  }
}
