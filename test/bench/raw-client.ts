import { readFileSync } from 'node:fs';
import { Pool } from 'undici';
import { createEndpointRuntime } from '../../src/runtimes/index.ts';

/**
 * The raw ceiling: a connection to the engine and nothing else, as many requests in flight as asked, each answer read
 * whole. Arguments: engine URL, JSONL file, requests in flight, and `pool` for undici's own pool in place of the
 * product's connection. Prints one JSON line.
 */
const [url = '', path = '', inFlight = '256', kind = ''] = process.argv.slice(2);
const bodies = readFileSync(path, 'utf8')
  .trimEnd()
  .split('\n')
  .map((line) => {
    const { body } = JSON.parse(line) as { body: unknown }; // the bench wrote it
    return Buffer.from(JSON.stringify(body));
  });
const runtime = createEndpointRuntime({
  engineApiKey: undefined,
  connectTimeout: 10_000,
  engineUrls: [],
});
const own = runtime.connect(url);
const dispatcher =
  kind === 'pool' ? new Pool(url, { connections: Number(inFlight) }) : own.dispatcher;
let next = 0;

async function work(): Promise<void> {
  for (let body = bodies[next++]; body !== undefined; body = bodies[next++]) {
    const response = await dispatcher.request({
      origin: url,
      path: '/v1/chat/completions',
      method: 'POST',
      headers: ['content-type', 'application/json'],
      body,
    });
    await response.body.arrayBuffer();
  }
}

const begun = performance.now();
await Promise.all(Array.from({ length: Number(inFlight) }, work));
const seconds = (performance.now() - begun) / 1_000;
const { user, system } = process.cpuUsage();
console.log(
  JSON.stringify({ perSecond: bodies.length / seconds, cpuSeconds: (user + system) / 1e6 }),
);
await Promise.all([own.close(), kind === 'pool' ? dispatcher.close() : undefined]);
