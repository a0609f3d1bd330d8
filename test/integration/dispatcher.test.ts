import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe, expect, test } from 'vitest';
import type { Part, PartResult } from '../../src/domain/segment.ts';
import type { FaultInput } from '../simulators/vllm/simulator.ts';
import { startVllm } from '../simulators/vllm/simulator.ts';
import { chatLines, openDispatchWorld, requestLine } from '../support/dispatch-world.ts';
import type { DispatchWorld } from '../support/dispatch-world.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

/** A finished line of an output or error file. */
interface Written {
  custom_id: string;
  response: { status_code: number; body: unknown } | null;
  error: { code: string; message: string } | null;
}

/** An engine without a model behind it: it answers at once, or after `latency`. */
async function startEngine(latency = 0, faults: FaultInput[] = []) {
  const config = { log: 'full', latency_ms: latency };
  const engine = await startVllm({ profile: 'zero', config });
  await engine.setFaults(faults);
  return engine;
}

async function written({ ledger }: DispatchWorld): Promise<(Written & { kind: string })[]> {
  const answers = [...(await ledger.answers())].toSorted(([a], [b]) => a - b);
  return answers.map(([, { kind, bytes }]) => ({
    kind,
    ...(JSON.parse(bytes.toString()) as Written), // the code under test wrote it
  }));
}

async function expectAllAnsweredOnce(world: DispatchWorld, count: number): Promise<void> {
  const lines = await written(world);
  expect(lines.map((line) => line.custom_id)).toEqual(
    Array.from({ length: count }, (_, n) => `line-${n}`),
  );
  expect(new Set(lines.map((line) => line.kind))).toEqual(new Set(['output']));
  expect(world.errors).toEqual([]);
}

describe('lines and answers', () => {
  test('every line of several shards is asked once and answered once', async () => {
    await using engine = await startEngine();
    await using world = await openDispatchWorld({
      engines: [engine.url],
      input: chatLines(500),
      cutLines: 120,
    });
    expect(await world.runAll()).toEqual(Array.from({ length: 5 }, () => 'done'));
    await expectAllAnsweredOnce(world, 500);
    expect(await engine.counts()).toMatchObject({ requests: 500, repeated: 0 });
    expect(world.dispatcher.load).toEqual({
      unsent: 0,
      inFlight: 0,
      uncommitted: 0,
      budgetUsed: 0,
    });
  });

  test('lines that are done already are not asked', async () => {
    await using engine = await startEngine();
    await using world = await openDispatchWorld({ engines: [engine.url], input: chatLines(20) });
    const shard = world.ledger.shards.get(0);
    shard?.done.fill(0b0000_1111, 0, 1);
    if (shard !== undefined) shard.left = 16;
    expect(await world.run()).toBe('done');
    const asked = (await written(world)).map((line) => line.custom_id);
    expect(asked).toEqual(Array.from({ length: 16 }, (_, n) => `line-${n + 4}`));
    expect((await engine.counts()).requests).toBe(16);
  });

  test('request and answer pass byte by byte', async () => {
    const body =
      '{"seed":9007199254740993, "model":"sim-model","model":"sim-model", "z":1,"a":2,' +
      '"temperature":1.0,"messages":[{"role":"user","content":"ECHO: \\u00e4\\ud83d\\ude00 😀 \\/ x"}]}';
    const answer =
      '{"choices":[],\r\n "big":9007199254740993,"e":"\\u00e4😀","b":1,"a":2,"a":3,"usage":null}';
    const bodies: Buffer[] = [];
    const server = createServer((req, res) => {
      const chunks: Buffer[] = [];
      req.on('data', (chunk: Buffer) => chunks.push(chunk));
      req.on('end', () => {
        bodies.push(Buffer.concat(chunks));
        res.setHeader('x-request-id', 'engine-1').end(answer);
      });
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    await using engine = await startVllm({ profile: 'zero', config: { keep_bodies: true } });
    const own = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const input = requestLine('\u{1F600} "q"', body);
    for (const url of [engine.url, own]) {
      await using world = await openDispatchWorld({ engines: [url], input });
      expect(await world.run()).toBe('done');
      const bytes = (await world.ledger.answers()).get(0)?.bytes.toString() ?? '';
      expect(bytes).toMatch(/^\{"id":"batch_req_test_0","custom_id":"😀 \\"q\\""/);
      if (url !== own) continue;
      expect(bytes).toContain(`"body":${answer.replace('\r\n', '  ')}},"error":null}\n`);
      expect(bytes).toContain('"request_id":"engine-1"');
    }
    server.close();
    const [entry] = await engine.requests({ bodies: true });
    expect(Buffer.from(entry?.body ?? '', 'base64').toString()).toBe(body);
    expect(bodies.map(String)).toEqual([body]);
  });

  test('a place at an engine is one line in flight, and all of them are used', async () => {
    await using engine = await startEngine(30);
    await using world = await openDispatchWorld({
      engines: [engine.url],
      input: chatLines(120),
      cutLines: 50,
      maxConcurrency: 16,
    });
    await world.runAll();
    expect(await engine.counts()).toMatchObject({ max_in_flight: 16, requests: 120 });
  });

  test('two engines share the lines, each up to its places', async () => {
    await using one = await startEngine(20);
    await using two = await startEngine(20);
    const engines = [one.url, two.url];
    await using world = await openDispatchWorld({
      engines,
      input: chatLines(200),
      maxConcurrency: 10,
    });
    await world.run();
    await expectAllAnsweredOnce(world, 200);
    const [a, b] = [await one.counts(), await two.counts()];
    expect(a.requests + b.requests).toBe(200);
    expect(Math.min(a.requests, b.requests)).toBeGreaterThan(70);
    expect([a.max_in_flight, b.max_in_flight]).toEqual([10, 10]);
  });

  test('lines go to an engine that joins while others wait', async () => {
    await using engine = await startEngine();
    await using world = await openDispatchWorld({ engines: [], input: chatLines(10) });
    const run = world.run();
    await until(() => world.dispatcher.load.unsent === 10);
    world.engines.push(engine.url);
    world.dispatcher.enginesChanged();
    expect(await run).toBe('done');
    await expectAllAnsweredOnce(world, 10);
  });

  test('a shard goes by the engines that the newest holder brings', async () => {
    await using engine = await startEngine();
    await using old = await startEngine();
    await using world = await openDispatchWorld({
      engines: [old.url],
      input: chatLines(20),
      cutLines: 10,
    });
    const put = Promise.withResolvers<undefined>();
    world.ledger.beforePut = () => put.promise;
    const first = world.run(0);
    await until(async () => (await old.counts()).requests === 10);
    const serving = [{ address: engine.url, models: null }];
    const job = { ...world.job, engines: () => serving };
    const signals = { stop: world.stop.signal, abort: world.abort.signal };
    const second = world.dispatcher.run(world.ledger.take(1), job, signals);
    await until(async () => (await engine.counts()).requests === 10, { timeoutMs: 3_000 });
    put.resolve(undefined);
    expect(await Promise.all([first, second])).toEqual(['done', 'done']);
  });
});

describe('what an engine may answer', () => {
  test('429 with Retry-After is asked again, and not before', async () => {
    const faults: FaultInput[] = [{ kind: 'status', status: 429, retry_after: 1, count: 3 }];
    await using engine = await startEngine(0, faults);
    await using world = await openDispatchWorld({ engines: [engine.url], input: chatLines(3) });
    expect(await world.run()).toBe('done');
    await expectAllAnsweredOnce(world, 3);
    const entries = await engine.requests();
    for (const refused of entries.filter((entry) => entry.status === 429)) {
      const again = entries.find(
        (entry) => entry.sha256 === refused.sha256 && entry.status === 200,
      );
      expect((again?.at ?? 0) - refused.at).toBeGreaterThanOrEqual(995);
    }
    expect(world.retries).toEqual(['http_429', 'http_429', 'http_429']);
  });

  test('headers that come twice do no harm', async () => {
    let asked = 0;
    const server = createServer((req, res) => {
      req.resume().on('end', () => {
        asked += 1;
        res.setHeader('x-request-id', ['first', 'second']).setHeader('retry-after', ['0', '9']);
        res.writeHead(asked === 1 ? 429 : 200).end('{}');
      });
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    await using world = await openDispatchWorld({ engines: [url], input: chatLines(1) });
    expect(await world.run()).toBe('done');
    expect((await world.ledger.answers()).get(0)?.bytes.toString()).toContain(
      '"request_id":"first"',
    );
    expect(asked).toBe(2);
    server.close();
  });

  test('what a retry mends is asked until it is answered', async () => {
    const faults: FaultInput[] = [
      { kind: 'status', status: 500, count: 3 },
      { kind: 'status', status: 503, count: 3 },
      { kind: 'reset', count: 1 },
      { kind: 'reset', at: 'body', count: 1 },
      { kind: 'truncate', count: 2 },
      { kind: 'content_type', count: 2 },
    ];
    await using engine = await startEngine(0, faults);
    await using world = await openDispatchWorld({
      engines: [engine.url],
      input: chatLines(40),
      sleepScale: 0.05,
    });
    expect(await world.run()).toBe('done');
    await expectAllAnsweredOnce(world, 40);
    expect((await engine.faults()).map((fault) => fault.hits)).toEqual([3, 3, 1, 1, 2, 2]);
    expect(world.retries.toSorted()).toEqual([
      ...Array.from({ length: 2 }, () => 'engine_unreachable'),
      ...Array.from({ length: 3 }, () => 'http_500'),
      ...Array.from({ length: 3 }, () => 'http_503'),
      ...Array.from({ length: 4 }, () => 'invalid_engine_response'),
    ]);
  });

  test.for(['hang_headers', 'hang_body'] as const)('a silent engine: %s', async (kind) => {
    await using engine = await startEngine(0, [{ kind, count: 2 }]);
    await using world = await openDispatchWorld({
      engines: [engine.url],
      input: chatLines(10),
      requestTimeout: 300,
      sleepScale: 0.1,
    });
    expect(await world.run()).toBe('done');
    await expectAllAnsweredOnce(world, 10);
    expect(world.retries).toEqual(['engine_timeout', 'engine_timeout']);
  });

  test('a refusal is the answer of its line, with status and body, and is asked once', async () => {
    await using engine = await startEngine();
    const input = chatLines(2) + requestLine('bad', { model: 'other', messages: [] });
    await using world = await openDispatchWorld({ engines: [engine.url], input });
    expect(await world.run()).toBe('done');
    const bad = (await written(world))[2];
    expect(bad).toMatchObject({ kind: 'error', custom_id: 'bad', error: null });
    expect(bad?.response?.status_code).toBe(404);
    expect(bad?.response?.body).toMatchObject({ error: { code: 404 } });
    expect((await engine.counts()).requests).toBe(3);
    expect(world.ledger.shards.get(0)).toMatchObject({ ok: 2, failed: 1, left: 0 });
  });

  test('pages of a proxy are asked again and then said to be no answer', async () => {
    await using engine = await startEngine(0, [{ kind: 'content_type', match: 'question 1' }]);
    await using world = await openDispatchWorld({
      engines: [engine.url],
      input: chatLines(3),
      sleepScale: 0.002,
    });
    expect(await world.run()).toBe('done');
    const [, line] = await written(world);
    expect(line).toMatchObject({ kind: 'error', response: null });
    expect(line?.error?.code).toBe('invalid_engine_response');
    expect(world.retries).toHaveLength(10);
  });

  test('a status that stays is answered as the engine says it, after all attempts', async () => {
    await using engine = await startEngine(0, [{ kind: 'status', status: 503 }]);
    await using world = await openDispatchWorld({
      engines: [engine.url],
      input: chatLines(1),
      sleepScale: 0.002,
    });
    expect(await world.run()).toBe('done');
    const [line] = await written(world);
    expect(line).toMatchObject({ kind: 'error', response: { status_code: 503 }, error: null });
    expect((await engine.counts()).requests).toBe(11);
  });

  test('an answer that is too long fails its line only, and is asked once', async () => {
    await using engine = await startEngine();
    const long = { model: 'sim-model', messages: [], max_tokens: 20_000 };
    const input = chatLines(2, { max_tokens: 5 }) + requestLine('long', long);
    await using world = await openDispatchWorld({
      engines: [engine.url],
      input,
      deps: { maxResponseBytes: 50_000 },
    });
    expect(await world.run()).toBe('done');
    const lines = await written(world);
    expect(lines.map(({ kind, error }) => [kind, error?.code])).toEqual([
      ['output', undefined],
      ['output', undefined],
      ['error', 'response_too_large'],
    ]);
    expect((await engine.counts()).requests).toBe(3);
    expect(world.dispatcher.load.budgetUsed).toBe(0);
  });
});

describe('stops', () => {
  test('abort closes the sockets to the engine and resolves', async () => {
    await using engine = await startEngine(60_000);
    await using world = await openDispatchWorld({
      engines: [engine.url],
      input: chatLines(40),
      maxConcurrency: 8,
      requestTimeout: 60_000,
    });
    const run = world.run();
    await until(async () => (await engine.counts()).in_flight === 8);
    const begun = performance.now();
    world.abort.abort(new Error('lock lost'));
    expect(await run).toBe('stopped');
    await until(async () => (await engine.counts()).by_outcome['aborted'] === 8);
    expect(performance.now() - begun).toBeLessThan(2_000);
    expect(world.ledger.commits).toEqual([]);
    expect(world.dispatcher.load).toEqual({
      unsent: 0,
      inFlight: 0,
      uncommitted: 0,
      budgetUsed: 0,
    });
  });

  test('stop sends nothing more, but lines in flight are answered and committed', async () => {
    await using engine = await startEngine(300);
    await using world = await openDispatchWorld({
      engines: [engine.url],
      input: chatLines(40),
      maxConcurrency: 8,
    });
    const run = world.run();
    await until(async () => (await engine.counts()).in_flight === 8);
    world.stop.abort(new Error('pause'));
    expect(await run).toBe('stopped');
    expect((await engine.counts()).by_outcome).toMatchObject({ answered: 8, aborted: 0 });
    expect((await world.ledger.answers()).size).toBe(8);
  });

  test('stop leaves lines open that wait for another attempt', async () => {
    await using engine = await startEngine(0, [{ kind: 'status', status: 503, retry_after: 60 }]);
    await using world = await openDispatchWorld({ engines: [engine.url], input: chatLines(5) });
    const running = world.run();
    await until(() => world.retries.length === 5, { what: 'five refusals' });
    world.stop.abort();
    expect(await running).toBe('stopped');
    expect(await world.ledger.answers()).toEqual(new Map());
  });

  test('what was answered before an abort is committed', async () => {
    await using engine = await startEngine(0, [{ kind: 'hang_headers', match: 'question 9' }]);
    await using world = await openDispatchWorld({ engines: [engine.url], input: chatLines(10) });
    const run = world.run();
    await until(async () => (await engine.counts()).by_outcome['answered'] === 9);
    await until(() => world.dispatcher.load.inFlight === 1);
    world.abort.abort(new Error('cancelled'));
    expect(await run).toBe('stopped');
    expect((await world.ledger.answers()).size).toBe(9);
  });
});

describe('storage and the record', () => {
  test('while storage refuses, nothing more is sent; then all is committed once', async () => {
    await using engine = await startEngine(5);
    await using world = await openDispatchWorld({
      engines: [engine.url],
      input: chatLines(100),
      maxConcurrency: 4,
      timerScale: 0.01,
      sleepScale: 0.1,
    });
    const asked: number[] = [];
    world.ledger.beforePut = async () => {
      if (asked.length >= 6) return;
      asked.push((await engine.counts()).requests);
      throw new Error('storage is away');
    };
    expect(await world.run()).toBe('done');
    // What was in flight at the first refusal may still be answered; nothing is sent after the second.
    const [, second = 0, ...later] = asked;
    expect(second).toBeGreaterThan(0);
    expect(second).toBeLessThan(100);
    expect(later).toEqual([second, second, second, second]);
    await expectAllAnsweredOnce(world, 100);
    expect(await engine.counts()).toMatchObject({ requests: 100, repeated: 0 });
    expect(new Set(world.ledger.puts.values())).toEqual(new Set([1]));
  });

  test('a commit that Redis forgot is committed again, and no line is asked twice', async () => {
    await using engine = await startEngine(0, [
      { kind: 'hang_headers', delay_ms: 400, match: 'question 1' },
    ]);
    await using world = await openDispatchWorld({
      engines: [engine.url],
      input: chatLines(20),
      timerScale: 0.02,
    });
    let forgotten = 0;
    world.ledger.afterCommit = (undo) => {
      if (forgotten > 0) return;
      forgotten = world.ledger.commits[0]?.parts[0]?.ok ?? 0;
      undo();
    };
    expect(await world.run()).toBe('done');
    expect(forgotten).toBeGreaterThan(0);
    await expectAllAnsweredOnce(world, 20);
    expect(world.ledger.shards.get(0)).toMatchObject({ ok: 20, failed: 0, left: 0 });
    expect(await engine.counts()).toMatchObject({ requests: 20, repeated: 0 });
  });

  test('recommitting leaves out what others answered meanwhile', async () => {
    await using engine = await startEngine(0, [
      { kind: 'hang_headers', delay_ms: 400, match: 'question 1' },
    ]);
    await using world = await openDispatchWorld({
      engines: [engine.url],
      input: chatLines(20),
      timerScale: 0.02,
    });
    let isFirst = true;
    world.ledger.afterCommit = (undo) => {
      if (!isFirst) return;
      isFirst = false;
      undo();
      const shard = world.ledger.shards.get(0);
      if (shard === undefined) throw new Error('it is gone');
      shard.done[0] = 1;
      shard.left -= 1;
    };
    expect(await world.run()).toBe('done');
    const last = world.ledger.commits.at(-1)?.parts[0];
    expect(last).toMatchObject({ ok: 8 });
    expect((last?.mask[0] ?? 0) & 1).toBe(0);
    expect(world.ledger.shards.get(0)?.left).toBe(0);
  });

  const REFUSALS: [string, PartResult, number][] = [
    ['stale: another process has the shard', { outcome: 'stale' }, 0],
    ['sealed: the job is being finished', { outcome: 'sealed' }, 0],
    ['overlap: our own bug, logged', { outcome: 'overlap', done: Buffer.of(255) }, 1],
  ];
  test.for(REFUSALS)('%s', async ([, result, errors]) => {
    await using engine = await startEngine();
    await using world = await openDispatchWorld({ engines: [engine.url], input: chatLines(5) });
    world.ledger.beforeCommit = (parts: readonly Part[]) => parts.map(() => result);
    expect(await world.run()).toBe('lost');
    expect(world.errors).toHaveLength(errors);
    expect((await engine.counts()).requests).toBe(5);
  });

  test('one refused part says nothing of the other shards in the segment', async () => {
    await using engine = await startEngine();
    await using world = await openDispatchWorld({
      engines: [engine.url],
      input: chatLines(20),
      cutLines: 10,
    });
    const [first, second] = [world.ledger.take(0), world.ledger.take(1)];
    const signals = { stop: world.stop.signal, abort: world.abort.signal };
    world.ledger.take(0);
    const results = [first, second].map((s) => world.dispatcher.run(s, world.job, signals));
    expect(await Promise.all(results)).toEqual(['lost', 'done']);
    expect(world.ledger.puts.size).toBe(1);
    expect((await world.ledger.answers()).size).toBe(10);
  });
});

describe('an engine that dies', () => {
  test('lines wait for it, burn no attempts and go on when it is back', async () => {
    const flags = ['--profile', 'zero', '--set', 'latency_ms=20', '--set', 'log=full'];
    const dead = await startVllmProcess({ flags });
    await using world = await openDispatchWorld({
      engines: [dead.url],
      input: chatLines(300),
      maxConcurrency: 16,
    });
    const run = world.run();
    await until(async () => (await dead.counts()).requests > 60, { everyMs: 5 });
    await dead.kill('SIGKILL');
    await until(() => world.downs.length > 0);
    await using engine = await startVllmProcess({ flags, port: dead.port });
    expect(await run).toBe('done');
    await expectAllAnsweredOnce(world, 300);
    expect(world.downs).toHaveLength(1);
    // Four broken connections may be a line's own fault; the fifth opens the breaker.
    expect(world.retries.length).toBeLessThanOrEqual(4);
    expect(await engine.counts()).toMatchObject({ repeated: 0 });
  });

  test('the other engine takes over', async () => {
    const flags = ['--profile', 'zero', '--set', 'latency_ms=20'];
    const dead = await startVllmProcess({ flags });
    await using engine = await startEngine(20);
    await using world = await openDispatchWorld({
      engines: [dead.url, engine.url],
      input: chatLines(200),
      maxConcurrency: 8,
      sleepScale: 0.1,
    });
    const run = world.run();
    await until(async () => (await dead.counts()).requests > 30, { everyMs: 5 });
    await dead.kill('SIGKILL');
    expect(await run).toBe('done');
    await expectAllAnsweredOnce(world, 200);
    expect(world.downs).toHaveLength(1);
  });
});

describe('memory', () => {
  test('200 answers of 1 MiB that come at the same time pass through a budget of 16 MiB', async () => {
    const MIB = 1024 * 1024;
    const places = 64;
    const piece = Buffer.alloc(MIB / 16, 'a');
    let most = 0;
    const server = createServer((req, res) => {
      let pieces = 0;
      // A piece of each answer in turn, however fast the client reads.
      function pump(): void {
        most = Math.max(most, world.dispatcher.load.budgetUsed);
        pieces += 1;
        if (pieces > 16) res.end('"}');
        else {
          res.write(piece);
          setImmediate(pump);
        }
      }
      req.resume().on('end', () => {
        res.write('{"text":"');
        pump();
      });
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    await using world = await openDispatchWorld({
      engines: [`http://127.0.0.1:${(server.address() as AddressInfo).port}`],
      input: chatLines(200),
      maxConcurrency: places,
      keepBytes: false,
      deps: { memoryBudget: 16 * MIB },
    });
    expect(await world.run()).toBe('done');
    server.close();
    const [shard] = world.ledger.shards.values();
    expect(shard).toMatchObject({ ok: 200, failed: 0, left: 0 });
    let bytes = 0;
    for (const part of shard?.parts ?? []) bytes += part.length;
    expect(bytes).toBeGreaterThan(200 * MIB);
    expect(most).toBeGreaterThan(16 * MIB);
    // Beside the budget: what each answer may read before it waits for its turn, and the one whose turn it is.
    expect(most).toBeLessThan(16 * MIB + places * 0.375 * MIB + 2 * MIB);
    expect(world.dispatcher.load.budgetUsed).toBe(0);
  });
});
