import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { MachineProvider } from '../../src/domain/provision.ts';
import { connectControl } from '../simulators/cloud/control.ts';
import type { CloudControl } from '../simulators/cloud/control.ts';
import { merge } from '../simulators/cloud/knobs.ts';
import { startLambda } from '../simulators/lambda/simulator.ts';
import { createKeyPair } from '../simulators/machines/ssh-client.ts';
import { startRunPod } from '../simulators/runpod/simulator.ts';
import type { Environment } from './server.ts';

/** The providers, and the dialects in which one of them may be asked. */
export type CloudKind = MachineProvider | 'runpod-v1';

/** A simulated account at a provider, and what a server needs to lease there. */
export interface Cloud extends AsyncDisposable {
  kind: CloudKind;
  provider: MachineProvider;
  /** Without the version of its API. */
  url: string;
  control: CloudControl;
  /** Settings of a server, but PROVISIONER and the key file. */
  env: Environment;
}

export interface CloudOptions {
  /** Laid over the quick ones. */
  knobs?: Record<string, unknown>;
  /** `none`: machines are entries of a ledger, and nobody can log in. */
  machines?: 'real' | 'none';
  /** Of faults, boot times, refusals and capacity that comes and goes. */
  seed?: number;
  /** It runs in a process of its own, as `node test/simulators/…` does. */
  apart?: boolean;
}

/** Made as the guide has it: a private key that only its owner reads, and the public half beside it. */
export interface KeyFile {
  path: string;
  publicKey: string;
}

/** Makes a key pair in `folder`. */
export async function makeKeyFile(folder: string, name = 'key'): Promise<KeyFile> {
  const { privateKey, publicKey } = await createKeyPair();
  await mkdir(folder, { recursive: true });
  const path = join(folder, name);
  await writeFile(path, privateKey, { mode: 0o600 });
  await writeFile(`${path}.pub`, `${publicKey}\n`);
  return { path, publicKey };
}

/** Machines that boot in less than a second, and engines that load and answer as quickly. */
const QUICK = {
  boot_ms: [200, 600],
  machine: { engine: { profile: 'zero', load_ms: 200 } },
};
/** Accounts that keep nobody waiting; RunPod's says so in its answers. */
const LARGE = {
  runpod: { rate_limits: { minute: 6_000, hour: 100_000, day: 2_000_000 } },
  lambdaCloud: { request_interval_ms: 0, launch_interval_ms: 0 },
} as const;

const PROGRAMS = {
  runpod: fileURLToPath(new URL('../simulators/runpod.ts', import.meta.url)),
  lambdaCloud: fileURLToPath(new URL('../simulators/lambda.ts', import.meta.url)),
} as const;

const START_MS = 60_000;

function settingsOf(kind: CloudKind, url: string, publicKey: string): Environment {
  if (kind === 'lambdaCloud') {
    return {
      LAMBDA_CLOUD_API_KEY: 'lambda-key',
      LAMBDA_CLOUD_SSH_KEYS: 'default',
      LAMBDA_CLOUD_BASE_URL: `${url}/api/v1`,
    };
  }
  return {
    RUNPOD_API_KEY: 'runpod-key',
    RUNPOD_SSH_PUBLIC_KEY: publicKey,
    RUNPOD_BASE_URL: `${url}/${kind === 'runpod' ? 'v2' : 'v1'}`,
  };
}

interface Running extends AsyncDisposable {
  url: string;
  control: CloudControl;
}

/** Resolves when it listens; it ends with this process, however that ends. */
async function startApart(program: string, flags: readonly string[]): Promise<Running> {
  const child = spawn(process.execPath, [program, '--until-stdin-closes', ...flags], {
    stdio: ['pipe', 'pipe', 'inherit'],
    detached: true, // Ctrl-C is for whoever uses the cloud, which goes with its stdin
  });
  const ended = once(child, 'exit');
  const gone = ended.then(([code]) => {
    throw new Error(`the simulated cloud ended with ${String(code)} before it listened`);
  });
  const signal = AbortSignal.timeout(START_MS);
  const line = once(createInterface({ input: child.stdout }), 'line', { signal });
  const [text] = await Promise.race([line, gone]);
  gone.catch(() => {}); // from here on whoever asks it notices
  const { listening: url } = JSON.parse(String(text)) as { listening: string }; // as its --help says
  return {
    url,
    control: connectControl(url),
    async [Symbol.asyncDispose]() {
      child.kill('SIGTERM');
      await ended;
    },
  };
}

/**
 * Starts a large simulated account with quick machines, whose owner has this key. Throws where real machines
 * cannot run here, with the mend.
 */
export async function startCloud(
  kind: CloudKind,
  key: KeyFile,
  { knobs = {}, machines = 'real', seed = 1, apart = false }: CloudOptions = {},
): Promise<Cloud> {
  const provider = kind === 'lambdaCloud' ? 'lambdaCloud' : 'runpod';
  const all = merge({ ...QUICK, ...LARGE[provider] }, knobs);
  const words = { seed: String(seed), machines, knobs: JSON.stringify(all) };
  const flags = Object.entries(words).flatMap(([name, value]) => [`--${name}`, value]);
  const start = provider === 'runpod' ? startRunPod : startLambda;
  const running = apart
    ? await startApart(PROGRAMS[provider], [...flags, '--ssh-key', `${key.path}.pub`])
    : await start({ knobs: all, machines, seed, sshKeys: [key.publicKey] });
  return {
    kind,
    provider,
    url: running.url,
    control: running.control,
    env: settingsOf(kind, running.url, key.publicKey),
    [Symbol.asyncDispose]: () => running[Symbol.asyncDispose](),
  };
}

/** The settings of a server that leases at these clouds, in their order, and logs in with this key. */
export function leasingEnvironment(clouds: readonly Cloud[], key: KeyFile): Environment {
  const providers = new Set(clouds.map(({ provider }) => provider));
  return Object.assign(
    { PROVISIONER: [...providers].join(','), AIBRIX_BATCH_SSH_KEY_FILE: key.path },
    ...clouds.map(({ env }) => env),
  ) as Environment; // every part is one
}
