import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { expect, test } from 'vitest';
import { makeInput } from '../support/batch.ts';
import { openSite, submitTo } from '../support/site.ts';
import type { Site } from '../support/site.ts';
import { until } from '../support/until.ts';

/** An engine that takes requests and never answers, so that whoever looks at it is held up. */
async function startMute() {
  const server = createServer(() => undefined);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo; // a TCP server that listens has one
  return {
    url: `http://127.0.0.1:${port}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

async function inHand({ url }: Site, queue: string, state: string): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  const line = text
    .split('\n')
    .find((each) => each.startsWith(`sluice_queue_deliveries{queue="${queue}",state="${state}"`));
  return Number(line?.split(' ').at(-1) ?? 0);
}

const JOBS = 5;

test.for<[setting: string | null, atOnce: number]>([
  ['2', 2],
  [null, JOBS],
])('PLANNER_WORKER_COUNT %s: so many engines are looked at at once', async ([setting, atOnce]) => {
  await using mute = await startMute();
  const env: Record<string, string> = setting === null ? {} : { PLANNER_WORKER_COUNT: setting };
  await using site = await openSite({ env });
  for (let n = 0; n < JOBS; n += 1) {
    await submitTo(site, { url: `${mute.url}/${n}` }, makeInput(1));
  }
  await until(
    async () => {
      const active = await inHand(site, 'submission', 'active');
      expect(active).toBeLessThanOrEqual(atOnce);
      const waiting = await inHand(site, 'submission', 'waiting');
      return active === atOnce && waiting === JOBS - atOnce;
    },
    { timeoutMs: 20_000, everyMs: 20, what: `${atOnce} in hand and the others waiting` },
  );
});
