import { request } from 'node:http';
import { connect } from 'node:net';
import { execIn } from './sandbox.ts';
import type { Container, Probe } from './objects.ts';

/** What a probe is aimed at. */
export interface Target {
  address: string;
  /** First process of the container. */
  pid: number;
  container: Container;
}

export interface ProbeResult {
  ok: boolean;
  message: string;
}

function portOf(port: string | number, { ports = [] }: Container): number {
  if (typeof port === 'number') return port;
  return ports.find(({ name }) => name === port)?.containerPort ?? Number(port);
}

async function httpProbe(
  probe: NonNullable<Probe['httpGet']>,
  timeoutMs: number,
  { address, container }: Target,
): Promise<ProbeResult> {
  const { promise, resolve } = Promise.withResolvers<ProbeResult>();
  const port = portOf(probe.port, container);
  const url = `http://${probe.host ?? address}:${port}${probe.path ?? '/'}`;
  const headers = Object.fromEntries(
    (probe.httpHeaders ?? []).map(({ name, value }) => [name, value]),
  );
  const asked = request(
    url,
    { timeout: timeoutMs, agent: false, headers: { 'user-agent': 'kube-probe/1.34', ...headers } },
    (answer) => {
      answer.resume();
      const code = answer.statusCode ?? 0;
      const ok = code >= 200 && code < 400;
      resolve({ ok, message: ok ? '' : `HTTP probe failed with statuscode: ${code}` });
    },
  );
  asked.once('timeout', () => {
    resolve({
      ok: false,
      message: `Get "${url}": context deadline exceeded (Client.Timeout exceeded while awaiting headers)`,
    });
    asked.destroy();
  });
  asked.once('error', (error) => {
    const refused = 'code' in error && error.code === 'ECONNREFUSED';
    const why = refused
      ? `dial tcp ${address}:${port}: connect: connection refused`
      : error.message;
    resolve({ ok: false, message: `Get "${url}": ${why}` });
  });
  asked.end();
  return promise;
}

async function tcpProbe(port: number, timeoutMs: number, address: string): Promise<ProbeResult> {
  const { promise, resolve } = Promise.withResolvers<ProbeResult>();
  const socket = connect({ host: address, port, timeout: timeoutMs });
  socket.once('connect', () => resolve({ ok: true, message: '' }));
  socket.once('timeout', () =>
    resolve({ ok: false, message: `dial tcp ${address}:${port}: i/o timeout` }),
  );
  socket.once('error', () =>
    resolve({ ok: false, message: `dial tcp ${address}:${port}: connect: connection refused` }),
  );
  const result = await promise;
  socket.destroy();
  return result;
}

async function execProbe(
  command: readonly string[],
  timeoutMs: number,
  pid: number,
): Promise<ProbeResult> {
  const late = Promise.withResolvers<ProbeResult>();
  const timer = setTimeout(
    () => late.resolve({ ok: false, message: `command timed out: ${command.join(' ')}` }),
    timeoutMs,
  );
  const run = async (): Promise<ProbeResult> => {
    const { code, output } = await execIn(pid, command);
    return { ok: code === 0, message: output };
  };
  const result = await Promise.race([run(), late.promise]);
  clearTimeout(timer);
  return result;
}

/** Asks once. */
async function runProbe(probe: Probe, target: Target, scale: number): Promise<ProbeResult> {
  // A busy machine that runs hundreds of tests answers later than a cluster does.
  const timeoutMs = Math.max(1000, (probe.timeoutSeconds ?? 1) * 1000 * scale);
  const { httpGet, tcpSocket, exec } = probe;
  if (httpGet !== undefined) return httpProbe(httpGet, timeoutMs, target);
  if (tcpSocket !== undefined)
    return tcpProbe(portOf(tcpSocket.port, target.container), timeoutMs, target.address);
  if (exec?.command !== undefined) return execProbe(exec.command, timeoutMs, target.pid);
  return { ok: true, message: '' };
}

/** Asks again and again; `verdict` hears each change, `failed` each failure. */
export function followProbe(
  probe: Probe,
  target: Target,
  scale: number,
  { verdict, failed }: { verdict(ok: boolean): void; failed(message: string): void },
): { stop(): void } {
  let stopped = false;
  let timer: NodeJS.Timeout | undefined;
  let successes = 0;
  let failures = 0;
  let last: boolean | undefined;

  function judge(ok: boolean): void {
    successes = ok ? successes + 1 : 0;
    failures = ok ? 0 : failures + 1;
    const enough = ok
      ? successes >= (probe.successThreshold ?? 1)
      : failures >= (probe.failureThreshold ?? 3);
    if (!enough || last === ok) return;
    last = ok;
    verdict(ok);
  }

  async function look(): Promise<void> {
    const { ok, message } = await runProbe(probe, target, scale);
    if (stopped) return;
    if (!ok) failed(message);
    judge(ok);
    next((probe.periodSeconds ?? 10) * 1000);
  }

  function next(ms: number): void {
    if (!stopped) timer = setTimeout(() => void look(), ms * scale);
  }

  next((probe.initialDelaySeconds ?? 0) * 1000);
  return {
    stop() {
      stopped = true;
      clearTimeout(timer);
    },
  };
}
