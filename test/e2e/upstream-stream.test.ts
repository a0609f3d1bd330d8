import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { connect } from 'node:net';
import type { AddressInfo, Socket } from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { FaultInput } from '../simulators/vllm/simulator.ts';
import { expectExact, makeInput, untilFinal } from '../support/batch.ts';
import type { Input } from '../support/batch.ts';
import { requireNothingLeft } from '../support/server.ts';
import { openSite, submitTo } from '../support/site.ts';
import type { Site } from '../support/site.ts';

/** A server whose engines have little time. */
let site: Site;
beforeAll(async () => {
  site = await openSite({
    flags: ['--profile', 'small'],
    env: {
      CONNECT_TIMEOUT: '300ms',
      REQUEST_TIMEOUT: '2s',
      BYTE_TIMEOUT: '1s',
      ANSWER_TIMEOUT: '3s',
    },
  });
});
afterAll(async () => {
  await site[Symbol.asyncDispose]();
  requireNothingLeft();
});

/** A fault that only counts how many requests ask for a stream. */
const COUNT_STREAMS: FaultInput = { kind: 'proxy_cut', delay_ms: 60_000, match: '"stream":true' };
const ONCE = { retry_policy: { max_retries: 0 } };

async function run(engine: { url: string }, input: Input, client: Record<string, unknown>) {
  const batch = await untilFinal(site.url, await submitTo(site, engine, input, client), 60_000);
  expect(batch.status).toBe('completed');
  return expectExact(site.url, batch, input);
}

test('aibrix.client.upstream_stream: always streams, never does not, auto does once a proxy has cut a line', async () => {
  const { engine } = site;
  const streams = async () => (await engine.faults())[0]?.hits;

  await engine.setFaults([COUNT_STREAMS]);
  const always = await run(engine, makeInput(20, { name: 'a' }), { upstream_stream: 'always' });
  expect(always.output).toHaveLength(20);
  expect(always.output[0]?.response?.body.object).toBe('chat.completion');
  expect(await streams()).toBe(20);

  await engine.setFaults([COUNT_STREAMS]);
  expect((await run(engine, makeInput(20, { name: 'b' }), {})).output).toHaveLength(20);
  expect(await streams()).toBe(0);

  // Answers take 16 to 48 steps of 25 ms.
  await engine.setConfig({ decode_step_ms: 25 });
  await engine.setFaults([COUNT_STREAMS, { kind: 'proxy_cut', delay_ms: 250 }]);
  const slow = makeInput(8, { name: 'c' });
  const auto = await run(engine, slow, { max_concurrency: 4, adaptive_concurrency: false });
  expect(auto.output).toHaveLength(8);
  expect(await streams()).toBe(8);

  await engine.setFaults([COUNT_STREAMS, { kind: 'proxy_cut', delay_ms: 250 }]);
  const other = makeInput(4, { name: 'd' });
  const never = await run(engine, other, { upstream_stream: 'never', ...ONCE });
  expect(never.error.map(({ response }) => response?.status_code)).toEqual([524, 524, 524, 524]);
  expect(await streams()).toBe(0);
});

type HalfMode = 'silent' | 'half' | 'drip';

/** An engine that sends half of each answer: at once, or drop by drop; or none of it. */
async function startHalf(mode: HalfMode) {
  const server = createServer((req, res) => {
    req.resume();
    if (req.url === '/health') res.end();
    else if (req.url === '/v1/models') res.end('{"data":[{"id":"sim-model"}]}');
    else if (mode !== 'silent') {
      res.writeHead(200, { 'content-type': 'application/json' }).write('{');
      const drops = mode === 'drip' ? setInterval(() => res.write(' '), 100) : undefined;
      res.on('close', () => clearInterval(drops));
    }
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

test('REQUEST_TIMEOUT, BYTE_TIMEOUT, ANSWER_TIMEOUT and aibrix.client.request_timeout_seconds end an attempt, and say so', async () => {
  async function errorOf(mode: HalfMode, client: Record<string, unknown>) {
    await using engine = await startHalf(mode);
    const name = `${mode}${Object.keys(client).length}`;
    const { error } = await run(engine, makeInput(1, { name }), { ...client, ...ONCE });
    return error[0]?.error;
  }
  const said = await Promise.all([
    errorOf('silent', {}),
    errorOf('half', {}),
    errorOf('drip', {}),
    errorOf('silent', { request_timeout_seconds: 1 }),
  ]);
  expect(said).toEqual(
    [
      'The engine began no answer within 2 s (REQUEST_TIMEOUT).',
      'The engine fell silent for 1 s in the middle of its answer (BYTE_TIMEOUT).',
      'The engine did not finish its answer within 3 s (ANSWER_TIMEOUT).',
      'The engine did not finish its answer within 1 s (request_timeout_seconds).',
    ].map((message) => ({ code: 'engine_timeout', message })),
  );
});

/** Stands still as soon as it is asked a line; whoever wants a connection then waits in a queue that is short. */
const SLEEPER = `
  const server = require('node:http').createServer((req, res) => {
    if (req.method === 'GET') res.end('{"data":[{"id":"sim-model"}]}');
    else process.stdout.write('asked', () => process.kill(process.pid, 'SIGSTOP'));
  });
  server.listen({ port: 0, host: '127.0.0.1', backlog: 1 }, () => {
    process.stdout.write(String(server.address().port));
  });
`;

test('CONNECT_TIMEOUT ends an attempt at an engine that accepts no connection, and says so', async () => {
  const engine = spawn(process.execPath, ['-e', SLEEPER], { stdio: ['ignore', 'pipe', 'inherit'] });
  const fillers: Socket[] = [];
  try {
    const [port] = (await once(engine.stdout, 'data')) as [Buffer];
    const sleeper = { url: `http://127.0.0.1:${port.toString()}` };
    const client = { max_concurrency: 1, adaptive_concurrency: false, ...ONCE };
    const input = makeInput(3);
    const id = await submitTo(site, sleeper, input, client);
    await once(engine.stdout, 'data');
    for (let n = 0; n < 8; n += 1) {
      const filler = connect(Number(port.toString()), '127.0.0.1');
      filler.on('error', () => filler.destroy());
      fillers.push(filler);
    }
    const batch = await untilFinal(site.url, id, 60_000);
    const { error } = await expectExact(site.url, batch, input);
    expect(error.map((line) => line.error?.message)).toEqual([
      'The engine began no answer within 2 s (REQUEST_TIMEOUT).',
      'The engine accepted no connection within 0.3 s (CONNECT_TIMEOUT).',
      'The engine accepted no connection within 0.3 s (CONNECT_TIMEOUT).',
    ]);
  } finally {
    for (const filler of fillers) filler.destroy();
    engine.kill('SIGKILL');
    await once(engine, 'exit');
  }
});
