import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { once } from 'node:events';
import { describe, expect, test } from 'vitest';
import { createMetricsReader } from '../../src/dispatcher/engine-metrics.ts';
import { createEndpointRuntime } from '../../src/runtimes/index.ts';
import { startVllm } from '../simulators/vllm/simulator.ts';
import { until } from '../support/until.ts';
import { ask, chat } from '../support/vllm-client.ts';

function connect(address: string) {
  const options = {
    engineApiKey: 'k',
    requestTimeout: 5_000,
    connectTimeout: 1_000,
    engineUrls: [address],
  };
  return createEndpointRuntime(options).connect(address);
}

/** A server whose answers to any request are given, in turn; the last one for ever. */
async function serve(...pages: [status: number, text: string][]) {
  const asked: string[] = [];
  const server = createServer((req, res) => {
    const [status, text] = pages[Math.min(asked.length, pages.length - 1)] ?? [500, ''];
    asked.push(`${req.url} ${req.headers.authorization ?? ''}`);
    res.writeHead(status).end(text);
  });
  server.listen(0, '127.0.0.1');
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

const page = (running: number, tokens: number): string =>
  [
    '# HELP vllm:num_requests_running Number of requests in model execution batches.',
    `vllm:num_requests_running{engine="0",model_name="a model, with {braces}"} ${running}.0`,
    `vllm:num_requests_running{engine="1",model_name="a"} ${running}.0`,
    'vllm:num_requests_waiting{engine="0",model_name="a"} 5.0',
    'vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 1000.0',
    'vllm:gpu_cache_usage_perc{engine="0"} 0.25',
    'vllm:gpu_cache_usage_perc{engine="1"} 0.75',
    `vllm:generation_tokens_total{engine="0"} ${tokens}.0`,
    'vllm:generation_tokens_created{engine="0"} 1.7e+09',
    'vllm:num_preemptions_total{engine="0"} NaN',
    'vllm:broken',
    '',
  ].join('\n');

describe('of a simulated vLLM', () => {
  test('running, waiting and KV use are those of the moment, tokens those since it was read before', async () => {
    await using engine = await startVllm({ config: { max_num_seqs: 2, decode_step_ms: 8 } });
    const connection = connect(engine.url);
    const reader = createMetricsReader(connection);
    expect(await reader.read()).toEqual({
      running: 0,
      waiting: 0,
      kvUse: 0,
      preemptions: 0,
      generationTokens: 0,
    });
    const lines = ['a', 'b', 'c', 'd', 'e'].map((name) =>
      ask(engine.url, chat(name, { max_tokens: 40 })),
    );
    const busy = await until(async () => {
      const metrics = await reader.read();
      return metrics?.waiting === 3 ? metrics : null;
    });
    expect(busy.running).toBe(2);
    expect(busy.kvUse).toBeGreaterThan(0);
    await Promise.all(lines);
    await reader.read();
    await ask(engine.url, chat('f', { max_tokens: 7 }));
    expect(await reader.read()).toMatchObject({ running: 0, generationTokens: 7 });
    expect(await reader.read()).toMatchObject({ generationTokens: 0 });
    await connection.close();
  });

  test('preemptions are counted, under the old name of the KV use too', async () => {
    const config = { num_gpu_blocks: 8, max_num_seqs: 4, decode_step_ms: 1 };
    await using engine = await startVllm({ config, oldMetricNames: true });
    const connection = connect(engine.url);
    const reader = createMetricsReader(connection);
    await reader.read();
    await Promise.all(
      ['a', 'b', 'c'].map((name) => ask(engine.url, chat(name, { max_tokens: 60 }))),
    );
    expect((await reader.read())?.preemptions).toBeGreaterThan(0);
    await connection.close();
  });

  test('an engine without metrics answers null', async () => {
    await using engine = await startVllm({ config: { metrics: false } });
    const connection = connect(engine.url);
    expect(await createMetricsReader(connection).read()).toBeNull();
    await connection.close();
  });
});

describe('of any server', () => {
  test('series are summed over ranks, by whole names; what is no number is left out', async () => {
    await using server = await serve([200, page(3, 100)], [200, page(4, 160)], [200, page(0, 40)]);
    const connection = connect(`${server.url}/behind/a/proxy`);
    const reader = createMetricsReader(connection);
    const first = { running: 6, waiting: 5, kvUse: 0.75, preemptions: 0, generationTokens: 0 };
    expect(await reader.read()).toEqual(first);
    expect(await reader.read()).toEqual({ ...first, running: 8, generationTokens: 60 });
    // The engine began anew: its counter tells what came since.
    expect(await reader.read()).toEqual({ ...first, running: 0, generationTokens: 40 });
    expect(server.asked[0]).toBe('/behind/a/proxy/metrics Bearer k');
    await connection.close();
  });

  test('one without such a page is asked again only after a while', async () => {
    await using server = await serve([404, 'Not Found'], [200, page(1, 0)]);
    const connection = connect(server.url);
    const reader = createMetricsReader(connection);
    const found = [];
    for (let n = 0; n < 62; n += 1) found.push(await reader.read());
    expect(found.slice(0, 61).every((each) => each === null)).toBe(true);
    expect(found[61]).toMatchObject({ running: 2 });
    expect(server.asked).toEqual(['/metrics Bearer k', '/metrics Bearer k']);
    await connection.close();
  });

  test('one that fails is asked again at once', async () => {
    await using server = await serve([503, 'busy'], [200, page(1, 0)]);
    const connection = connect(server.url);
    const reader = createMetricsReader(connection);
    expect(await reader.read()).toBeNull();
    expect(await reader.read()).toMatchObject({ running: 2 });
    await connection.close();
  });

  test('a broken connection and an endless page are null', async () => {
    const gone = connect('http://127.0.0.1:9');
    expect(await createMetricsReader(gone).read()).toBeNull();
    await gone.close();
    await using server = await serve([200, 'x'.repeat(5 * 1024 * 1024)]);
    const connection = connect(server.url);
    expect(await createMetricsReader(connection).read()).toBeNull();
    await connection.close();
  });
});
