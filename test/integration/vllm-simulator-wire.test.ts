import { request } from 'node:http';
import type { IncomingMessage } from 'node:http';
import { once } from 'node:events';
import { describe, expect, test } from 'vitest';
import { findJsonFault } from '../simulators/vllm/json-fault.ts';
import { startVllm } from '../simulators/vllm/simulator.ts';
import { ask, chat, metric } from '../support/vllm-client.ts';

/*
 * What vLLM 0.32.0 was seen to say, word for word.
 */

interface Refusal {
  message: string;
  type: string;
  param: string | null;
  code: number;
}

const EMBEDDINGS = '/v1/embeddings';
const model = 'sim-model';

describe('refusals', () => {
  async function refusal(
    body: unknown,
    path: string,
    headers: Record<string, string> = {},
  ): Promise<Refusal> {
    await using sim = await startVllm({ profile: 'zero', config: { max_model_len: 100 } });
    const answer = await ask(sim.url, body, { path, headers });
    const { error } = JSON.parse(answer.text) as { error: Refusal };
    expect(error.code).toBe(answer.status);
    return error;
  }

  const entry = (field: string, items: number): string =>
    `  {'type': 'missing', 'loc': 'body.${field}', 'msg': 'Field required', 'input': '<dict of ${items} items>'}`;

  test('a missing field', async () => {
    expect(await refusal({ model, query: 'a cat' }, '/v1/rerank')).toEqual({
      message: `1 validation error:\n${entry('documents', 2)}`,
      type: 'Bad Request',
      param: 'body.documents',
      code: 400,
    });
  });

  test.for([
    [{ model }, EMBEDDINGS, 'input messages messages messages input messages input'],
    [
      { model, text_1: 'a cat' },
      '/v1/score',
      'queries documents queries items data_1 data_2 text_2',
    ],
    [{ model }, '/tokenize', 'prompt messages'],
  ] as const)('%j to %s: every variant of a union complains', async ([body, path, fields]) => {
    const error = await refusal(body, path);
    const names = fields.split(' ');
    const lines = names.map((name) => entry(name, Object.keys(body).length));
    expect(error.message).toBe(`${names.length} validation errors:\n${lines.join('\n')}`);
    expect(error.param).toBe(`body.${names[0]}`);
  });

  test.for([
    ['{"model":"minilm","input":"hi', 26, 'Unterminated string starting at'],
    ['{"a":1,}', 7, 'Expecting property name enclosed in double quotes'],
    ['{"a":tru}', 5, 'Expecting value'],
    ['{"a" 1}', 5, "Expecting ':' delimiter"],
    ['{"a":[1 {}]}', 8, "Expecting ',' delimiter"],
    ['{"a":[{},[]]} x', 14, 'Extra data'],
    ['{"a":"\t"}', 6, 'Invalid control character at'],
  ] as const)('malformed JSON: %s', async ([body, at, why]) => {
    const quoted = why.includes("'") ? `"${why}"` : `'${why}'`;
    const error = await refusal(body, EMBEDDINGS);
    expect(error.message).toBe(
      `1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.${at}', 'msg': 'JSON decode error', ` +
        `'input': '<dict of 0 items>', 'ctx': {'error': ${quoted}}}`,
    );
    expect(error.param).toBe(`body.${at}`);
  });

  test('JSON without a fault has none', () => {
    const value = { a: [1.5e-3, -2, true, null, '\u00fc\n"'], b: {}, c: [{ d: [] }] };
    expect(findJsonFault(JSON.stringify(value, null, 2))).toBeUndefined();
  });

  test('no body, a body that is no object, another content type', async () => {
    expect(await refusal('', EMBEDDINGS)).toMatchObject({
      message:
        "1 validation error:\n  {'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': 'None'}",
      param: 'body',
    });
    const list = await refusal([1], EMBEDDINGS);
    expect(list.message).toMatch(/^5 validation errors:\n {2}\{'type': 'model_attributes_type'/);
    expect(list.message.split("'input': '<list of 1 items>'}")).toHaveLength(6);
    const plain = await refusal({ model }, EMBEDDINGS, { 'content-type': 'text/plain' });
    expect(plain).toEqual({
      message: "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
      type: 'Bad Request',
      param: null,
      code: 400,
    });
  });

  test('wrong types and words', async () => {
    const types = await refusal({ model: 5, input: 'x' }, EMBEDDINGS);
    expect(types.message).toContain(
      "{'type': 'string_type', 'loc': 'body.model', 'msg': 'Input should be a valid string', 'input': '5'}",
    );
    const many = await refusal({ model, input: 'x', dimensions: 'm'.repeat(300) }, EMBEDDINGS);
    expect(many.message).toContain("'type': 'int_parsing', 'loc': 'body.dimensions'");
    expect(many.message).toContain(`'input': '${'m'.repeat(200)}...[truncated]'}`);
    const format = await refusal({ model, input: 'x', encoding_format: 'weird' }, EMBEDDINGS);
    expect(format.message).toContain(
      `'msg': "Input should be 'float', 'base64', 'bytes' or 'bytes_only'", 'input': 'weird', ` +
        `'ctx': {'expected': "'float', 'base64', 'bytes' or 'bytes_only'"}}`,
    );
    expect(await refusal({ model, input: [] }, EMBEDDINGS)).toMatchObject({
      message: 'You must pass at least one prompt',
      type: 'BadRequestError',
      param: null,
    });
  });

  const limit = "This model's maximum context length is 100 tokens. However, your prompt contains";
  const plea = 'Please reduce the length of the input prompt.';
  const over = `input tokens, which exceeds this limit even without any output tokens. ${plea}`;

  test.for([
    ['x'.repeat(404), `at least 101 ${over} (parameter=input_tokens, value=101)`],
    [Array(600).fill(5), `600 ${over} (parameter=input_tokens, value=600)`],
    [Array(101).fill(5), `at least 101 ${over} (parameter=input_tokens, value=101)`],
    [
      'x'.repeat(1801),
      `1801 characters (more than 1800 characters, which is the upper bound for 100 input tokens). ` +
        `${plea} (parameter=input_text, value=1801)`,
    ],
  ] as const)('too long input, case %#', async ([input, words]) => {
    const error = await refusal({ model, input }, EMBEDDINGS);
    expect(error.message).toBe(`${limit} ${words}`);
    expect(error.type).toBe('BadRequestError');
    expect(error.param).toBe(words.includes('input_text') ? 'input_text' : 'input_tokens');
  });

  test('an unknown model is named as a parameter only where text is generated', async () => {
    const { messages } = chat('x');
    const other = { model: 'nope', input: 'x', text_1: 'a', text_2: 'b', messages };
    for (const path of [EMBEDDINGS, '/v1/score']) {
      expect(await refusal(other, path)).toMatchObject({ code: 404, param: null });
    }
    expect(await refusal(other, '/v1/chat/completions')).toMatchObject({ param: 'model' });
  });
});

describe('the wire', () => {
  test('ids of tokens count as tokens, up to the whole context', async () => {
    await using sim = await startVllm({ config: { max_model_len: 100 } });
    const input = [Array(100).fill(101), [7632, 2045]];
    const answer = await ask(sim.url, { model, input }, { path: EMBEDDINGS });
    const { usage } = JSON.parse(answer.text) as { usage: object };
    expect(usage).toEqual({
      prompt_tokens: 102,
      total_tokens: 102,
      completion_tokens: 0,
      prompt_tokens_details: null,
      completion_tokens_details: null,
    });
  });

  test('an id has 16 hex digits, or is what the client sent', async () => {
    await using sim = await startVllm({ profile: 'zero' });
    const bodies = [
      [EMBEDDINGS, 'embd-', { model, input: 'x' }],
      ['/v1/rerank', 'score-', { model, query: 'x', documents: ['y'] }],
      ['/v1/score', 'score-', { model, text_1: 'x', text_2: 'y' }],
      ['/v1/chat/completions', 'chatcmpl-', chat('x')],
      ['/v1/completions', 'cmpl-', { model, prompt: 'x' }],
    ] as const;
    for (const [path, prefix, body] of bodies) {
      const idOf = async (headers: Record<string, string>): Promise<string> => {
        const { text } = await ask(sim.url, body, { path, headers });
        return (JSON.parse(text) as { id: string }).id;
      };
      expect(await idOf({})).toMatch(new RegExp(`^${prefix}[0-9a-f]{16}$`));
      expect(await idOf({ 'x-request-id': 'a"bc' })).toBe(`${prefix}a"bc`);
    }
  });

  test('embeddings are float32 in full, the same as in base64', async () => {
    await using sim = await startVllm({ profile: 'zero' });
    const get = async (more: object): Promise<unknown> => {
      const { text } = await ask(sim.url, { model, input: 'x', ...more }, { path: EMBEDDINGS });
      return (JSON.parse(text) as { data: { embedding: unknown }[] }).data[0]?.embedding;
    };
    const floats = (await get({})) as number[];
    expect(floats.some((x) => String(x).length > 12)).toBe(true);
    const bytes = Buffer.from((await get({ encoding_format: 'base64' })) as string, 'base64');
    expect(floats).toEqual(floats.map((_, i) => bytes.readFloatLE(4 * i)));
  });

  test('methods, paths and headers', async () => {
    await using sim = await startVllm();
    const get = async (path: string, method = 'GET'): Promise<IncomingMessage> => {
      const req = request(sim.url + path, { method }).end();
      const [res] = (await once(req, 'response')) as [IncomingMessage];
      res.resume();
      return res;
    };
    for (const [path, allow, method] of [
      [EMBEDDINGS, 'POST', 'GET'],
      ['/tokenize', 'POST', 'GET'],
      ['/health', 'GET', 'HEAD'],
    ] as const) {
      const res = await get(path, method);
      expect(res.statusCode).toBe(405);
      expect(res.headers).toMatchObject({ allow, 'content-length': '31' });
    }
    const body = await (await fetch(sim.url + EMBEDDINGS)).text();
    expect(body).toBe('{"detail":"Method Not Allowed"}');
    // vLLM has no /ready; the mock engine that AIBrix's templates name has one.
    for (const path of ['/health', '/ping', '/ready']) {
      expect((await get(path)).headers).not.toHaveProperty('content-type');
    }
    const { headers } = await get('/metrics');
    expect(headers['content-type']).toBe('text/plain; version=1.0.0; charset=utf-8');
    expect(headers).toMatchObject({ server: 'uvicorn', vary: 'Origin' });
  });

  test('metrics', async () => {
    await using sim = await startVllm();
    await ask(sim.url, chat('x', { n: 2, max_tokens: 5 }));
    await ask(sim.url, { model, input: ['a', 'b'] }, { path: EMBEDDINGS });
    const read = (name: string): Promise<number> => metric(sim.url, `vllm:${name}`);
    for (const cache of ['external_prefix_cache', 'mm_cache']) {
      expect(await read(`${cache}_queries_total`)).toBe(0);
      expect(await read(`${cache}_hits_total`)).toBe(0);
    }
    expect(await read('request_num_preemptions_count')).toBe(4);
    expect(await read('request_max_num_generation_tokens_sum')).toBe(10);
    expect(await read('request_params_n_sum')).toBe(3);
    expect(await read('request_params_max_tokens_count')).toBe(0);
  });
});
