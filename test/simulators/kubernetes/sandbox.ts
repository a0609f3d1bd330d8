import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { GATEWAY, layWire, runProgram } from '../machines/network.ts';

/** The namespaces that the containers of one pod share. */
export interface Sandbox {
  folder: string;
  address: string;
  /** Process 1 of the pod, numbered as this machine does. */
  pid: number;
  /** Ends every process in it. */
  stop(): Promise<void>;
}

const HERE = path.dirname(fileURLToPath(import.meta.url));
const START_MS = 60_000;

/** Makes a sandbox below `yard`; it ends with this process, however that ends. */
export async function startSandbox(yard: string, id: string, hostname: string): Promise<Sandbox> {
  const folder = path.join(yard, 'machines', id);
  await mkdir(folder, { recursive: true });
  const flags = ['--net', '--uts', '--ipc', '--pid', '--fork', '--kill-child'];
  const child = spawn(
    'unshare',
    [...flags, '/bin/sh', path.join(HERE, 'sandbox.sh'), folder, hostname],
    {
      stdio: ['pipe', 'pipe', 'pipe'],
      detached: true,
      env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' },
    },
  );
  const closed = Promise.withResolvers<undefined>();
  child.once('close', () => closed.resolve(undefined));
  child.stdin.on('error', () => {}); // it has ended, which `close` says too
  let said = '';
  const waits = new Map<string, (value: undefined) => void>();
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      said += text;
      for (const [word, resolve] of waits) if (said.split('\n').includes(word)) resolve(undefined);
    });
  }
  async function hears(word: string): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<undefined>();
    waits.set(word, resolve);
    if (said.split('\n').includes(word)) resolve(undefined);
    const fail = (): void => reject(new Error(`no sandbox of ${id}: ${said.trim()}`));
    const late = setTimeout(fail, START_MS);
    child.once('close', fail);
    try {
      await promise;
    } finally {
      clearTimeout(late);
      waits.delete(word);
      child.off('close', fail);
    }
  }
  const outer = child.pid ?? 0;
  try {
    await writeFile(path.join(folder, 'pid'), String(outer));
    await hears('namespaces');
    const { address } = await layWire(outer);
    child.stdin.write(`${address} ${GATEWAY}\n`);
    await hears('up');
    const pid = Number(
      readFileSync(`/proc/${outer}/task/${outer}/children`, 'utf8').trim().split(' ')[0],
    );
    return {
      folder,
      address,
      pid,
      async stop() {
        child.kill('SIGKILL');
        await closed.promise;
        await rm(folder, { recursive: true, force: true, maxRetries: 5 });
      },
    };
  } catch (error) {
    child.kill('SIGKILL');
    throw error;
  }
}

/** Runs a command in a container, as `kubectl exec` and exec probes do. */
export async function execIn(
  pid: number,
  argv: readonly string[],
): Promise<{ code: number | null; output: string }> {
  const into = ['--target', String(pid), '--all', '--root', '--wd'];
  const { code, stdout, stderr } = await runProgram('nsenter', [...into, '--', ...argv]);
  return { code, output: `${stdout}${stderr}`.trim() };
}
