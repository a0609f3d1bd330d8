import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { ServerResponse } from 'node:http';
import { connect } from 'node:net';
import type { AddressInfo, Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { startVllm } from '../simulators/vllm/simulator.ts';
import { chatLines, openDispatchWorld } from '../support/dispatch-world.ts';
import type { DispatchWorld, DispatchWorldOptions } from '../support/dispatch-world.ts';

const ANSWER = '{"choices":[],"usage":{"prompt_tokens":1}}';

/** An engine that answers each request by hand. */
async function serve(answer: (res: ServerResponse) => Promise<void> | void) {
  const server = createServer((req, res) => {
    req.resume();
    if (req.url === '/health') res.end();
    else void answer(res);
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

/** Answers in pieces, one every so many ms. */
async function drip(res: ServerResponse, everyMs: number, pieces: number): Promise<void> {
  res.writeHead(200, { 'content-type': 'application/json', 'content-length': ANSWER.length });
  const size = Math.ceil(ANSWER.length / pieces);
  for (let at = 0; at < ANSWER.length && !res.destroyed; at += size) {
    res.write(ANSWER.slice(at, at + size));
    await sleep(everyMs);
  }
  res.end();
}

interface ErrorLine {
  error: { code: string; message: string } | null;
}

async function errorsOf({ ledger }: DispatchWorld): Promise<ErrorLine['error'][]> {
  const answers = [...(await ledger.answers()).values()];
  // The code under test wrote the lines.
  return answers.map(({ bytes }) => (JSON.parse(bytes.toString()) as ErrorLine).error);
}

/** Runs one line that is asked once, with limits that are far away unless given. */
async function runOnce(url: string, options: Partial<DispatchWorldOptions>) {
  const timeouts = { firstByte: 20_000, betweenBytes: 20_000, answer: 20_000, ...options.timeouts };
  const retry = { maxRetries: 0, baseMs: 1, capMs: 1 };
  const shape = { engines: [url], input: chatLines(1), retry };
  await using world = await openDispatchWorld({ ...shape, ...options, timeouts });
  const begun = performance.now();
  expect(await world.run()).toBe('done');
  const [error = null] = await errorsOf(world);
  expect(world.dispatcher.load).toMatchObject({ inFlight: 0, budgetUsed: 0 });
  return { error, ms: performance.now() - begun };
}

describe('an answer that does not come', () => {
  test('no headers', async () => {
    await using engine = await serve(() => undefined);
    const { error, ms } = await runOnce(engine.url, { timeouts: { firstByte: 300 } });
    expect(error).toEqual({
      code: 'engine_timeout',
      message: 'The engine began no answer within 0.3 s (REQUEST_TIMEOUT).',
    });
    expect(ms).toBeGreaterThan(295);
    expect(ms).toBeLessThan(1_500);
  });

  test('headers at once, and no byte behind them', async () => {
    await using engine = await serve((res) => res.writeHead(200).flushHeaders());
    const { error } = await runOnce(engine.url, { timeouts: { firstByte: 300 } });
    expect(error?.message).toBe('The engine began no answer within 0.3 s (REQUEST_TIMEOUT).');
  });

  test('half an answer, and no more', async () => {
    await using engine = await serve((res) => void res.writeHead(200).write('{"a":'));
    const { error } = await runOnce(engine.url, { timeouts: { betweenBytes: 300 } });
    expect(error).toEqual({
      code: 'engine_timeout',
      message: 'The engine fell silent for 0.3 s in the middle of its answer (BYTE_TIMEOUT).',
    });
  });

  test('an answer that drips without end', async () => {
    await using engine = await serve((res) => drip(res, 400, 40));
    const timeouts = { firstByte: 1_000, betweenBytes: 1_000, answer: 700 };
    const { error } = await runOnce(engine.url, { timeouts });
    expect(error).toEqual({
      code: 'engine_timeout',
      message: 'The engine did not finish its answer within 0.7 s (ANSWER_TIMEOUT).',
    });
  });

  test('a connection that is not accepted', async () => {
    await using deaf = await startDeaf();
    const { error, ms } = await runOnce(deaf.url, { timeouts: { connect: 300 } });
    expect(ms).toBeLessThan(5_000);
    expect(error).toEqual({
      code: 'engine_timeout',
      message: 'The engine accepted no connection within 0.3 s (CONNECT_TIMEOUT).',
    });
  });
});

test('an answer that comes slowly, byte after byte, is an answer', async () => {
  await using engine = await serve((res) => drip(res, 100, 8));
  const timeouts = { firstByte: 500, betweenBytes: 500, answer: 5_000 };
  const { error, ms } = await runOnce(engine.url, { timeouts });
  expect(error).toBeNull();
  expect(ms).toBeGreaterThan(550);
});

describe('a job that says how long an attempt may take', () => {
  test('waits longer for the first byte than the server would', async () => {
    await using engine = await serve((res) => void setTimeout(() => res.end(ANSWER), 600));
    const timeouts = { firstByte: 200, answer: 200 };
    const attempt = { answerTimeoutMs: 3_000 };
    expect((await runOnce(engine.url, { timeouts, attempt })).error).toBeNull();
    expect((await runOnce(engine.url, { timeouts })).error?.code).toBe('engine_timeout');
  });

  test('gives up sooner, and says so', async () => {
    await using engine = await serve((res) => drip(res, 200, 40));
    const { error } = await runOnce(engine.url, { attempt: { answerTimeoutMs: 500 } });
    expect(error?.message).toBe(
      'The engine did not finish its answer within 0.5 s (request_timeout_seconds).',
    );
  });

  test('does not make an engine that works look dead', async () => {
    await using engine = await startVllm({ profile: 'zero', config: { latency_ms: 1_500 } });
    await using world = await openDispatchWorld({
      engines: [engine.url],
      input: chatLines(20),
      retry: { maxRetries: 1, baseMs: 1, capMs: 1 },
      attempt: { answerTimeoutMs: 500 },
    });
    expect(await world.run()).toBe('done');
    expect((await errorsOf(world)).map((error) => error?.code)).toEqual(
      Array.from({ length: 20 }, () => 'engine_timeout'),
    );
    expect(world.downs).toEqual([]);
    expect((await engine.counts()).requests).toBe(40);
  });
});

/** A port behind which nobody accepts: the process stands still, and its queue of connections is full. */
async function startDeaf() {
  const code =
    "const s = require('node:net').createServer().listen({port: 0, host: '127.0.0.1', backlog: 1}, " +
    "() => { console.log(s.address().port); setTimeout(() => process.kill(process.pid, 'SIGSTOP'), 50); })";
  const child = spawn(process.execPath, ['-e', code], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  await sleep(200);
  const port = Number(line.toString());
  const fillers: Socket[] = [];
  for (let n = 0; n < 8; n += 1) {
    const filler = connect(port, '127.0.0.1');
    filler.on('error', () => filler.destroy());
    fillers.push(filler);
  }
  await sleep(100);
  return {
    url: `http://127.0.0.1:${port}`,
    async [Symbol.asyncDispose]() {
      for (const filler of fillers) filler.destroy();
      child.kill('SIGKILL');
      await once(child, 'exit');
    },
  };
}
