import OpenAI from 'openai';
import { describe, expect, test } from 'vitest';
import { sha256 } from '../simulators/vllm/digest.ts';
import { startVllm } from '../simulators/vllm/simulator.ts';
import { until } from '../support/until.ts';
import { ask, chat, contentOf, failure, metric } from '../support/vllm-client.ts';

describe('answers', () => {
  test('the same body gets the same bytes, from any simulator and profile speed', async () => {
    await using one = await startVllm({ profile: 'zero', seed: 1 });
    await using two = await startVllm({ profile: 'zero', seed: 2 });
    const body = JSON.stringify(chat('hello', { max_tokens: 20 }));
    const first = await ask(one.url, body);
    expect(first.status).toBe(200);
    expect((await ask(one.url, body)).text).toBe(first.text);
    expect((await ask(two.url, body)).text).toBe(first.text);
    expect((await ask(one.url, `${body} `)).text).not.toBe(first.text);
    expect(contentOf(first.text).startsWith(`sim-${sha256(body).slice(0, 16)} `)).toBe(true);
    expect(contentOf(first.text).split(' ')).toHaveLength(20);
  });

  test('ECHO: in the last user message chooses the answer', async () => {
    await using sim = await startVllm();
    const text = 'Größe: "12 µm"\n  and a tail  ';
    expect(contentOf((await ask(sim.url, chat(`please ECHO: ${text}`))).text)).toBe(text);
  });

  test('max_tokens makes answers as large as a client may have to take', async () => {
    await using sim = await startVllm({ profile: 'zero' });
    const answer = await ask(sim.url, chat('long', { max_tokens: 8_000_000 }));
    expect(answer.text.length).toBeGreaterThan(64 * 1024 * 1024);
    const parsed = JSON.parse(answer.text) as OpenAI.ChatCompletion;
    expect(parsed.usage?.completion_tokens).toBe(8_000_000);
    expect(parsed.choices[0]?.finish_reason).toBe('length');
    expect(parsed.choices[0]?.message.content?.split(' ')).toHaveLength(8_000_000);
  });

  test.for(['small', 'zero'])(
    'the OpenAI client understands every endpoint (%s)',
    async (profile) => {
      await using sim = await startVllm({ profile });
      const client = new OpenAI({ baseURL: `${sim.url}/v1`, apiKey: 'none', maxRetries: 0 });
      const messages = [{ role: 'user' as const, content: 'hi' }];
      const asked = { model: 'sim-model', messages, max_tokens: 7, n: 2 };

      const whole = await client.chat.completions.create(asked);
      expect(whole.choices).toHaveLength(2);
      expect(whole.usage?.completion_tokens).toBe(14);

      const usage = { include_usage: true };
      const stream = await client.chat.completions.create({
        ...asked,
        n: 1,
        stream: true,
        stream_options: usage,
      });
      let streamed = '';
      let tokens = 0;
      let finish: string | null | undefined;
      for await (const chunk of stream) {
        streamed += chunk.choices[0]?.delta.content ?? '';
        finish = chunk.choices[0]?.finish_reason ?? finish;
        tokens = chunk.usage?.completion_tokens ?? tokens;
      }
      expect(streamed.split(' ')).toHaveLength(7);
      expect({ tokens, finish }).toEqual({ tokens: 7, finish: 'length' });

      const completion = await client.completions.create({
        model: 'sim-model',
        prompt: ['a', 'b'],
      });
      expect(completion.choices.map(({ index }) => index)).toEqual([0, 1]);
      expect(completion.usage?.completion_tokens).toBe(32); // vLLM's default of 16 each

      const vectors = await client.embeddings.create({
        model: 'sim-model',
        input: ['a', 'b', 'a'],
      });
      const [a, b, again] = vectors.data.map(({ embedding }) => embedding);
      expect(a).toHaveLength(64);
      expect(again).toEqual(a);
      expect(b).not.toEqual(a);

      const reply = await client.responses.create({ model: 'sim-model', input: 'ECHO: yes' });
      expect({ text: reply.output_text, status: reply.status }).toEqual({
        text: 'yes',
        status: 'completed',
      });
      const events = await client.responses.create({
        model: 'sim-model',
        input: 'hi',
        max_output_tokens: 3,
        stream: true,
      });
      let deltas = '';
      let last = '';
      for await (const event of events) {
        if (event.type === 'response.output_text.delta') deltas += event.delta;
        last = event.type;
      }
      expect({ words: deltas.split(' ').length, last }).toEqual({
        words: 3,
        last: 'response.incomplete',
      });
      expect((await client.models.list()).data.map(({ id }) => id)).toEqual(['sim-model']);
    },
  );

  test('rerank and score are sorted, cut and stable', async () => {
    await using sim = await startVllm();
    const documents = ['one', 'two', 'three'];
    const texts: string[] = [];
    for (const path of ['/rerank', '/v1/rerank', '/v2/rerank']) {
      texts.push((await ask(sim.url, { query: 'q', documents, top_n: 2 }, { path })).text);
    }
    expect(new Set(texts).size).toBe(1);
    const { results } = JSON.parse(texts[0] ?? '') as {
      results: { index: number; relevance_score: number }[];
    };
    expect(results).toHaveLength(2);
    expect(results[0]?.relevance_score).toBeGreaterThan(results[1]?.relevance_score ?? 1);
    const score = await ask(sim.url, { text_1: 'q', text_2: documents }, { path: '/v1/score' });
    const { data } = JSON.parse(score.text) as { data: { score: number }[] };
    expect(data[results[0]?.index ?? -1]?.score).toBe(results[0]?.relevance_score);
  });

  test('what vLLM refuses is refused with its status and envelope', async () => {
    await using sim = await startVllm({ config: { max_model_len: 100 }, apiKey: 'k' });
    const headers = { authorization: 'Bearer k' };
    const refusals: [unknown, number, string][] = [
      [chat('x', { model: 'other' }), 404, 'The model `other` does not exist.'],
      [chat('x', { max_tokens: 0 }), 400, 'max_tokens must be at least 1, got 0.'],
      [chat('x', { max_tokens: 99 }), 400, "This model's maximum context length is 100 tokens."],
      [{ model: 'sim-model' }, 400, "'loc': 'body.messages'"],
      ['{"model":', 400, 'JSON decode error'],
    ];
    for (const [body, status, message] of refusals) {
      const answer = await ask(sim.url, body, { headers });
      const { error } = JSON.parse(answer.text) as { error: { message: string; code: number } };
      expect(error.message).toContain(message);
      expect([answer.status, error.code]).toEqual([status, status]);
    }
    const plain = await ask(sim.url, chat('x'), {
      headers: { ...headers, 'content-type': 'text/plain' },
    });
    expect(plain.status).toBe(400);
    expect((await ask(sim.url, chat('x'))).status).toBe(401);
    expect((await fetch(`${sim.url}/health`)).status).toBe(200); // open even with a key
    expect((await fetch(`${sim.url}/v1/nothing`, { headers })).status).toBe(404);
    expect((await sim.counts()).by_outcome).toMatchObject({ answered: 0, refused: 7 });
  });

  test('tokenize can be undone, version, load and ping are there', async () => {
    await using sim = await startVllm();
    const { text } = await ask(sim.url, { prompt: 'hellö world' }, { path: '/tokenize' });
    const back = await ask(sim.url, text, { path: '/detokenize' });
    expect(JSON.parse(back.text)).toEqual({ prompt: 'hellö world' });
    for (const path of ['/ping', '/version', '/load']) {
      expect({ path, status: (await fetch(sim.url + path)).status }).toEqual({ path, status: 200 });
    }
  });
});

describe('continuous batching', () => {
  test('the third of three requests waits when two may run', async () => {
    await using sim = await startVllm({ profile: 'slow', config: { max_num_seqs: 2 } });
    const all = Promise.all([1, 2, 3].map((i) => ask(sim.url, chat(`q${i}`, { max_tokens: 20 }))));
    await until(async () => (await sim.counts()).in_flight === 3);
    await until(async () => (await metric(sim.url, 'vllm:num_requests_waiting')) === 1);
    expect(await metric(sim.url, 'vllm:num_requests_running')).toBe(2);
    await sim.setConfig({ speed: 100 });
    const statuses = (await all).map(({ status }) => status);
    expect(statuses).toEqual([200, 200, 200]);
    expect(await metric(sim.url, 'vllm:num_requests_running')).toBe(0);
    expect(await metric(sim.url, 'vllm:generation_tokens_total')).toBe(60);
    expect(await metric(sim.url, 'vllm:request_success_total')).toBe(3);
    expect(await metric(sim.url, 'vllm:time_to_first_token_seconds_count')).toBe(3);
    expect(await metric(sim.url, 'vllm:inter_token_latency_seconds_count')).toBe(57);
  });

  test('a batch takes hardly longer than one request, and less than one after the other', async () => {
    const config = { decode_step_ms: 10, max_num_seqs: 16 };
    await using sim = await startVllm({ config });
    const timed = async (count: number): Promise<number> => {
      const from = performance.now();
      const asks = Array.from({ length: count }, (_, i) =>
        ask(sim.url, chat(`${count}:${i}`, { max_tokens: 20 })),
      );
      await Promise.all(asks);
      return performance.now() - from;
    };
    const alone = await timed(1);
    expect(alone).toBeGreaterThan(195);
    const sixteen = await timed(16);
    expect(sixteen).toBeLessThan(alone * 5);
    expect(sixteen).toBeGreaterThan(195);
  });

  test('a shared prefix is computed once', async () => {
    await using sim = await startVllm();
    const system = { role: 'system', content: 'x'.repeat(64 * 20) };
    for (const content of ['a', 'b']) {
      const messages = [system, { role: 'user', content }];
      await ask(sim.url, { messages, max_tokens: 1 });
    }
    const { prefix_cache: cache } = await sim.counts();
    expect(cache.hits).toBe(20 * 16);
    expect(cache.queries).toBeGreaterThan(2 * cache.hits);
    expect(await metric(sim.url, 'vllm:prefix_cache_hits_total')).toBe(cache.hits);
    expect(await metric(sim.url, 'vllm:kv_cache_usage_perc')).toBe(0);
  });

  test('an overcommitted KV cache preempts and lowers throughput', async () => {
    const config = { speed: 20, max_num_seqs: 8, num_gpu_blocks: 4096 };
    const timed = async (blocks: number): Promise<[ms: number, preemptions: number]> => {
      await using sim = await startVllm({ profile: 'slow', config });
      await sim.setConfig({ num_gpu_blocks: blocks });
      const from = performance.now();
      const asks = Array.from({ length: 8 }, (_, i) =>
        ask(sim.url, chat(`${i} ${'y'.repeat(200)}`, { max_tokens: 120 })),
      );
      for (const { status } of await Promise.all(asks)) expect(status).toBe(200);
      const { engine } = await sim.counts();
      expect(engine).toMatchObject({ running: 0, waiting: 0, kv_cache_usage: 0 });
      expect(await metric(sim.url, 'vllm:num_preemptions_total')).toBe(engine.preemptions);
      return [performance.now() - from, engine.preemptions];
    };
    const [roomy, none] = await timed(4096);
    const [tight, some] = await timed(40);
    expect(none).toBe(0);
    expect(some).toBeGreaterThan(3);
    expect(tight).toBeGreaterThan(roomy * 1.3);
  });

  test('a stream sends its tokens as the engine makes them', async () => {
    await using sim = await startVllm({ config: { decode_step_ms: 30 } });
    const answer = await fetch(`${sim.url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(chat('x', { max_tokens: 10, stream: true })),
    });
    expect(answer.headers.get('content-type')).toBe('text/event-stream; charset=utf-8');
    const times: number[] = [];
    let text = '';
    for await (const chunk of answer.body ?? []) {
      times.push(performance.now());
      text += Buffer.from(chunk).toString();
    }
    expect(text.endsWith('data: [DONE]\n\n')).toBe(true);
    expect((times.at(-1) ?? 0) - (times[0] ?? 0)).toBeGreaterThan(200); // nine steps of 30 ms
    expect(times.length).toBeGreaterThan(4);
  });

  test('a fixed latency without a model holds many at once', async () => {
    await using sim = await startVllm({ profile: 'zero', config: { latency_ms: 200 } });
    const from = performance.now();
    const asks = Array.from({ length: 64 }, (_, i) => ask(sim.url, chat(`q${i}`)));
    for (const { status } of await Promise.all(asks)) expect(status).toBe(200);
    expect(performance.now() - from).toBeGreaterThan(195);
    expect((await sim.counts()).max_in_flight).toBe(64);
  });

  test('max_num_queued_reqs refuses with 503 what is too much', async () => {
    await using sim = await startVllm({ profile: 'slow', config: { max_num_queued_reqs: 2 } });
    const held = [1, 2].map((i) => ask(sim.url, chat(`q${i}`, { max_tokens: 5 })));
    await until(async () => (await sim.counts()).engine.running === 2);
    expect((await ask(sim.url, chat('q3'))).status).toBe(503);
    expect(await metric(sim.url, 'vllm:admission_rejections_total')).toBe(1);
    await Promise.all(held);
  });

  test('a client that hangs up frees its place', async () => {
    await using sim = await startVllm({ profile: 'slow', config: { max_num_seqs: 1 } });
    const controller = new AbortController();
    const { signal } = controller;
    const first = ask(sim.url, chat('first', { max_tokens: 1000 }), { signal });
    await until(async () => (await sim.counts()).engine.running === 1);
    controller.abort();
    expect(await failure(first)).toContain('abort');
    expect((await ask(sim.url, chat('second', { max_tokens: 1 }))).status).toBe(200);
    const [entry] = await sim.requests();
    expect(entry).toMatchObject({ aborted: true, outcome: 'aborted', status: null });
    const text = await (await fetch(`${sim.url}/metrics`)).text();
    expect(text).toMatch(/vllm:request_success_total\{.*finished_reason="abort"\} 1\.0/);
  });

  test('knee_seqs: beyond it more requests at once get less done', async () => {
    const config = { max_num_seqs: 64, decode_step_ms: 2, knee_seqs: 8, knee_power: 2 };
    await using sim = await startVllm({ profile: 'small', config });
    async function time(count: number): Promise<number> {
      const from = performance.now();
      const asks = Array.from({ length: count }, (_, i) =>
        ask(sim.url, chat(`${count} ${i}`, { max_tokens: 20 })),
      );
      await Promise.all(asks);
      return performance.now() - from;
    }
    // Three times as many take about nine times as long a step, not as long as three rounds of eight.
    expect(await time(24)).toBeGreaterThan(4 * (await time(8)));
  });

  test('answer_decades: lengths spread over so many powers of ten, on a logarithmic scale alike', async () => {
    const config = { answer_tokens: 50, answer_decades: 2 };
    await using sim = await startVllm({ profile: 'zero', config });
    const asks = Array.from({ length: 300 }, async (_, i) => {
      const { usage } = JSON.parse(
        (await ask(sim.url, chat(`${i}`))).text,
      ) as OpenAI.ChatCompletion;
      return usage?.completion_tokens ?? 0;
    });
    const lengths = (await Promise.all(asks)).toSorted((a, b) => a - b);
    expect(lengths[0]).toBeLessThan(7);
    expect(lengths[0]).toBeGreaterThanOrEqual(5);
    expect(lengths[299]).toBeGreaterThan(400);
    expect(lengths[299]).toBeLessThanOrEqual(500);
    const short = lengths.filter((length) => length < 50).length;
    expect(short).toBeGreaterThan(120);
    expect(short).toBeLessThan(180);
  });

  test('metrics: false hides /metrics and nothing else; a profile may leave the unusual fields out', async () => {
    await using sim = await startVllm({ profile: 'small', config: { metrics: false } });
    expect((await fetch(`${sim.url}/metrics`)).status).toBe(404);
    expect((await ask(sim.url, chat('x', { max_tokens: 5 }))).status).toBe(200);
    expect((await sim.counts()).generated_tokens).toBe(5);
    const config = await sim.setConfig({ metrics: true });
    expect(config).toMatchObject({ knee_seqs: 0, knee_power: 0, answer_decades: 0 });
    expect(await metric(sim.url, 'vllm:generation_tokens_total')).toBe(5);
  });

  test.for(['knee', 'decades', 'no-metrics'])('profile %s answers', async (profile) => {
    await using sim = await startVllm({ profile });
    expect((await ask(sim.url, chat('x', { max_tokens: 2 }))).status).toBe(200);
  });
});
