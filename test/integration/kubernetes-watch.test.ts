import { once } from 'node:events';
import { createServer } from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, expect, test } from 'vitest';
import * as v from 'valibot';
import { createKubernetesApi } from '../../src/resources/kubernetes/api.ts';
import type { KubernetesApi } from '../../src/resources/kubernetes/api.ts';
import { createWatched } from '../../src/resources/kubernetes/watched.ts';
import type { Watched } from '../../src/resources/kubernetes/watched.ts';
import { until } from '../support/until.ts';

const item = v.object({ metadata: v.object({ name: v.string() }), state: v.string() });
type Item = v.InferOutput<typeof item>;

/** An API server whose lists and watches say what a test has them say. */
interface Script extends AsyncDisposable {
  url: string;
  items: Map<string, { state: string; version: string }>;
  lists: number;
  /** Watches that are open. */
  watches: { from: string; answer: ServerResponse }[];
  /** Answers lists and new watches with this status; 0: as usual. */
  status: number;
  tell(type: string, object: object): void;
}

async function startScript(): Promise<Script> {
  const script: Pick<Script, 'items' | 'lists' | 'watches' | 'status'> = {
    items: new Map(),
    lists: 0,
    watches: [],
    status: 0,
  };
  const server = createServer((asked: IncomingMessage, answer: ServerResponse) => {
    const url = new URL(asked.url ?? '', 'http://x');
    answer.setHeader('content-type', 'application/json');
    if (script.status !== 0) {
      answer.writeHead(script.status);
      answer.end(JSON.stringify({ kind: 'Status', apiVersion: 'v1', message: 'scripted' }));
      return;
    }
    if (url.searchParams.get('watch') === 'true') {
      answer.flushHeaders();
      script.watches.push({ from: url.searchParams.get('resourceVersion') ?? '', answer });
      answer.on('close', () => {
        script.watches = script.watches.filter((each) => each.answer !== answer);
      });
      return;
    }
    script.lists += 1;
    const items = [...script.items].map(([name, { state, version }]) => ({
      metadata: { name, resourceVersion: version },
      state,
    }));
    answer.end(JSON.stringify({ metadata: { resourceVersion: `list-${script.lists}` }, items }));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return Object.assign(script, {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    tell(type: string, object: object) {
      const line = `${JSON.stringify({ type, object })}\n`;
      for (const { answer } of script.watches) answer.write(line);
    },
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  });
}

const open: { close(): unknown }[] = [];
afterEach(async () => {
  for (const each of open.splice(0)) await each.close();
});

function watch(script: Script, silenceMs = 60_000): Watched<Item> & { troubles: string[] } {
  const api: KubernetesApi = createKubernetesApi(async () => ({
    server: script.url,
    namespace: null,
    isInCluster: false,
    tls: {},
    authorization: async () => null,
    source: 'the test',
  }));
  const troubles: string[] = [];
  const onTrouble = (reason: string) => troubles.push(reason);
  const watched = createWatched({ api, path: '/things', query: {}, item, silenceMs, onTrouble });
  open.push(watched, api);
  return { ...watched, troubles };
}

function object(name: string, state: string, version = '9') {
  return { metadata: { name, resourceVersion: version }, state };
}

async function stateOf(watched: Watched<Item>, name: string): Promise<string | undefined> {
  return (await watched.read()).get(name)?.state;
}

async function untilState(watched: Watched<Item>, name: string, state: string | undefined) {
  await until(async () => (await stateOf(watched, name)) === state, { timeoutMs: 10_000 });
}

test('one list, and what is told from there on', async () => {
  await using script = await startScript();
  script.items.set('a', { state: 'new', version: '1' });
  const watched = watch(script);
  expect(await stateOf(watched, 'a')).toBe('new');
  await until(() => script.watches.length === 1);
  expect(script.watches[0]?.from).toBe('list-1');
  script.tell('MODIFIED', object('a', 'old'));
  script.tell('ADDED', object('b', 'new'));
  await untilState(watched, 'b', 'new');
  expect(await stateOf(watched, 'a')).toBe('old');
  script.tell('DELETED', object('a', 'old'));
  await untilState(watched, 'a', undefined);
  expect(script.lists).toBe(1);
});

test('a watch that the server ends goes on from the last bookmark', async () => {
  await using script = await startScript();
  const watched = watch(script);
  await watched.read();
  await until(() => script.watches.length === 1);
  script.tell('BOOKMARK', { metadata: { resourceVersion: '77' } });
  script.watches[0]?.answer.end();
  await until(() => script.watches[0]?.from === '77', { timeoutMs: 10_000 });
  expect(script.lists).toBe(1);
});

test('410: listed anew', async () => {
  await using script = await startScript();
  script.items.set('a', { state: 'new', version: '1' });
  const watched = watch(script);
  await watched.read();
  await until(() => script.watches.length === 1);
  script.items.set('a', { state: 'later', version: '2' });
  script.tell('ERROR', { kind: 'Status', code: 410, reason: 'Expired' });
  await untilState(watched, 'a', 'later');
  expect(script.lists).toBe(2);
  expect(watched.troubles.join()).toContain('Expired');
});

test('a watch that says nothing for too long is not believed', async () => {
  await using script = await startScript();
  script.items.set('a', { state: 'new', version: '1' });
  const watched = watch(script, 1_000);
  await watched.read();
  script.items.set('a', { state: 'unheard', version: '2' });
  await untilState(watched, 'a', 'unheard');
  expect(script.lists).toBeGreaterThan(1);
});

test('while the API server is away what was told last counts, and it is listed anew when it is back', async () => {
  await using script = await startScript();
  script.items.set('a', { state: 'new', version: '1' });
  const watched = watch(script);
  await watched.read();
  await until(() => script.watches.length === 1);
  script.status = 503;
  script.watches[0]?.answer.destroy();
  await until(() => watched.troubles.length >= 2, { timeoutMs: 10_000 });
  expect(await stateOf(watched, 'a')).toBe('new');
  script.items.set('a', { state: 'back', version: '2' });
  script.status = 0;
  await untilState(watched, 'a', 'back');
});

test('a first list that is refused is told, and the next read asks again', async () => {
  await using script = await startScript();
  script.status = 403;
  const watched = watch(script);
  await expect(watched.read()).rejects.toMatchObject({ code: 'kubernetes.forbidden' });
  script.status = 0;
  expect(await watched.read()).toEqual(new Map());
});
