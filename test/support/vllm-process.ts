import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { VllmSimulator } from '../simulators/vllm/simulator.ts';

const ENTRY = fileURLToPath(new URL('../simulators/vllm.ts', import.meta.url));

/** How a process ended. */
export interface ProcessEnd {
  code: number | null;
  signal: NodeJS.Signals | null;
}

export interface VllmProcessOptions {
  /** Flags of test/simulators/vllm.ts besides `--port`. */
  flags?: readonly string[];
  /** 0, the default, takes a free one; a fixed one lets a second engine take over the address of a dead one. */
  port?: number;
  /** How long it may take to listen. */
  timeoutMs?: number;
}

/** A simulated engine in a process of its own, steered over its admin endpoints. */
export interface VllmProcess extends VllmSimulator {
  pid: number;
  exited: Promise<ProcessEnd>;
  /** Sends a signal and waits for the end. */
  kill(signal: NodeJS.Signals): Promise<ProcessEnd>;
}

async function admin<T>(url: string, path: string, body?: unknown): Promise<T> {
  const init =
    body === undefined
      ? {}
      : {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify(body),
        };
  const answer = await fetch(`${url}/admin/${path}`, init);
  const text = await answer.text();
  if (!answer.ok) throw new Error(`/admin/${path} answered ${answer.status}: ${text}`);
  return JSON.parse(text) as T; // written by the simulator of the same commit
}

async function listeningUrl(child: ChildProcess, timeoutMs: number): Promise<string> {
  if (child.stdout === null) throw new Error('the simulator has no stdout');
  const lines = createInterface({ input: child.stdout });
  const signal = AbortSignal.timeout(timeoutMs);
  const line = once(lines, 'line', { signal }).then(([text]) => String(text));
  const gone = once(child, 'exit').then(([code]) => {
    throw new Error(`the simulator ended with ${String(code)} before it listened`);
  });
  const { listening } = JSON.parse(await Promise.race([line, gone])) as { listening: string };
  gone.catch(() => {}); // from here on `exited` tells of its end
  return listening;
}

/** Starts the simulator as a child that ends with this process, however this process ends. */
export async function startVllmProcess(options: VllmProcessOptions = {}): Promise<VllmProcess> {
  const { flags = [], port = 0, timeoutMs = 60_000 } = options;
  const args = [ENTRY, '--port', String(port), '--until-stdin-closes', ...flags];
  // A group of its own: Ctrl-C is for whoever uses the engine, which goes with its stdin.
  const child = spawn(process.execPath, args, {
    stdio: ['pipe', 'pipe', 'inherit'],
    detached: true,
  });
  const exited = once(child, 'exit').then(([code, signal]): ProcessEnd => ({
    code: code as number | null,
    signal: signal as ProcessEnd['signal'],
  }));

  async function kill(signal: NodeJS.Signals): Promise<ProcessEnd> {
    child.kill(signal);
    return exited;
  }

  const url = await listeningUrl(child, timeoutMs).catch(async (error: unknown) => {
    await kill('SIGKILL');
    throw error;
  });
  async function close(): Promise<void> {
    if (child.exitCode === null && child.signalCode === null) await kill('SIGKILL');
  }

  return {
    url,
    port: Number(new URL(url).port),
    pid: child.pid ?? 0,
    exited,
    kill,
    counts: async () => admin(url, 'counts'),
    async requests({ bodies = false } = {}) {
      const path = bodies ? 'requests?bodies=1' : 'requests';
      return (await admin<{ requests: Awaited<ReturnType<VllmSimulator['requests']>> }>(url, path))
        .requests;
    },
    async setFaults(faults) {
      await admin(url, 'faults', { faults });
    },
    async faults() {
      return (await admin<{ faults: Awaited<ReturnType<VllmSimulator['faults']>> }>(url, 'faults'))
        .faults;
    },
    setConfig: async (changes) => admin(url, 'config', changes),
    close,
    [Symbol.asyncDispose]: close,
  };
}
