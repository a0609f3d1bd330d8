import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { request } from 'undici';
import { createKeyPair } from '../../src/runtimes/ssh/keys.ts';
import { createTunnel } from '../../src/runtimes/ssh/tunnel.ts';
import type { Tunnel, TunnelOptions } from '../../src/runtimes/ssh/tunnel.ts';
import { startSshMachine } from '../support/ssh-machine.ts';
import type { SshMachine } from '../support/ssh-machine.ts';
import { until } from '../support/until.ts';

const PORT = 8000;
/** Answers `?bytes=` after `?ms=`, with the length of what it was sent; `/alive` tells how many it answers now. */
const SERVER = `
let now = 0;
require('node:http').createServer((request, response) => {
  const url = new URL(request.url, 'http://engine');
  if (url.pathname === '/alive') return response.end(String(now));
  now += 1;
  let length = 0;
  request.on('data', (chunk) => (length += chunk.length));
  request.on('end', () => setTimeout(() => {
    response.setHeader('x-length', length);
    response.end(Buffer.alloc(Number(url.searchParams.get('bytes') ?? 2), 97));
  }, Number(url.searchParams.get('ms') ?? 0)));
  response.on('close', () => (now -= 1));
}).listen(${PORT}, '127.0.0.1');`;

/** Starts the server on the machine's own loopback, where only a tunnel gets. */
async function serve({ machine }: SshMachine): Promise<void> {
  const run = `. /sim/env; setsid "$SIM_NODE" -e '${SERVER.replaceAll("'", `'\\''`)}' </dev/null >/dev/null 2>&1 &`;
  await machine.exec(run);
  const listens = `. /sim/env; "$SIM_NODE" -e "fetch('http://127.0.0.1:${PORT}/').catch(() => process.exit(1))"`;
  await until(async () => (await machine.exec(listens)).code === 0, { what: 'the server' });
}

function targetOf(to: SshMachine) {
  const { user } = to.options();
  return { host: to.machine.address, port: 22, user, hostKeys: [to.hostKey.publicKey] };
}

function tunnelTo(to: SshMachine, more: Partial<TunnelOptions> = {}): Tunnel & AsyncDisposable {
  const { privateKey } = to.options();
  const tunnel = createTunnel({
    privateKey,
    target: async () => targetOf(to),
    port: PORT,
    connectTimeout: 5_000,
    ...more,
  });
  return Object.assign(tunnel, { [Symbol.asyncDispose]: async () => tunnel.close() });
}

async function ask(tunnel: Tunnel, query = '', body: Buffer | null = null) {
  const answer = await request(`${tunnel.origin}/?${query}`, {
    method: body === null ? 'GET' : 'POST',
    body,
    dispatcher: tunnel.dispatcher,
    signal: AbortSignal.timeout(20_000),
  });
  const text = await answer.body.text();
  return { status: answer.statusCode, length: text.length, sent: answer.headers['x-length'] };
}

/** What became of each: the status of an answer, or the code of an error. */
async function outcomes(asked: Promise<{ status: number }>[]): Promise<Record<string, number>> {
  const counts: Record<string, number> = {};
  for (const one of await Promise.allSettled(asked)) {
    const key = one.status === 'fulfilled' ? String(one.value.status) : String(one.reason.code);
    counts[key] = (counts[key] ?? 0) + 1;
  }
  return counts;
}

const times = <T>(count: number, make: (at: number) => T): T[] =>
  Array.from({ length: count }, (_, at) => make(at));

async function sshConnections({ machine }: SshMachine): Promise<number> {
  const { stdout } = await machine.exec('ss -Hnt state established sport = :22 | wc -l');
  return Number(stdout);
}

let shared: SshMachine;
beforeAll(async () => {
  // One session at most: ports that are forwarded do not count as such.
  shared = await startSshMachine('container', { sshd: '-o MaxSessions=1' });
  await serve(shared);
});
afterAll(async () => shared[Symbol.asyncDispose]());

describe('a tunnel', () => {
  test('opens nothing before it is asked, then carries 200 requests at once over one connection', async () => {
    const before = await sshConnections(shared);
    await using tunnel = tunnelTo(shared);
    expect(await sshConnections(shared)).toBe(before);
    const slow = times(200, async () => ask(tunnel, 'ms=400'));
    await until(async () => (await alive(tunnel)) === 200, { what: '200 at once' });
    expect(await outcomes(slow)).toEqual({ 200: 200 });
    expect(await sshConnections(shared)).toBe(before + 1);
    expect(tunnel).toMatchObject({
      origin: 'http://127.0.0.1:8000',
      pathPrefix: '',
      problem: null,
    });
  });

  test('carries much both ways, whole', async () => {
    await using tunnel = tunnelTo(shared);
    const body = Buffer.alloc(9_000_000, 'x');
    const both = times(6, async () => ask(tunnel, 'bytes=8000000', body));
    for (const answer of await Promise.all(both)) {
      expect(answer).toEqual({ status: 200, length: 8_000_000, sent: '9000000' });
    }
  });

  test('takes a further connection for what is more than one may have', async () => {
    await using tunnel = tunnelTo(shared);
    const before = await sshConnections(shared);
    const slow = times(620, async () => ask(tunnel, 'ms=1500'));
    expect(await outcomes(slow)).toEqual({ 200: 620 });
    expect(await sshConnections(shared)).toBe(before + 2);
  });

  test('says that nobody listens as a socket would', async () => {
    await using tunnel = tunnelTo(shared, { port: 8001 });
    await expect(ask(tunnel)).rejects.toMatchObject({ code: 'ECONNREFUSED' });
    expect(tunnel.problem).toBeNull();
  });

  test('lets go of a request that is given up, and of the channel with it', async () => {
    await using tunnel = tunnelTo(shared);
    const stop = new AbortController();
    const given = request(`${tunnel.origin}/?ms=60000`, {
      dispatcher: tunnel.dispatcher,
      signal: stop.signal,
    });
    await until(async () => (await alive(tunnel)) === 1);
    stop.abort();
    await expect(given).rejects.toMatchObject({ name: 'AbortError' });
    await until(async () => (await alive(tunnel)) === 0, { what: 'the end of the channel' });
  });

  test('is closed with all that goes through it, twice', async () => {
    const before = await sshConnections(shared);
    const tunnel = tunnelTo(shared);
    const slow = outcomes(times(20, async () => ask(tunnel, 'ms=60000')));
    await until(async () => (await alive(tunnel)) === 20);
    await tunnel.close();
    await tunnel.close();
    const counts = await slow;
    expect(counts['200']).toBeUndefined();
    await expect(ask(tunnel)).rejects.toThrow(/destroyed/);
    await until(async () => (await sshConnections(shared)) === before, { what: 'no connection' });
  });
});

async function alive(tunnel: Tunnel): Promise<number> {
  const { body } = await request(`${tunnel.origin}/alive`, { dispatcher: tunnel.dispatcher });
  return Number(await body.text());
}

describe('when the connection breaks', () => {
  test('what is in flight fails as on a broken one, and what comes after goes over the next', async () => {
    await using to = await startSshMachine();
    await serve(to);
    await using tunnel = tunnelTo(to);
    const slow = outcomes(times(50, async () => ask(tunnel, 'ms=60000')));
    await until(async () => (await alive(tunnel)) === 50, { what: '50 in flight' });
    await to.machine.cutSsh();
    expect(await slow).toEqual({ ECONNRESET: 50 });
    const began = performance.now();
    expect(await outcomes(times(50, async () => ask(tunnel)))).toEqual({ 200: 50 });
    expect(performance.now() - began).toBeLessThan(3_000);
    // Again and again, with requests that are asked until they are answered.
    let answered = 0;
    const patient = times(20, async () => {
      while (answered < 200) {
        const done = await ask(tunnel, 'ms=20').catch((error: unknown) => error);
        if (!(done instanceof Error)) answered += 1;
      }
    });
    for (let cuts = 0; cuts < 3; cuts += 1) {
      const seen = answered;
      await until(() => answered > seen + 20 || answered >= 200);
      await to.machine.cutSsh();
    }
    await Promise.all(patient);
    expect(answered).toBeGreaterThanOrEqual(200);
  });

  test('a machine that falls silent costs what is in flight, and is found again', async () => {
    await using to = await startSshMachine();
    await serve(to);
    await using tunnel = tunnelTo(to, {
      keepaliveMs: 100,
      handshakeMs: 500,
      connectTimeout: 1_000,
    });
    const slow = outcomes(times(5, async () => ask(tunnel, 'ms=60000')));
    await until(async () => (await alive(tunnel)) === 5);
    await to.machine.freeze(true);
    expect(await slow).toEqual({ ECONNRESET: 5 });
    await expect(ask(tunnel)).rejects.toMatchObject({ code: 'UND_ERR_CONNECT_TIMEOUT' });
    expect(tunnel.problem).toMatchObject({ code: 'ssh.unreachable' });
    await to.machine.freeze(false);
    await until(async () =>
      ask(tunnel).then(
        ({ status }) => status === 200,
        () => false,
      ),
    );
    expect(tunnel.problem).toBeNull();
  });

  test('a machine with another host key gets no request, and says so at once', async () => {
    await using to = await startSshMachine();
    await serve(to);
    await using tunnel = tunnelTo(to);
    expect(await ask(tunnel)).toMatchObject({ status: 200 });
    await to.machine.changeHostKey();
    await until(async () => (await to.machine.exec('ss -Hlnt sport = :22')).stdout !== '');
    await to.machine.cutSsh();
    const began = performance.now();
    await until(async () =>
      ask(tunnel).then(
        () => false,
        (error: unknown) => (error as { code?: string }).code === 'ssh.host_key_changed',
      ),
    );
    expect(performance.now() - began).toBeLessThan(4_000);
    expect(tunnel.problem).toMatchObject({ kind: 'Permanent', code: 'ssh.host_key_changed' });
  });

  test('a machine with another address is asked for where it is', async () => {
    await using to = await startSshMachine();
    await serve(to);
    let asked = 0;
    await using tunnel = tunnelTo(to, {
      keepaliveMs: 100,
      async target() {
        asked += 1;
        return targetOf(to);
      },
    });
    expect(await ask(tunnel)).toMatchObject({ status: 200 });
    expect(asked).toBe(1);
    const old = to.machine.address;
    expect(await to.machine.changeAddress()).not.toBe(old);
    await until(async () =>
      ask(tunnel).then(
        ({ status }) => status === 200,
        () => false,
      ),
    );
    expect(asked).toBeGreaterThan(1);
  });

  test('a machine that is gone is told at once, by whoever knows', async () => {
    const { privateKey } = createKeyPair();
    const gone = Object.assign(new Error('no such machine'), { code: 'lease.gone' });
    let tries = 0;
    await using tunnel = tunnelTo(shared, {
      privateKey,
      connectTimeout: 700,
      async target() {
        tries += 1;
        throw gone;
      },
    });
    // What is not ours may pass: it is tried again, with pauses that grow, as long as somebody waits.
    await expect(ask(tunnel)).rejects.toMatchObject({ code: 'UND_ERR_CONNECT_TIMEOUT' });
    expect(tunnel.problem).toBe(gone);
    expect(tries).toBeGreaterThan(1);
    expect(tries).toBeLessThan(8);
  });

  test('a wrong key and a machine that forwards nothing fail with their reason', async () => {
    const wrong = createKeyPair().privateKey;
    await using locked = tunnelTo(shared, { privateKey: wrong, connectTimeout: 300 });
    await expect(ask(locked)).rejects.toMatchObject({ code: 'UND_ERR_CONNECT_TIMEOUT' });
    expect(locked.problem).toMatchObject({ code: 'ssh.auth' });
    await using closed = await startSshMachine('container', { sshd: '-o AllowTcpForwarding=no' });
    await using tunnel = tunnelTo(closed);
    await expect(ask(tunnel)).rejects.toMatchObject({ code: 'ssh.forwarding' });
  });
});
