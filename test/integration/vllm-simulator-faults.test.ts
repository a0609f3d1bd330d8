import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { request as httpRequest } from 'node:http';
import type { IncomingMessage } from 'node:http';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { sha256 } from '../simulators/vllm/digest.ts';
import { startVllm } from '../simulators/vllm/simulator.ts';
import type { FaultInput } from '../simulators/vllm/simulator.ts';
import { until } from '../support/until.ts';
import { ask, chat, contentOf, failure } from '../support/vllm-client.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

describe('faults', () => {
  const withFault = (fault: FaultInput) => ({
    async start() {
      const sim = await startVllm();
      await sim.setFaults([fault]);
      return sim;
    },
  });

  test('status carries Retry-After, and count, after and match choose the requests', async () => {
    const fault = { kind: 'status', status: 429, retry_after: 1, count: 1, after: 1, match: 'bad' };
    await using sim = await withFault(fault as FaultInput).start();
    const statuses: number[] = [];
    for (const text of ['good', 'bad 1', 'bad 2', 'bad 3', 'good']) {
      const answer = await ask(sim.url, chat(text));
      statuses.push(answer.status);
      expect(answer.headers.get('retry-after')).toBe(answer.status === 429 ? '1' : null);
    }
    expect(statuses).toEqual([200, 200, 429, 200, 200]);
    expect((await sim.counts()).by_outcome).toMatchObject({ answered: 4, fault: 1 });
    expect((await sim.faults())[0]).toMatchObject({ seen: 3, hits: 1 });
  });

  test('a rate hits the same requests again with the same seed', async () => {
    const run = async (seed: number): Promise<number[]> => {
      await using sim = await startVllm({ profile: 'zero', seed });
      await sim.setFaults([{ kind: 'status', status: 500, rate: 0.3 }]);
      const statuses: number[] = [];
      for (let i = 0; i < 60; i += 1) statuses.push((await ask(sim.url, chat(`q${i}`))).status);
      return statuses;
    };
    const first = await run(7);
    expect(await run(7)).toEqual(first);
    expect(await run(8)).not.toEqual(first);
    const hits = first.filter((status) => status === 500).length;
    expect(hits).toBeGreaterThan(6);
    expect(hits).toBeLessThan(36);
  });

  test('reset breaks the connection before the answer or in its middle', async () => {
    await using early = await withFault({ kind: 'reset' }).start();
    expect(await failure(ask(early.url, chat('x')))).toMatch(/ECONNRESET/);
    await using late = await withFault({ kind: 'reset', at: 'body' }).start();
    const body = JSON.stringify(chat('x'));
    const req = httpRequest(`${late.url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
    });
    req.on('error', () => {}); // comes besides that of the response, which is looked at below
    req.end(body);
    const [res] = (await once(req, 'response')) as [IncomingMessage];
    expect(res.statusCode).toBe(200);
    let got = 0;
    res.on('data', (chunk: Buffer) => {
      got += chunk.length;
    });
    const [error] = (await once(res, 'error')) as [NodeJS.ErrnoException];
    expect(error.code).toBe('ECONNRESET');
    expect(got).toBeGreaterThan(0);
    expect(got).toBeLessThan(Number(res.headers['content-length']));
  });

  test('hang_headers says nothing, hang_body half, health goes on', async () => {
    await using head = await withFault({ kind: 'hang_headers' }).start();
    const silent = ask(head.url, chat('x'), { signal: AbortSignal.timeout(150) });
    expect(await failure(silent)).toContain('timeout');
    await using body = await withFault({ kind: 'hang_body', count: 1 }).start();
    const answer = await fetch(`${body.url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(chat('x')),
      signal: AbortSignal.timeout(1000),
    });
    expect(answer.status).toBe(200);
    expect(await failure(answer.text())).toContain('timeout');
    expect((await fetch(`${body.url}/health`)).status).toBe(200);
    await until(async () => (await body.counts()).in_flight === 0);
    expect((await body.requests())[0]).toMatchObject({ fault: 'hang_body', aborted: true });
  });

  test('a hang with delay_ms goes on', async () => {
    await using sim = await withFault({ kind: 'hang_body', delay_ms: 50 }).start();
    expect(contentOf((await ask(sim.url, chat('ECHO: whole'))).text)).toBe('whole');
  });

  test("proxy_cut answers 524 in the engine's stead once no byte has come for delay_ms", async () => {
    await using sim = await startVllm({ profile: 'small', config: { decode_step_ms: 40 } });
    await sim.setFaults([{ kind: 'proxy_cut', delay_ms: 200 }]);
    const begun = performance.now();
    const cut = await ask(sim.url, chat('x', { max_tokens: 20 }));
    expect(performance.now() - begun).toBeGreaterThan(195);
    expect(performance.now() - begun).toBeLessThan(750);
    expect(cut.status).toBe(524);
    expect(cut.headers.get('content-type')).toBe('text/html');
    // Who hung up was the proxy: the engine stops, and the next request on the connection is a new one.
    expect((await sim.requests())[0]).toMatchObject({ fault: 'proxy_cut', aborted: true });
    const quick = await ask(sim.url, chat('ECHO: short'));
    expect(contentOf(quick.text)).toBe('short');
    expect((await sim.requests())[1]).toMatchObject({ fault: null, status: 200 });
  });

  test('proxy_cut lets a stream pass that goes on, and cuts one that falls silent', async () => {
    await using sim = await startVllm({ profile: 'small', config: { decode_step_ms: 40 } });
    await sim.setFaults([{ kind: 'proxy_cut', delay_ms: 200 }]);
    const body = chat('x', { max_tokens: 20, stream: true });
    const whole = await ask(sim.url, body);
    expect(whole.status).toBe(200);
    expect(whole.text.endsWith('data: [DONE]\n\n')).toBe(true);
    const streaming = ask(sim.url, { ...body, seed: 1 });
    await until(async () => (await sim.counts()).in_flight === 1);
    await sim.setConfig({ decode_step_ms: 2_000 });
    expect(await failure(streaming)).toMatch(/ECONNRESET|terminated|closed/);
  });

  test('truncate and content_type answer 200 with what is no answer', async () => {
    await using half = await withFault({ kind: 'truncate' }).start();
    const cut = await ask(half.url, chat('x'));
    expect(cut.status).toBe(200);
    expect(cut.text.startsWith('{"id":"chatcmpl-')).toBe(true);
    expect(() => JSON.parse(cut.text)).toThrow(SyntaxError);
    await using page = await withFault({ kind: 'content_type' }).start();
    const html = await ask(page.url, chat('x'));
    expect([html.status, html.headers.get('content-type')]).toEqual([200, 'text/html']);
    expect(html.text).toContain('<html>');
  });

  test('a fault with a path hits health alone, and DELETE ends it', async () => {
    await using sim = await withFault({ kind: 'status', status: 503, path: '/health' }).start();
    expect((await fetch(`${sim.url}/health`)).status).toBe(503);
    expect((await ask(sim.url, chat('x'))).status).toBe(200);
    await fetch(`${sim.url}/admin/faults`, { method: 'DELETE' });
    expect((await fetch(`${sim.url}/health`)).status).toBe(200);
  });

  test('oom with a delay fails all in flight, makes health 503 and ends the process', async () => {
    await using sim = await startVllmProcess({ flags: ['--profile', 'slow'] });
    const running = ask(sim.url, chat('long', { max_tokens: 2000 }));
    await until(async () => (await sim.counts()).engine.running === 1);
    await sim.setFaults([{ kind: 'oom', delay_ms: 400, exit_code: 3 }]);
    const hit = await ask(sim.url, chat('straw'));
    for (const { status, text } of [hit, await running]) {
      expect(status).toBe(500);
      expect(text).toContain('EngineCore encountered an issue.');
    }
    expect((await fetch(`${sim.url}/health`)).status).toBe(503);
    expect((await ask(sim.url, chat('later'))).status).toBe(500);
    expect(await sim.exited).toEqual({ code: 3, signal: null });
  });

  test('oom without a delay stops listening at once and never says 503', async () => {
    await using sim = await startVllmProcess({ flags: ['--profile', 'slow'] });
    const running = ask(sim.url, chat('long', { max_tokens: 2000 }));
    await until(async () => (await sim.counts()).engine.running === 1);
    await sim.setFaults([{ kind: 'oom', exit_code: 3 }]);
    expect((await ask(sim.url, chat('straw'))).status).toBe(500);
    const from = performance.now();
    const health = await failure(fetch(`${sim.url}/health`));
    expect(health).toMatch(/ECONNREFUSED|ECONNRESET|other side closed/);
    expect((await running).status).toBe(500);
    expect(await sim.exited).toEqual({ code: 3, signal: null });
    expect(performance.now() - from).toBeLessThan(10_000);
  });

  test.for(['slow', 'zero'])(
    'drain_silently refuses new connections and leaves those in flight without a byte (%s)',
    async (profile) => {
      const config = { latency_ms: 300, decode_step_ms: 20 };
      await using sim = await startVllm({ profile, config });
      const socket = connect(sim.port, '127.0.0.1');
      await once(socket, 'connect');
      const seen: string[] = [];
      for (const event of ['data', 'end', 'close', 'error']) {
        socket.on(event, () => seen.push(event));
      }
      const body = JSON.stringify(chat('x', { max_tokens: 2 }));
      const head =
        'POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json';
      socket.write(`${head}\r\ncontent-length: ${body.length}\r\n\r\n${body}`);
      await until(async () => (await sim.counts()).in_flight === 1);
      await sim.setFaults([{ kind: 'drain_silently' }]);
      expect(await failure(fetch(`${sim.url}/health`))).toContain('ECONNREFUSED');
      await new Promise((resolve) => setTimeout(resolve, 700)); // longer than its answer takes
      expect(seen).toEqual([]);
      expect((await sim.counts()).in_flight).toBe(1);
      await sim.close();
      await until(async () => (await sim.counts()).in_flight === 0);
      await until(() => seen.includes('close'));
      expect(seen).not.toContain('data');
    },
  );

  test('exit ends the process at once, and the log on disk knows who did it', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'vllm-sim-'));
    const file = join(folder, 'requests.jsonl');
    try {
      await using sim = await startVllmProcess({ flags: ['--log', file] });
      await ask(sim.url, chat('fine'));
      await sim.setFaults([{ kind: 'exit', exit_code: 137 }]);
      expect(await failure(ask(sim.url, chat('last')))).toMatch(/ECONNRESET|other side closed/);
      expect(await sim.exited).toEqual({ code: 137, signal: null });
      const lines = (await readFile(file, 'utf8')).trim().split('\n');
      const outcomes = lines.map((line) => (JSON.parse(line) as { outcome: string }).outcome);
      expect(outcomes).toEqual(['answered', 'fault']);
      await using next = await startVllmProcess({ flags: ['--log', file], port: sim.port });
      expect(await next.requests()).toHaveLength(2); // a restart keeps the witness
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  test.for([
    ['faults', { faults: [{ kind: 'nonsense' }] }, 'kind must be one of status'],
    [
      'faults',
      { faults: [{ kind: 'reset', rate: 2 }] },
      'rate must be a number from 0 to 1, got 2',
    ],
    ['faults', { faults: [{ kind: 'reset', rat: 1 }] }, 'unknown field rat'],
    ['faults', { fault: [] }, 'unknown field fault'],
    ['config', { max_num_seqs: 0 }, 'max_num_seqs must be a whole number from 1'],
    ['config', { maxSeqs: 1 }, 'unknown field maxSeqs'],
    ['config', { log: 'loud' }, 'log must be off, counts or full'],
    ['config', [], 'the body must be a JSON object'],
  ] as const)('bad admin input is refused: %s %j', async ([path, body, message]) => {
    await using sim = await startVllm();
    const before = await (await fetch(`${sim.url}/admin/config`)).text();
    const answer = await ask(sim.url, body, { path: `/admin/${path}` });
    expect(answer.status).toBe(400);
    expect((JSON.parse(answer.text) as { error: string }).error).toContain(message);
    expect(await (await fetch(`${sim.url}/admin/config`)).text()).toBe(before);
  });
});

describe('the witness', () => {
  test('keeps the bytes of every body and says which came twice', async () => {
    await using sim = await startVllm({ config: { keep_bodies: true } });
    const odd = '{ "messages":[{"role":"user","content":"\\u00fc ü 😀"}] , "x":1.50 }\n';
    await ask(sim.url, odd, { headers: { 'x-request-id': 'r1' } });
    await ask(sim.url, odd);
    await ask(sim.url, chat('other'));
    const [first, ...rest] = await sim.requests({ bodies: true });
    expect(Buffer.from(first?.body ?? '', 'base64').toString()).toBe(odd);
    expect(first).toMatchObject({
      seq: 1,
      path: '/v1/chat/completions',
      sha256: sha256(odd),
      bytes: Buffer.byteLength(odd),
      headers: { 'x-request-id': 'r1' },
      status: 200,
      outcome: 'answered',
      fault: null,
      aborted: false,
    });
    expect(rest).toHaveLength(2);
    expect((await sim.requests())[0]).not.toHaveProperty('body');
    const counts = await sim.counts();
    const name = sha256(odd).slice(0, 14);
    expect(counts).toMatchObject({
      requests: 3,
      by_status: { 200: 3 },
      distinct_bodies: 2,
      repeated: 1,
      repeated_bodies: { [name]: 2 },
      answered_again: 1,
      answered_again_bodies: { [name]: 2 },
    });
    expect(counts.cpu_seconds.user).toBeGreaterThan(0);
  });

  test('counts a client that went away in the middle of its own body', async () => {
    await using sim = await startVllm();
    const socket = connect(sim.port, '127.0.0.1');
    await once(socket, 'connect');
    socket.write('POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{');
    await until(async () => (await sim.counts()).in_flight === 1);
    socket.destroy();
    await until(async () => (await sim.counts()).in_flight === 0);
    expect((await sim.requests())[0]).toMatchObject({ sha256: '', bytes: 0, aborted: true });
    expect((await sim.counts()).distinct_bodies).toBe(0);
  });

  test('a body asked again after a fault is repeated but not answered again', async () => {
    await using sim = await startVllm({ profile: 'zero' });
    await sim.setFaults([{ kind: 'status', status: 503, count: 1 }]);
    for (const status of [503, 200]) {
      expect((await ask(sim.url, chat('retry'))).status).toBe(status);
    }
    expect(await sim.counts()).toMatchObject({ repeated: 1, answered_again: 0, requests: 2 });
    expect(await sim.requests()).toEqual([]); // this profile keeps no entries unless told to
    await sim.setConfig({ log: 'full' });
    await ask(sim.url, chat('logged'));
    expect(await sim.requests()).toHaveLength(1);
  });
});

describe('the process', () => {
  test('listens late, as an engine that loads its model, or answers 503 until then', async () => {
    const from = performance.now();
    await using late = await startVllmProcess({ flags: ['--start-delay', '700'] });
    expect(performance.now() - from).toBeGreaterThan(700);
    expect((await fetch(`${late.url}/health`)).status).toBe(200);
    await using soon = await startVllm({ startDelayMs: 800, startAnswers503: true });
    expect((await fetch(`${soon.url}/health`)).status).toBe(503);
    expect((await ask(soon.url, chat('x'))).status).toBe(503);
    await until(async () => (await fetch(`${soon.url}/health`)).ok);
    expect((await ask(soon.url, chat('x'))).status).toBe(200);
  });

  test('SIGTERM lets it answer what it has', async () => {
    await using sim = await startVllmProcess({ flags: ['--set', 'decode_step_ms=20'] });
    const answer = ask(sim.url, chat('ECHO: one two three four five six seven eight'));
    await until(async () => (await sim.counts()).in_flight === 1);
    const end = sim.kill('SIGTERM');
    expect((await answer).status).toBe(200);
    expect(await end).toEqual({ code: 0, signal: null });
  });

  test('ends when the process that it follows is gone', async () => {
    await using followed = await startVllmProcess();
    await using sim = await startVllmProcess({ flags: ['--parent-pid', String(followed.pid)] });
    await followed.kill('SIGKILL');
    expect(await sim.exited).toEqual({ code: 0, signal: null });
  });

  test('ends when its standard input closes, as after SIGKILL of its parent', async () => {
    const entry = fileURLToPath(new URL('../simulators/vllm.ts', import.meta.url));
    const flags = ['--port', '0', '--until-stdin-closes'];
    const child = spawn(process.execPath, [entry, ...flags], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    await once(child.stdout, 'data');
    const exited = once(child, 'exit');
    child.stdin.end();
    expect(await exited).toEqual([0, null]);
  });

  test('bad flags end it with the reason', async () => {
    const start = startVllmProcess({ flags: ['--set', 'speed=0'] });
    expect(await failure(start)).toContain('ended with 1');
  });

  test('an idle connection is closed after the keep-alive time, unannounced', async () => {
    await using sim = await startVllm({ keepAliveTimeoutMs: 200 });
    const socket = connect(sim.port, '127.0.0.1');
    await once(socket, 'connect');
    socket.write('GET /health HTTP/1.1\r\nhost: x\r\n\r\n');
    let head = '';
    socket.on('data', (chunk: Buffer) => {
      head += chunk.toString();
    });
    await once(socket, 'data');
    const from = performance.now();
    await once(socket, 'close');
    expect(performance.now() - from).toBeLessThan(1000);
    expect(head).toMatch(/^HTTP\/1\.1 200/);
    expect(head.toLowerCase()).not.toContain('keep-alive');
  });
});
