import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { RequestListener } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { setImmediate as turn } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { ClientPool } from '../../src/runtimes/client-pool.ts';
import { until } from '../support/until.ts';

/** A server that tells how many connections it has seen and has. */
async function serve(listener: RequestListener) {
  const open = new Set<Socket>();
  let seen = 0;
  const server = createServer(listener).listen(0, '127.0.0.1');
  server.on('connection', (socket) => {
    seen += 1;
    open.add(socket);
    socket.on('close', () => open.delete(socket));
  });
  await once(server, 'listening');
  const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const pool = new ClientPool(origin, { keepAliveTimeout: 400, keepAliveMaxTimeout: 400 });
  return {
    pool,
    open,
    seen: () => seen,
    ask: async (path: string) => {
      const { body } = await pool.request({ origin, path, method: 'GET' });
      return Buffer.from(await body.arrayBuffer());
    },
    async [Symbol.asyncDispose]() {
      await pool.destroy();
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

test('answers that come in pieces at the same time are never mixed up', async () => {
  const answers = Array.from({ length: 120 }, (_, n) => randomBytes(n * 2_503));
  await using engine = await serve((req, res) => {
    const whole = answers[Number(req.url?.slice(1))] ?? Buffer.alloc(0);
    let at = 0;
    function next(): void {
      const piece = whole.subarray(at, at + 9_001);
      at += piece.length;
      if (at < whole.length) res.write(piece, () => setImmediate(next));
      else res.end(piece);
    }
    next();
  });
  const got = await Promise.all(answers.map(async (_, n) => engine.ask(`/${n}`)));
  const digest = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');
  expect(got.map(digest)).toEqual(answers.map(digest));
});

test('a connection is used again, and there are as many as requests at the same time', async () => {
  let held: (() => void)[] = [];
  await using engine = await serve((req, res) => {
    if (req.url === '/held') held.push(() => res.end());
    else res.end('ok');
  });
  for (let n = 0; n < 20; n += 1) await engine.ask('/');
  // The next request may begin before the last connection is known to be free.
  expect(engine.seen()).toBeLessThanOrEqual(2);
  const asked = Array.from({ length: 10 }, async () => engine.ask('/held'));
  await until(() => held.length === 10);
  expect(engine.open.size).toBeGreaterThanOrEqual(10);
  for (const answer of held.splice(0)) answer();
  await Promise.all(asked);
  // A connection is free a turn after its answer.
  await turn();
  await turn();
  const before = engine.seen();
  held = [];
  const again = Array.from({ length: 10 }, async () => engine.ask('/held'));
  await until(() => held.length === 10);
  expect(engine.seen()).toBe(before);
  for (const answer of held) answer();
  await Promise.all(again);
});

test('idle connections are closed, and asking goes on after that', async () => {
  await using engine = await serve((_req, res) => res.end('ok'));
  await engine.ask('/');
  await until(() => engine.open.size === 0, { timeoutMs: 5_000 });
  expect((await engine.ask('/')).toString()).toBe('ok');
});

test('a connection that breaks fails its request, not the next one', async () => {
  await using engine = await serve((req, res) => {
    if (req.url === '/broken') res.destroy();
    else res.end('ok');
  });
  for (let n = 0; n < 5; n += 1) {
    await expect(engine.ask('/broken')).rejects.toThrow('other side closed');
    expect((await engine.ask('/')).toString()).toBe('ok');
  }
});

test('after its end whatever is in flight and whatever comes later fails', async () => {
  let arrived = 0;
  await using engine = await serve(() => (arrived += 1));
  const asked = engine.ask('/').then(
    () => 'answered',
    () => 'failed',
  );
  await until(() => arrived === 1);
  await Promise.all([engine.pool.destroy(), engine.pool.destroy()]);
  expect(await asked).toBe('failed');
  await expect(engine.ask('/')).rejects.toThrow('destroyed');
  await until(() => engine.open.size === 0);
});
