import { expect, test } from 'vitest';
import { createEndpointRuntime } from '../../src/runtimes/endpoint.ts';
import { startVllm } from '../simulators/vllm/simulator.ts';
import { chatLines, openDispatchWorld } from '../support/dispatch-world.ts';
import { until } from '../support/until.ts';

test('after a job no connection stays open, nor that of an engine that had left it', async () => {
  await using engine = await startVllm({ profile: 'zero', config: { latency_ms: 50 } });
  const gone = await startVllm({ profile: 'zero' });
  await gone.close();
  const runtime = createEndpointRuntime({
    engineApiKey: undefined,
    engineUrls: [],
    connectTimeout: 10_000,
  });
  const [opened, closed]: [string[], string[]] = [[], []];
  await using world = await openDispatchWorld({
    engines: [engine.url, gone.url],
    input: chatLines(100),
    maxConcurrency: 8,
    sleepScale: 0.01,
    // A minute without work is 60 ms here.
    timerScale: 0.001,
    deps: {
      connect(address) {
        const connection = runtime.connect(address);
        opened.push(address);
        async function close(): Promise<void> {
          closed.push(address);
          await connection.close();
        }
        return { ...connection, close };
      },
    },
  });
  const running = world.run();
  await until(() => world.downs.length > 0, { what: 'an engine that is found gone' });
  world.engines.pop();
  world.dispatcher.enginesChanged();
  expect(await running).toBe('done');
  expect(opened.toSorted()).toEqual([engine.url, gone.url].toSorted());
  await until(() => closed.length >= opened.length, { timeoutMs: 3_000, what: 'closed engines' });
  expect(closed.toSorted()).toEqual(opened.toSorted());
});
