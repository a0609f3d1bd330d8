import { once } from 'node:events';
import { createServer } from 'node:http';
import type { ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Endpoint, UpstreamStream } from '../../src/domain/job.ts';
import { clock } from '../../src/main/clock.ts';
import type { FaultInput } from '../simulators/vllm/simulator.ts';
import { startVllm } from '../simulators/vllm/simulator.ts';
import { chatLines, openDispatchWorld } from '../support/dispatch-world.ts';
import type { DispatchWorld, DispatchWorldOptions } from '../support/dispatch-world.ts';

/** A fault that only counts how many requests ask for a stream. */
const COUNT_STREAMS: FaultInput = { kind: 'proxy_cut', delay_ms: 60_000, match: '"stream":true' };

interface Written {
  custom_id: string;
  response: { status_code: number; body: Record<string, unknown> } | null;
  error: { code: string; message: string } | null;
}

async function written({ ledger }: DispatchWorld): Promise<Written[]> {
  const answers = [...(await ledger.answers())].toSorted(([a], [b]) => a - b);
  // The code under test wrote the lines.
  return answers.map(([, { bytes }]) => JSON.parse(bytes.toString()) as Written);
}

function linesOf(endpoint: Endpoint, bodies: readonly object[]): string {
  const lines = bodies.map((body, n) =>
    JSON.stringify({ custom_id: `line-${n}`, method: 'POST', url: endpoint, body }),
  );
  return `${lines.join('\n')}\n`;
}

/** Runs an input, and answers with its lines. */
async function run(mode: UpstreamStream, options: DispatchWorldOptions) {
  const attempt = { upstreamStream: mode };
  await using world = await openDispatchWorld({ sleepScale: 0.01, ...options, attempt });
  expect(await world.run()).toBe('done');
  expect(world.dispatcher.load).toMatchObject({ inFlight: 0, budgetUsed: 0 });
  return { lines: await written(world), retries: world.retries, downs: world.downs };
}

/** Answers without what differs from one request to the next. */
function plain(lines: readonly Written[]): unknown {
  return lines.map(({ custom_id: customId, response, error }) => {
    const text = JSON.stringify(response?.body ?? null)
      .replaceAll(/"id":"[^"]*"/g, '"id":""')
      .replaceAll(/"created(_at)?":\d+/g, '"created":0');
    return { customId, status: response?.status_code, body: JSON.parse(text) as unknown, error };
  });
}

const words = fc.string({ unit: 'grapheme', minLength: 1, maxLength: 60 });
const limit = fc.integer({ min: 1, max: 40 });
const optional = { requiredKeys: [] };
const MODEL = fc.constant('sim-model');

const BODIES: Partial<Record<Endpoint, fc.Arbitrary<object>>> = {
  '/v1/chat/completions': fc
    .tuple(
      words,
      fc.boolean(),
      fc.record(
        {
          n: fc.integer({ min: 1, max: 4 }),
          max_tokens: limit,
          temperature: fc.double({ min: 0, max: 2, noNaN: true }),
          tool_choice: fc.constantFrom('none', 'auto', 'required'),
        },
        optional,
      ),
    )
    .map(([text, isEcho, more]) => {
      const messages = [{ role: 'user', content: isEcho ? `ECHO: ${text}` : text }];
      return { model: 'sim-model', messages, ...more };
    }),
  '/v1/completions': fc.record(
    {
      model: MODEL,
      prompt: fc.oneof(words, fc.array(words, { minLength: 1, maxLength: 3 })),
      n: fc.integer({ min: 1, max: 3 }),
      max_tokens: limit,
      echo: fc.boolean(),
    },
    { requiredKeys: ['model', 'prompt'] },
  ),
  '/v1/responses': fc.record(
    { model: MODEL, input: words, max_output_tokens: limit, instructions: words },
    { requiredKeys: ['model', 'input'] },
  ),
};

describe('streamed or not, the output file gets the same answers', () => {
  const ENDPOINTS = Object.keys(BODIES) as Endpoint[];
  test.for(ENDPOINTS)('%s', async (endpoint) => {
    const bodies = fc.sample(BODIES[endpoint] ?? fc.constant({}), { seed: 7, numRuns: 150 });
    await using engine = await startVllm({ profile: 'small', config: { early_stop: 0.5 } });
    await engine.setFaults([COUNT_STREAMS]);
    const input = linesOf(endpoint, bodies);
    const options = { engines: [engine.url], endpoint, input };
    const whole = await run('never', options);
    expect((await engine.faults())[0]?.hits).toBe(0);
    const streamed = await run('always', options);
    expect((await engine.faults())[0]?.hits).toBe(bodies.length);
    expect(whole.lines.every(({ response }) => response?.status_code === 200)).toBe(true);
    expect(plain(streamed.lines)).toEqual(plain(whole.lines));
    expect([...whole.retries, ...streamed.retries]).toEqual([]);
  });

  test('what the engine refuses is refused in the same words', async () => {
    await using engine = await startVllm({ profile: 'small' });
    const messages = [{ role: 'user', content: 'x' }];
    const bodies = [
      { model: 'sim-model', messages, max_tokens: -1 },
      { model: 'sim-model', messages, n: 1_000 },
    ];
    const input = linesOf('/v1/chat/completions', bodies);
    const options = { engines: [engine.url], input };
    const whole = await run('never', options);
    expect(whole.lines.map(({ response }) => response?.status_code)).toEqual([400, 400]);
    expect(plain((await run('always', options)).lines)).toEqual(plain(whole.lines));
  });
});

describe('a proxy that gives up after 300 ms without a byte', () => {
  const CUT: FaultInput = { kind: 'proxy_cut', delay_ms: 300 };
  // An answer takes 15 steps of 40 ms.
  const config = { decode_step_ms: 40 };
  const shape = { input: chatLines(8, { max_tokens: 15 }), maxConcurrency: 4 };

  test('auto: lines in flight are cut, asked again as streams, and the next ones are streams at once', async () => {
    await using engine = await startVllm({ profile: 'small', config });
    const options = { ...shape, engines: [engine.url] };
    const clean = await run('never', options);
    await engine.setFaults([CUT]);
    const { lines, retries, downs } = await run('auto', options);
    expect(plain(lines)).toEqual(plain(clean.lines));
    expect(retries).toEqual(Array.from({ length: 4 }, () => 'http_524'));
    expect(downs).toEqual([]);
  });

  test('auto: without a cut nothing is streamed', async () => {
    await using engine = await startVllm({ profile: 'small', config });
    await engine.setFaults([COUNT_STREAMS]);
    await run('auto', { ...shape, engines: [engine.url] });
    expect((await engine.faults())[0]?.hits).toBe(0);
  });

  test('never: each attempt is cut, and the line says so in the end', async () => {
    await using engine = await startVllm({ profile: 'small', config });
    await engine.setFaults([CUT]);
    const retry = { maxRetries: 1, baseMs: 1, capMs: 1 };
    const { lines, retries } = await run('never', { ...shape, engines: [engine.url], retry });
    expect(lines.map(({ response }) => response?.status_code)).toEqual(
      Array.from({ length: 8 }, () => 524),
    );
    expect(retries).toHaveLength(8);
  });

  test('always: no line is cut at all', async () => {
    await using engine = await startVllm({ profile: 'small', config });
    await engine.setFaults([CUT]);
    const { lines, retries } = await run('always', { ...shape, engines: [engine.url] });
    expect(new Set(lines.map(({ response }) => response?.status_code))).toEqual(new Set([200]));
    expect(retries).toEqual([]);
  });
});

test('a proxy that just hangs up after a minute without a byte is no sign of a dead engine', async () => {
  // A clock a hundred times as fast as it is: each of its ticks takes a ms.
  const begun = Date.now();
  const fast = {
    ...clock,
    now: () => begun + (Date.now() - begun) * 100,
    after: (ms: number, task: () => void) => clock.after(ms / 100, task),
  };
  const choices = [{ index: 0, delta: { content: 'a' }, finish_reason: 'stop' }];
  await using engine = await serve((res, body) => {
    if (body.includes('"stream":true')) res.end(events({ choices }, '[DONE]'));
    else setTimeout(() => res.destroy(), 3_000);
  });
  const { lines, retries, downs } = await run('auto', {
    engines: [engine.url],
    input: chatLines(8),
    timeouts: { firstByte: 86_400_000, answer: 86_400_000 },
    deps: { clock: fast },
  });
  expect(new Set(lines.map(({ response }) => response?.status_code))).toEqual(new Set([200]));
  expect(retries).toEqual(Array.from({ length: 8 }, () => 'engine_unreachable'));
  expect(downs).toEqual([]);
});

describe('streams that break', () => {
  test.for([
    ['truncate', 'engine_unreachable'],
    ['reset', 'engine_unreachable'],
    ['hang_body', 'engine_timeout'],
  ] as const)('%s in the middle: asked again', async ([kind, reason]) => {
    await using engine = await startVllm({ profile: 'small' });
    await engine.setFaults([{ kind, at: 'body', count: 2 }]);
    const input = chatLines(10);
    const options = { engines: [engine.url], input, requestTimeout: 400 };
    const { lines, retries } = await run('always', options);
    expect(new Set(lines.map(({ response }) => response?.status_code))).toEqual(new Set([200]));
    expect(retries).toEqual([reason, reason]);
  });

  test('an error in mid-stream is the status that it says', async () => {
    const error = { message: 'it is full', type: 'X', param: null, code: 400 };
    const choices = [{ index: 0, delta: { content: 'a' }, finish_reason: null }];
    await using engine = await serve((res) => res.end(events({ choices }, { error }, '[DONE]')));
    const { lines } = await run('always', { engines: [engine.url], input: chatLines(1) });
    expect(lines[0]).toMatchObject({ response: { status_code: 400, body: { error } } });
  });

  test('whoever hangs up after the end has answered', async () => {
    const choices = [{ index: 0, delta: { content: 'a' }, finish_reason: 'stop' }];
    await using engine = await serve((res) => {
      res.write(events({ choices }, '[DONE]'), () => res.destroy());
    });
    const { lines, retries } = await run('always', { engines: [engine.url], input: chatLines(1) });
    expect(lines[0]).toMatchObject({ response: { status_code: 200 } });
    expect(retries).toEqual([]);
  });

  test('an engine that answers whole all the same is taken at its word', async () => {
    await using engine = await serve((res) => {
      res.setHeader('content-type', 'application/json').end('{"whole":true}');
    });
    const { lines } = await run('always', { engines: [engine.url], input: chatLines(1) });
    expect(lines[0]).toMatchObject({ response: { status_code: 200, body: { whole: true } } });
  });

  test('MAX_RESPONSE_BYTES is for the answer, not for the events around it', async () => {
    await using engine = await startVllm({ profile: 'small', config: { decode_step_ms: 0.1 } });
    const long = chatLines(1, { max_tokens: 2_000 }).replace('line-0', 'line-long');
    const { lines } = await run('always', {
      engines: [engine.url],
      input: chatLines(1, { max_tokens: 500 }) + long,
      deps: { maxResponseBytes: 10_000 },
    });
    expect(lines[0]?.response?.status_code).toBe(200);
    expect(lines[1]?.error?.code).toBe('response_too_large');
  });
});

function events(...list: (object | string)[]): string {
  const texts = list.map((each) => (typeof each === 'string' ? each : JSON.stringify(each)));
  return texts.map((text) => `data: ${text}\r\n\r\n`).join('');
}

/** An engine that answers each request by hand, as a stream unless it says otherwise. */
async function serve(answer: (res: ServerResponse, body: string) => void) {
  const server = createServer((req, res) => {
    let body = '';
    req.setEncoding('utf8').on('data', (chunk: string) => (body += chunk));
    req.on('end', () => {
      res.setHeader('content-type', 'text/event-stream');
      answer(res, body);
    });
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
