import { once } from 'node:events';
import { createServer } from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe, expect, test } from 'vitest';
import type { Look } from '../../src/runtimes/contract.ts';
import { createEndpointRuntime } from '../../src/runtimes/endpoint.ts';
import { startVllm } from '../simulators/vllm/simulator.ts';

const NEVER = new AbortController().signal;

type Handler = (req: IncomingMessage, res: ServerResponse) => void;

interface FakeEngine extends AsyncDisposable {
  url: string;
  /** What was asked, in order. */
  asked: { path: string; authorization: string | undefined }[];
}

/** A server that answers each path as it is told, and 404 elsewhere. */
async function serve(routes: Record<string, Handler>): Promise<FakeEngine> {
  const asked: FakeEngine['asked'] = [];
  const server = createServer((req, res) => {
    const path = req.url ?? '';
    asked.push({ path, authorization: req.headers.authorization });
    const handler = routes[path];
    if (handler === undefined) res.writeHead(404).end();
    else handler(req, res);
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    asked,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

function status(code: number, text = ''): Handler {
  return (_req, res) => res.writeHead(code).end(text);
}

function models(...ids: string[]): Handler {
  return status(200, JSON.stringify({ object: 'list', data: ids.map((id) => ({ id })) }));
}

async function look(
  address: string,
  wanted: string[] = ['m'],
  engineApiKey?: string,
): Promise<Look> {
  const runtime = createEndpointRuntime({
    engineApiKey,
    engineUrls: [address],
    connectTimeout: 1_000,
  });
  return runtime.look(address, wanted, NEVER);
}

describe('a look', () => {
  test('an engine that serves the models is healthy', async () => {
    await using engine = await startVllm({ models: ['a', 'b'] });
    expect(await look(engine.url, ['b', 'a'])).toEqual({ is: 'healthy', models: ['b', 'a'] });
    expect(await look(engine.url, [])).toEqual({ is: 'healthy', models: [] });
  });

  test('an engine that loads its model still is down', async () => {
    await using engine = await startVllm({ startDelayMs: 60_000, startAnswers503: true });
    const found = await look(engine.url, ['sim-model']);
    expect(found).toEqual({ is: 'down', reason: `${engine.url}/health answers 503` });
  });

  test('an engine that is not there is down, and the reason names it', async () => {
    const engine = await startVllm();
    await engine.close();
    const found = await look(engine.url);
    expect(found).toMatchObject({ is: 'down' });
    expect(found).toHaveProperty('reason', expect.stringContaining('ECONNREFUSED'));
    expect(found).toHaveProperty('reason', expect.stringContaining(engine.url));
  });

  test('a server without /health is judged by its models', async () => {
    await using engine = await serve({ '/v1/models': models('m') });
    expect(await look(engine.url)).toEqual({ is: 'healthy', models: ['m'] });
    expect(engine.asked.map(({ path }) => path)).toEqual(['/health', '/v1/models']);
  });

  test('an engine that serves some of the models is healthy, and says which', async () => {
    await using engine = await startVllm({ models: ['a', 'b', 'other'] });
    expect(await look(engine.url, ['c', 'b', 'a'])).toEqual({ is: 'healthy', models: ['b', 'a'] });
  });

  test('models that it lacks are named beside those that it serves', async () => {
    await using engine = await startVllm({ models: ['a', 'b'] });
    expect(await look(engine.url, ['c', 'd'])).toEqual({
      is: 'unfit',
      reason: `${engine.url} serves 'a', 'b', but the input asks for 'c', 'd'`,
    });
  });

  test('of very many models the reason names a few', async () => {
    const ids = Array.from({ length: 500 }, (_, n) => `m${n}`);
    await using engine = await serve({ '/v1/models': models(...ids) });
    const found = await look(engine.url, ['other']);
    expect(found).toHaveProperty('reason', expect.stringContaining('and 495 more'));
  });

  test('a key is sent as a bearer token, and none without one', async () => {
    await using engine = await serve({ '/health': status(200), '/v1/models': models('m') });
    await look(engine.url, ['m'], 'key-1');
    expect(engine.asked.map((each) => each.authorization)).toEqual([
      'Bearer key-1',
      'Bearer key-1',
    ]);
    await look(engine.url);
    expect(engine.asked.slice(2).map((each) => each.authorization)).toEqual([undefined, undefined]);
  });

  test.for([401, 403])(
    'an engine that refuses the key (%d) is unfit, and says the mend',
    async (code) => {
      await using engine = await serve({ '/health': status(200), '/v1/models': status(code) });
      const found = await look(engine.url, ['m'], 'wrong');
      expect(found).toMatchObject({ is: 'unfit' });
      expect(found).toHaveProperty('reason', expect.stringContaining('ENGINE_API_KEY'));
      expect(JSON.stringify(found)).not.toContain('wrong');
    },
  );

  test('the simulator wants its key, too', async () => {
    await using engine = await startVllm({ models: ['m'], apiKey: 'key-1' });
    expect(await look(engine.url, ['m'], 'key-2')).toMatchObject({ is: 'unfit' });
    expect(await look(engine.url, ['m'], 'key-1')).toEqual({ is: 'healthy', models: ['m'] });
  });

  const ODD: [string, Handler, Look['is']][] = [
    ['a page', status(200, '<html></html>'), 'unfit'],
    ['another JSON', status(200, '{"data":[{"name":"m"}]}'), 'unfit'],
    ['nothing', status(200), 'unfit'],
    ['no models at all', models(), 'unfit'],
    ['404', status(404), 'unfit'],
    ['500', status(500), 'down'],
    ['503', status(503), 'down'],
    ['more than 1 MiB', status(200, 'x'.repeat(1_100_000)), 'down'],
    [
      'half an answer',
      (req, res) =>
        res.writeHead(200, { 'content-length': 9 }).write('{', () => req.socket.destroy()),
      'down',
    ],
  ];
  test.for(ODD)('models: %s', async ([, handler, is]) => {
    await using engine = await serve({ '/health': status(200), '/v1/models': handler });
    const found = await look(engine.url);
    expect(found.is).toBe(is);
    expect(JSON.stringify(found).length).toBeLessThan(400);
  });

  test('an engine that stays silent is down after 5 s', async () => {
    await using engine = await serve({ '/health': () => undefined });
    const begun = performance.now();
    const found = await look(engine.url);
    expect(found).toMatchObject({ is: 'down' });
    expect(performance.now() - begun).toBeLessThan(6_500);
    expect(performance.now() - begun).toBeGreaterThan(4_500);
  });

  test('who aborts a look gets the reason', async () => {
    await using engine = await serve({ '/health': () => undefined });
    const abort = new AbortController();
    const runtime = createEndpointRuntime({
      engineApiKey: undefined,
      engineUrls: [],
      connectTimeout: 1_000,
    });
    const looking = runtime.look(engine.url, [], abort.signal);
    abort.abort(new Error('the process stops'));
    await expect(looking).rejects.toThrow('the process stops');
  });

  test('a path in the base URL stands before everything', async () => {
    await using engine = await serve({ '/llm/health': status(200), '/llm/v1/models': models('m') });
    expect(await look(`${engine.url}/llm`)).toEqual({ is: 'healthy', models: ['m'] });
  });
});

describe('a connection', () => {
  test('knows origin, path and key apart, and closes twice', async () => {
    const runtime = createEndpointRuntime({
      engineApiKey: 'key-1',
      engineUrls: ['http://127.0.0.1:9/llm'],
      connectTimeout: 1_000,
    });
    const connection = runtime.connect('http://127.0.0.1:9/llm');
    expect(connection).toMatchObject({
      origin: 'http://127.0.0.1:9',
      pathPrefix: '/llm',
      headers: { authorization: 'Bearer key-1' },
    });
    await connection.close();
    await connection.close();
    // A batch may name any address: whose it is must not learn the key.
    const other = runtime.connect('http://127.0.0.1:9');
    expect(other).toMatchObject({ pathPrefix: '', headers: {} });
    await other.close();
  });
});
