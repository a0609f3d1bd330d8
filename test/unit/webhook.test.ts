import { createHmac, randomBytes } from 'node:crypto';
import type { LookupAddress } from 'node:dns';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { RequestListener, Server } from 'node:http';
import { isIP } from 'node:net';
import type { AddressInfo } from 'node:net';
import OpenAI from 'openai';
import { afterEach, describe, expect, test } from 'vitest';
import { signWebhook } from '../../processors/webhooks.ts';
import { OUTCOMES } from '../../src/domain/job.ts';
import {
  hostOf,
  isPrivateHost,
  nextAttemptMs,
  RETRY_AFTER_MS,
  webhookEventOf,
  webhookKey,
  webhookUrl,
} from '../../src/domain/webhook.ts';
import { boundResolve } from '../../src/main/resolve-name.ts';
import { createWebhookSender } from '../../src/main/webhook-sender.ts';
import { until } from '../support/until.ts';

const SECRET = `whsec_${Buffer.from('a key of twenty-four byt').toString('base64')}`;
const NEVER = new AbortController().signal;

describe('when an event is tried again', () => {
  test('ever later, within a fifth of the wait, until the time is over', () => {
    const giveUp = 24 * 3_600_000;
    for (const [i, wait] of [...RETRY_AFTER_MS, 6 * 3_600_000].entries()) {
      const failed = { attempts: i + 1, ageMs: 0 };
      expect(nextAttemptMs(failed, giveUp, 0)).toBe(wait * 0.8);
      expect(nextAttemptMs(failed, giveUp, 0.5)).toBe(wait);
      expect(nextAttemptMs(failed, giveUp, 1)).toBe(wait * 1.2);
    }
    expect(nextAttemptMs({ attempts: 1, ageMs: giveUp - 4_000 }, giveUp, 0)).toBe(4_000);
    expect(nextAttemptMs({ attempts: 1, ageMs: giveUp - 3_999 }, giveUp, 0)).toBe(null);
  });

  test('not before a target wants it, but neither after the longest wait nor after the end', () => {
    const ask = (askedMs: number, ageMs = 0) =>
      nextAttemptMs({ attempts: 1, ageMs, askedMs }, 24 * 3_600_000, 0.5);
    expect(ask(0)).toBe(5_000);
    expect(ask(4_000)).toBe(5_000);
    expect(ask(120_000)).toBe(120_000);
    expect(ask(10 * 24 * 3_600_000)).toBe(6 * 3_600_000);
    expect(ask(120_000, 24 * 3_600_000 - 60_000), 'what is left').toBe(60_000);
    expect(ask(120_000, 24 * 3_600_000)).toBe(null);
  });

  test('each outcome has its event', () => {
    expect(OUTCOMES.map((outcome) => [outcome, webhookEventOf(outcome)])).toEqual([
      ['completed', 'batch.completed'],
      ['failed', 'batch.failed'],
      ['expired', 'batch.expired'],
      ['cancelled', 'batch.cancelled'],
      ['resource_failed', 'batch.failed'],
      ['submit_failed', 'batch.failed'],
    ]);
  });
});

describe('signatures', () => {
  test('are those of Standard Webhooks', () => {
    // The example of the specification's own libraries.
    const secret = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw';
    const signature = signWebhook(
      secret,
      'msg_p5jXN8AQM9LWM0D4loKWxJek',
      1_614_265_330,
      '{"test": 2432232314}',
    );
    expect(signature).toBe('v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=');
  });

  test("are taken by OpenAI's SDK", async () => {
    const body = '{"id":"evt_1","object":"event","type":"batch.completed","data":{"id":"batch_1"}}';
    const timestamp = Math.floor(Date.now() / 1_000);
    const headers = {
      'webhook-id': 'evt_1',
      'webhook-timestamp': String(timestamp),
      'webhook-signature': signWebhook(SECRET, 'evt_1', timestamp, body),
    };
    const { webhooks } = new OpenAI({ apiKey: 'none', webhookSecret: SECRET });
    expect(await webhooks.unwrap(body, headers)).toMatchObject({ data: { id: 'batch_1' } });
    await expect(webhooks.unwrap(body.replace('batch_1', 'batch_2'), headers)).rejects.toThrow(
      'signature',
    );
  });

  test.for(['', 'whsec_', 'whsec_short', SECRET.slice('whsec_'.length)])(
    'nothing is signed with %j',
    (secret) => {
      expect(() => signWebhook(secret, 'i', 1, 'b')).toThrow('damaged');
    },
  );

  test('a secret is whsec_ and 24 to 64 bytes', () => {
    for (let bytes = 0; bytes <= 80; bytes += 1) {
      const key = randomBytes(bytes).toString('base64');
      expect(webhookKey(`whsec_${key}`), `${bytes} bytes`).toBe(
        bytes >= 24 && bytes <= 64 ? key : null,
      );
    }
    const digest = createHmac('sha256', 'a key of twenty-four byt')
      .update('i.1.b')
      .digest('base64');
    expect(signWebhook(SECRET, 'i', 1, 'b')).toBe(`v1,${digest}`);
  });
});

describe('targets', () => {
  test.for([
    ['https://example.com/hook?x=1', 'https://example.com/hook?x=1'],
    ['http://EXAMPLE.com:80', 'http://example.com/'],
    ['http://0x7f.1/', 'http://127.0.0.1/'],
    ['ftp://example.com', null],
    ['https://user:word@example.com/', null],
    ['https://example.com/#part', null],
    ['example.com', null],
    [`https://example.com/${'x'.repeat(2_048)}`, null],
  ] as const)('%s', ([text, expected]) => {
    expect(webhookUrl(text)).toBe(expected);
  });

  test.for([
    ['http://localhost/', true],
    ['http://api.localhost./', true],
    ['http://2130706433/', true],
    ['http://[::1]:8080/', true],
    ['http://[::ffff:10.0.0.1]/', true],
    ['http://169.254.169.254/latest', true],
    ['http://8.8.8.8/', false],
    ['http://[2606:4700::1111]/', false],
    ['http://example.com/', false],
  ] as const)('%s is private: %s', ([url, expected]) => {
    expect(isPrivateHost(hostOf(new URL(url).href))).toBe(expected);
  });
});

const servers: Server[] = [];

afterEach(async () => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    server.close();
    await once(server, 'close');
  }
});

async function listen(answer: RequestListener): Promise<{ port: number; hits: string[] }> {
  const hits: string[] = [];
  const server = createServer((request, response) => {
    hits.push(`${request.method} ${request.headers.host}${request.url}`);
    answer(request, response);
  });
  servers.push(server.listen(0, '127.0.0.1'));
  await once(server, 'listening');
  return { port: (server.address() as AddressInfo).port, hits };
}

function address(text: string): LookupAddress {
  return { address: text, family: text.includes(':') ? 6 : 4 };
}

describe('sending', () => {
  test('a name is resolved once, and the connection goes to the address that was checked', async () => {
    const target = await listen((_request, response) => response.end('thanks'));
    const asked: string[] = [];
    const send = createWebhookSender({
      allowPrivate: true,
      async resolve(name) {
        asked.push(name);
        return [address('127.0.0.1')];
      },
    });
    const url = `http://hook.test:${target.port}/path?q=1`;
    const answer = await send(url, { 'x-a': 'b' }, '{}', NEVER);
    expect(answer).toMatchObject({ code: 200, response: 'thanks', error: '' });
    expect(asked).toEqual(['hook.test']);
    expect(target.hits).toEqual([`POST hook.test:${target.port}/path?q=1`]);
  });

  test.for([
    ['a private address', ['127.0.0.1']],
    ['one private address among public ones', ['8.8.8.8', '127.0.0.1']],
    ['an IPv4 address in the clothes of IPv6', ['::ffff:127.0.0.1']],
    ['an address that is not understood', ['127.1']],
  ] as const)('a name with %s gets nothing', async ([, addresses]) => {
    const target = await listen((_request, response) => response.end());
    const resolve = async () => addresses.map(address);
    const send = createWebhookSender({ allowPrivate: false, resolve });
    const answer = await send(`http://hook.test:${target.port}/`, {}, '{}', NEVER);
    expect(answer).toMatchObject({ code: null });
    expect(answer.error).toContain('private network');
    expect(target.hits).toEqual([]);
  });

  test('look-ups are four at once, in time, and keep their place until the system ends them', async () => {
    const asked: ReturnType<typeof Promise.withResolvers<LookupAddress[]>>[] = [];
    const resolve = boundResolve(
      () => {
        asked.push(Promise.withResolvers());
        return asked.at(-1)?.promise ?? Promise.reject(new Error('none'));
      },
      { timeoutMs: 100 },
    );
    const late = Array.from({ length: 6 }, () => resolve('slow.test', NEVER));
    for (const each of late) await expect(each).rejects.toThrow('looked up within 0.1 s');
    expect(asked).toHaveLength(4);
    const next = resolve('next.test', NEVER);
    expect(asked).toHaveLength(4);
    asked[0]?.reject(new Error('no such name'));
    await until(() => asked.length === 5);
    asked[4]?.resolve([address('8.8.8.8')]);
    expect(await next).toEqual([address('8.8.8.8')]);
    asked[1]?.resolve([]);
    const failing = resolve('none.test', NEVER);
    await until(() => asked.length === 6);
    asked[5]?.reject(new Error('ENOTFOUND'));
    await expect(failing).rejects.toThrow('ENOTFOUND');
    const stop = new AbortController();
    const cut = resolve('cut.test', stop.signal);
    stop.abort();
    await expect(cut).rejects.toThrow('looked up');
  });

  test('Retry-After is read, in seconds', async () => {
    const target = await listen((_request, response) => {
      response.writeHead(429, { 'retry-after': '120' }).end();
    });
    const send = createWebhookSender({ allowPrivate: true });
    const answer = await send(`http://127.0.0.1:${target.port}/`, {}, '{}', NEVER);
    expect(answer).toMatchObject({ code: 429, retryAfterMs: 120_000 });
  });

  test('a look-up that never ends is an attempt without a code', async () => {
    const send = createWebhookSender({
      allowPrivate: true,
      timeoutMs: 100,
      resolve: () => Promise.withResolvers<LookupAddress[]>().promise,
    });
    const answer = await send('http://hook.test/', {}, '{}', NEVER);
    expect(answer).toMatchObject({ code: null, error: 'No answer within 0.1 s.' });
  });

  test('a name that leads elsewhere a moment later leads nowhere', async () => {
    const target = await listen((_request, response) => response.end());
    // Here 127.0.0.1 plays the public address, and 127.0.0.2 the private one.
    const answers = ['127.0.0.1', '127.0.0.2'];
    const asked: string[] = [];
    const send = createWebhookSender({
      allowPrivate: false,
      isPublic: (text) => (text === '127.0.0.1' ? true : isIP(text) === 0 ? null : false),
      async resolve(name) {
        asked.push(name);
        return [address(answers.shift() ?? '127.0.0.2')];
      },
    });
    const url = `http://rebind.test:${target.port}/`;
    expect(await send(url, {}, '{}', NEVER)).toMatchObject({ code: 200 });
    expect(asked, 'what was checked is what was connected to').toEqual(['rebind.test']);
    const second = await send(url, {}, '{}', NEVER);
    expect(second.error).toContain('private network');
    expect(target.hits).toEqual([`POST rebind.test:${target.port}/`]);
  });

  test('a literal private address gets nothing', async () => {
    const target = await listen((_request, response) => response.end());
    const send = createWebhookSender({ allowPrivate: false });
    for (const host of ['127.0.0.1', '[::ffff:127.0.0.1]']) {
      const answer = await send(`http://${host}:${target.port}/`, {}, '{}', NEVER);
      expect(answer.error).toContain('private network');
    }
    expect(target.hits).toEqual([]);
  });

  test('a redirect is an answer, and is not followed', async () => {
    const inner = await listen((_request, response) => response.end('secret'));
    const target = await listen((_request, response) => {
      response.writeHead(302, { location: `http://127.0.0.1:${inner.port}/` }).end();
    });
    const send = createWebhookSender({ allowPrivate: true });
    const answer = await send(`http://127.0.0.1:${target.port}/`, {}, '{}', NEVER);
    expect(answer).toMatchObject({ code: 302, response: '' });
    expect(inner.hits).toEqual([]);
  });

  test('of an endless answer a little is read', async () => {
    let written = 0;
    const target = await listen((request, response) => {
      function more(): void {
        written += 16_384;
        if (!response.destroyed && response.write('x'.repeat(16_384))) setImmediate(more);
        else response.once('drain', more);
      }
      request.resume();
      more();
    });
    const send = createWebhookSender({ allowPrivate: true });
    const answer = await send(`http://127.0.0.1:${target.port}/`, {}, '{}', NEVER);
    expect(answer.code).toBe(200);
    expect(answer.response).toBe('x'.repeat(1_000));
    // What lies in the buffers of two sockets comes on top of what is read.
    expect(written).toBeLessThan(32 * 1024 * 1024);
  });

  test('a target that says nothing is given up in time; one that stays silent after its code has answered', async () => {
    const silent = await listen(() => undefined);
    const slow = await listen((_request, response) => response.writeHead(204).flushHeaders());
    const half = await listen((_request, response) => {
      response.writeHead(200);
      response.write('half');
    });
    const send = createWebhookSender({ allowPrivate: true, timeoutMs: 300 });
    const [first, second, third] = await Promise.all(
      [silent, slow, half].map(({ port }) => send(`http://127.0.0.1:${port}/`, {}, '{}', NEVER)),
    );
    expect(first).toMatchObject({ code: null, error: 'No answer within 0.3 s.' });
    expect(first?.ms).toBeGreaterThan(250);
    expect(second).toMatchObject({ code: 204 });
    expect(third).toMatchObject({ code: 200, response: 'half' });
  });

  test('what the process cuts when it stops is no attempt', async () => {
    const silent = await listen(() => undefined);
    const stop = new AbortController();
    const sending = createWebhookSender({ allowPrivate: true })(
      `http://127.0.0.1:${silent.port}/`,
      {},
      '{}',
      stop.signal,
    );
    setTimeout(() => stop.abort(new Error('stopped')), 50);
    await expect(sending).rejects.toThrow('stopped');
  });

  test('a dead target is an attempt without a code', async () => {
    const { port } = await listen(() => undefined);
    const [server] = servers.splice(0);
    server?.close();
    const answer = await createWebhookSender({ allowPrivate: true })(
      `http://127.0.0.1:${port}/`,
      {},
      '{}',
      NEVER,
    );
    expect(answer).toMatchObject({ code: null });
    expect(answer.error).toContain('ECONNREFUSED');
  });
});
