import { once } from 'node:events';
import { createServer } from 'node:http';
import type { RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import { request } from 'undici';
import { expect, test } from 'vitest';
import { SluiceError } from '../../src/domain/errors.ts';
import { openHostedWay } from '../../src/runtimes/kubernetes/hosted-way.ts';

/** What a request through the proxy of an API server comes to that answers like this. */
async function through(
  listener: RequestListener,
  authorization: () => Promise<string | null> = async () => 'Bearer t',
) {
  const server = createServer(listener);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const url = `http://127.0.0.1:${port}/api/v1/namespaces/batch/services/engine:8000/proxy`;
  const way = openHostedWay({ url, tls: {}, authorization }, 1_000);
  try {
    const { statusCode, body } = await request(`${way.origin}${way.pathPrefix}/v1/models`, {
      dispatcher: way.dispatcher,
      headers: ['x-line', '1', 'authorization', 'Bearer of-the-engine'],
    });
    return { status: statusCode, text: await body.text() };
  } catch (error) {
    return { error };
  } finally {
    await way.close();
    server.closeAllConnections();
    server.close();
  }
}

function status(code: number, message: string): RequestListener {
  return (_asked, answer) => {
    answer.writeHead(code, { 'content-type': 'application/json' });
    answer.end(JSON.stringify({ kind: 'Status', apiVersion: 'v1', code, message }));
  };
}

test('a request goes below the Service’s proxy, with the credentials of the cluster', async () => {
  const asked: unknown[] = [];
  const { text } = await through((request_, answer) => {
    asked.push(request_.url, request_.headers.authorization, request_.headers['x-line']);
    answer.end('hello');
  });
  expect(text).toBe('hello');
  const path = '/api/v1/namespaces/batch/services/engine:8000/proxy/v1/models';
  expect(asked).toEqual([path, 'Bearer t', '1']);
});

test.for<[status: number, message: string]>([
  [503, 'no endpoints available for service "engine"'],
  [503, 'error trying to reach service: dial tcp 10.0.0.7:8000: connect: connection refused'],
  [404, 'services "engine" not found'],
  [403, 'services "engine" is forbidden'],
  [429, 'too many requests'],
])(
  'what the API server says for itself (%i %s) is no answer: nobody has heard it',
  async ([code, message]) => {
    const { error } = await through(status(code, message));
    expect(error).toBeInstanceOf(SluiceError);
    expect(error).toMatchObject({ code: 'kubernetes.no_way' });
  },
);

test('that the engine broke while it answered is a broken connection of the engine', async () => {
  const { error } = await through(status(502, 'error trying to reach service: EOF'));
  expect(error).toMatchObject({ code: 'ECONNRESET' });
  expect(error).not.toHaveProperty('cause');
});

test('what the engine itself refuses is its answer, whole', async () => {
  const body = JSON.stringify({ error: { message: 'busy', pad: 'x'.repeat(40_000) } });
  const { status: code, text } = await through((_asked, answer) => {
    answer.writeHead(503, { 'content-type': 'application/json' });
    answer.end(body);
  });
  expect([code, text]).toEqual([503, body]);
});

test('a connection to the API server that breaks says nothing of the line', async () => {
  const { error } = await through((_asked, answer) => answer.destroy());
  expect(error).toMatchObject({ cause: { code: 'kubernetes.cut' } });
});

test('without credentials nothing is sent', async () => {
  let count = 0;
  const { error } = await through(
    (_asked, answer) => {
      count += 1;
      answer.end();
    },
    async () => {
      throw new SluiceError('Permanent', 'kubernetes.credentials', 'the token is gone');
    },
  );
  expect(error).toMatchObject({ code: 'kubernetes.credentials' });
  expect(count).toBe(0);
});
