import { readFileSync } from 'node:fs';
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { AnswerStream } from '../../src/dispatcher/stream-answer.ts';
import { joinChat, joinCompletion, takeResponse } from '../../src/dispatcher/stream-answer.ts';
import { streamedRequest } from '../../src/dispatcher/stream-request.ts';

/** One request to vLLM 0.32.0 (a Llama of two layers with random weights, greedy or seeded), asked both ways. */
interface Seen {
  name: string;
  path: string;
  body: object;
  status: number;
  whole: string;
  stream: string;
}

const SEEN = readFileSync(new URL('../support/vllm-streams.jsonl', import.meta.url), 'utf8')
  .trimEnd()
  .split('\n')
  .map((line) => JSON.parse(line) as Seen); // the capture wrote it

/** What differs from one request to the next. */
function masked(text: string): string {
  return text
    .replaceAll(/"id":"[^"]*"/g, '"id":""')
    .replaceAll(/"created(_at)?":\d+/g, '"created":0');
}

function openFor(path: string, body: object): AnswerStream {
  const request = streamedRequest(path, Buffer.from(JSON.stringify(body)));
  if (request === null) throw new Error('it should be streamed');
  return request.openStream();
}

/** Pushes a stream in pieces of these sizes, over and over. */
function push(stream: AnswerStream, text: string, sizes: readonly number[]): void {
  const bytes = Buffer.from(text);
  let at = 0;
  for (let turn = 0; at < bytes.length; turn += 1) {
    const size = sizes[turn % sizes.length] ?? 1;
    stream.push(bytes.subarray(at, at + size));
    at += size;
  }
}

function events(...list: (object | string)[]): string {
  const texts = list.map((each) => (typeof each === 'string' ? each : JSON.stringify(each)));
  return texts.map((text) => `data: ${text}\n\n`).join('');
}

function chunk(delta: object, choice: object = {}, more: object = {}): object {
  const choices = [{ index: 0, delta, finish_reason: null, ...choice }];
  return { id: 'c', object: 'chat.completion.chunk', created: 1, model: 'm', choices, ...more };
}

const STOP = { finish_reason: 'stop' };
const OPENING = chunk({ role: 'assistant', content: '' });

function joined(stream: AnswerStream, text: string, sizes: readonly number[] = [1_000]) {
  push(stream, text, sizes);
  const answer = stream.finish(200);
  return answer && { status: answer.status, body: JSON.parse(answer.body.toString()) as unknown };
}

interface Answered {
  choices: { message: unknown }[];
}

function messageOf(list: object[], beside: '' | null = null): unknown {
  const answer = joined(joinChat(beside), events(...list, '[DONE]'));
  if (answer === null) throw new Error('it should be an answer');
  const { choices } = answer.body as Answered;
  return choices[0]?.message;
}

describe('what vLLM streams is what it would have answered whole', () => {
  test.for(SEEN)('$name', ({ path, body, whole, stream, status }) => {
    const sizes = fc.array(fc.integer({ min: 1, max: 300 }), { minLength: 1, maxLength: 8 });
    fc.assert(
      fc.property(sizes, fc.boolean(), fc.boolean(), (pieces, isCrlf, hasPings) => {
        const pinged = hasPings ? stream.replaceAll('data: ', ': ping\n\ndata: ') : stream;
        const text = isCrlf ? pinged.replaceAll('\n', '\r\n') : pinged;
        const answer = openFor(path, body);
        push(answer, text, pieces);
        const found = answer.finish(200);
        expect(found?.status).toBe(status);
        const compact = JSON.stringify(JSON.parse(found?.body.toString() ?? ''));
        const expected = JSON.stringify(JSON.parse(whole));
        expect(masked(compact)).toBe(masked(expected));
      }),
      { numRuns: 20 },
    );
  });

  test('byte for byte, where it is not an error', () => {
    for (const { path, body, whole, stream } of SEEN.filter((each) => each.status === 200)) {
      const answer = openFor(path, body);
      push(answer, stream, [500]);
      expect(masked(answer.finish(200)?.body.toString() ?? '')).toBe(masked(whole));
    }
  });
});

describe('messages', () => {
  const part = (index: number, more: object) => chunk({ tool_calls: [{ index, ...more }] });
  const CALLS = [
    OPENING,
    part(0, { id: 'call_a', type: 'function', function: { name: 'look', arguments: '' } }),
    part(0, { function: { arguments: '{"a":' } }),
    part(1, { id: 'call_b', type: 'function', function: { name: 'sum', arguments: '{"b"' } }),
    part(0, { function: { arguments: ' 1}' } }),
    part(1, { function: { arguments: ':2}' } }),
    chunk({}, { finish_reason: 'tool_calls' }),
  ];

  test('tool calls are merged by their index, which is left out', () => {
    expect(messageOf(CALLS)).toEqual({
      role: 'assistant',
      content: null,
      tool_calls: [
        { id: 'call_a', type: 'function', function: { name: 'look', arguments: '{"a": 1}' } },
        { id: 'call_b', type: 'function', function: { name: 'sum', arguments: '{"b":2}' } },
      ],
    });
  });

  test.for(['required', { type: 'function', function: { name: 'look' } }])(
    'a call that was demanded (%j) has empty content beside it',
    (choice) => {
      const stream = openFor('/v1/chat/completions', { model: 'm', tool_choice: choice });
      const answer = joined(stream, events(...CALLS, '[DONE]'));
      expect(answer?.body).toHaveProperty(['choices', 0, 'message', 'content'], '');
    },
  );

  test.for(['reasoning', 'reasoning_content'])('%s is joined, with no content beside it', (key) => {
    const list = [
      OPENING,
      chunk({ [key]: 'so ' }),
      chunk({ [key]: 'it is' }),
      chunk({}, { finish_reason: 'length' }),
    ];
    expect(messageOf(list)).toEqual({ role: 'assistant', content: null, [key]: 'so it is' });
  });

  test('refusals and content are joined; an answer of nothing is an empty text', () => {
    const refused = [OPENING, chunk({ refusal: 'I ' }), chunk({ refusal: 'will not' }, STOP)];
    expect(messageOf(refused)).toEqual({ role: 'assistant', content: '', refusal: 'I will not' });
    const both = [OPENING, chunk({ content: 'a', refusal: null }), chunk({ content: 'b' }, STOP)];
    expect(messageOf(both)).toEqual({ role: 'assistant', content: 'ab', refusal: null });
  });

  test('an engine that is not vLLM gets nothing added', () => {
    const usage = { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 };
    const list = [
      chunk({ role: 'assistant', content: '' }, {}, { service_tier: 'default' }),
      chunk({ content: 'a' }, STOP, { system_fingerprint: 'fp_1', usage: null }),
      { ...chunk({}), choices: [], usage },
    ];
    expect(joined(joinChat(null), events(...list, '[DONE]'))?.body).toEqual({
      id: 'c',
      object: 'chat.completion',
      created: 1,
      model: 'm',
      choices: [{ index: 0, message: { role: 'assistant', content: 'a' }, finish_reason: 'stop' }],
      service_tier: 'default',
      system_fingerprint: 'fp_1',
      usage,
    });
  });

  test('a reason to finish that is said twice is one', () => {
    const list = [OPENING, chunk({ content: 'a' }, STOP), chunk({}, STOP)];
    const answer = joined(joinChat(null), events(...list, '[DONE]'));
    expect(answer?.body).toHaveProperty(['choices', 0, 'finish_reason'], 'stop');
  });

  test('keys with a meaning to JavaScript are keys like others', () => {
    const odd =
      '{"choices":[{"index":0,"delta":{"__proto__":"x","content":"a"},"finish_reason":"stop"}]}';
    const stream = joinChat(null);
    push(stream, events(odd, '[DONE]'), [10]);
    expect(stream.finish(200)?.body.toString()).toContain('"__proto__":"x"');
  });

  test('characters that are cut in their middle stay whole', () => {
    const text = events(OPENING, chunk({ content: 'héllo 👋 世界' }, STOP), '[DONE]');
    for (const size of [1, 2, 3, 5]) {
      const answer = joined(joinChat(null), text, [size]);
      const content = ['choices', 0, 'message', 'content'];
      expect(answer?.body).toHaveProperty(content, 'héllo 👋 世界');
    }
  });
});

describe('streams that go wrong', () => {
  const CUT: [string, string][] = [
    ['nothing at all', ''],
    ['no end', events(OPENING, chunk({ content: 'a' }, STOP))],
    ['an end without a reason to finish', events(OPENING, chunk({ content: 'a' }), '[DONE]')],
    ['an end without a choice', events('[DONE]')],
    ['half an event', events(OPENING).slice(0, -10)],
  ];
  test.for(CUT)('%s is no answer', ([, text]) => {
    expect(joined(joinChat(null), text)).toBeNull();
  });

  test('an end without the blank line behind it is an end', () => {
    const text = events(OPENING, chunk({ content: 'a' }, STOP), '[DONE]').trimEnd();
    expect(joined(joinChat(null), text)?.status).toBe(200);
  });

  const ERRORS: [object, number][] = [
    [{ message: 'full', type: 'ServiceUnavailable', param: null, code: 503 }, 503],
    [{ message: 'bad', type: 'BadRequestError', param: null, code: 400 }, 400],
    [{ message: 'odd', code: 'server_error' }, 500],
    [{ message: 'odd', code: 200 }, 500],
  ];
  test.for(ERRORS)('the error %j is the answer, with status %d', ([error, status]) => {
    const text = events(OPENING, chunk({ content: 'a' }), { error }, '[DONE]');
    expect(joined(joinChat(null), text)).toEqual({ status, body: { error } });
  });

  test('an event that is no JSON makes an answer that is none', () => {
    const stream = joinChat(null);
    push(stream, events(OPENING, '<html>', '[DONE]'), [100]);
    expect(stream.isWhole).toBe(true);
    expect(() => JSON.parse(stream.finish(200)?.body.toString() ?? '{}') as unknown).toThrow(
      'not valid JSON',
    );
  });
});

describe('what it holds', () => {
  test('of a long answer not much more than its text', () => {
    const stream = joinCompletion();
    let length = 0;
    for (let n = 0; n < 20_000; n += 1) {
      const text = ` word${n}`;
      length += text.length;
      const choices = [{ index: 0, text, logprobs: null, finish_reason: null }];
      push(stream, events({ id: 'c', created: 1, model: 'm', choices }), [1_000]);
    }
    expect(stream.held).toBeGreaterThanOrEqual(length);
    expect(stream.held).toBeLessThan(length * 1.1);
  });

  test('logprobs and events that are not whole yet', () => {
    const stream = joinChat(null);
    const content = Array.from({ length: 50 }, () => ({ token: 'a', logprob: -1, bytes: [97] }));
    push(stream, events(chunk({ content: 'a' }, { logprobs: { content } })), [1_000]);
    expect(stream.held).toBeGreaterThan(50 * 30);
    const before = stream.held;
    stream.push(Buffer.from(`data: ${'x'.repeat(10_000)}`));
    expect(stream.held).toBeGreaterThan(before + 10_000);
  });
});

describe('responses', () => {
  const WHOLE = '{ "id":"resp_1", "n":12345678901234567890,"output":[],"status":"STATUS"}';
  const last = (status: string) =>
    `{"type":"response.${status}","response":${WHOLE.replace('STATUS', status)},"sequence_number":9}`;
  const BEGUN = 'event: response.created\ndata: {"type":"response.created","response":{}}\n\n';

  test.for(['completed', 'incomplete', 'failed'])('%s holds the answer, as it came', (status) => {
    const stream = takeResponse();
    push(stream, `${BEGUN}event: response.${status}\ndata: ${last(status)}\n\n`, [7]);
    expect(stream.isWhole).toBe(true);
    expect(stream.finish(200)?.body.toString()).toBe(WHOLE.replace('STATUS', status));
  });

  test('events without names say their type inside', () => {
    const stream = takeResponse();
    push(stream, events({ type: 'response.created', response: {} }, last('completed')), [9]);
    expect(stream.finish(200)?.body.toString()).toBe(WHOLE.replace('STATUS', 'completed'));
  });

  test('an error is the answer, in the envelope of errors', () => {
    const error = { type: 'error', code: 'server_error', message: 'it broke', param: null };
    const found = joined(takeResponse(), `${BEGUN}event: error\n${events(error)}`);
    expect(found).toEqual({ status: 500, body: { error } });
    const enveloped = { error: { message: 'full', code: 503 } };
    const other = joined(takeResponse(), `event: error\n${events(enveloped)}`);
    expect(other).toEqual({ status: 503, body: enveloped });
  });

  test('without the last event there is no answer', () => {
    expect(joined(takeResponse(), BEGUN)).toBeNull();
  });
});

describe('asking for a stream', () => {
  const CHAT = '/v1/chat/completions';

  function bodyOf(path: string, text: string): string | undefined {
    return streamedRequest(path, Buffer.from(text))?.body.toString();
  }

  const SPLICED: [string, string][] = [
    ['{}', '{"stream":true,"stream_options":{"include_usage":true}}'],
    [
      '{ "n": 12345678901234567890 , "b":[ 1 ] }',
      '{ "n": 12345678901234567890 , "b":[ 1 ],"stream":true,"stream_options":{"include_usage":true} }',
    ],
    ['{"stream": false, "a":1}', '{"stream": true, "a":1,"stream_options":{"include_usage":true}}'],
    [
      '{"stream":null,"stream_options": { "continuous_usage_stats":true }, "a":{"stream":false}}',
      '{"stream":true,"stream_options": { "continuous_usage_stats":true,"include_usage":true }, "a":{"stream":false}}',
    ],
    [
      '{"stream_options":{"include_usage":false},"stream_options":null}',
      '{"stream_options":{"include_usage":true},"stream_options":{"include_usage":true},"stream":true}',
    ],
    [
      String.raw`{"str\u0065am":false,"stream":0}`,
      String.raw`{"str\u0065am":true,"stream":true,"stream_options":{"include_usage":true}}`,
    ],
  ];
  test.for(SPLICED)('%s', ([text, expected]) => {
    expect(bodyOf(CHAT, text)).toBe(expected);
    expect(bodyOf('/v1/completions', text)).toBe(expected);
  });

  test('of responses only the stream', () => {
    expect(bodyOf('/v1/responses', '{"input":"x"}')).toBe('{"input":"x","stream":true}');
  });

  test('nothing else is changed in any body', () => {
    const keys = fc.oneof(fc.string(), fc.constantFrom('stream', 'stream_options', 'a"b'));
    const bodies = fc.dictionary(keys, fc.jsonValue(), { noNullPrototype: true });
    fc.assert(
      fc.property(bodies, (given) => {
        const body = { ...given, echo: false, prompt_logprobs: null, use_beam_search: false };
        const found = bodyOf(CHAT, JSON.stringify(body)) ?? '';
        const options: unknown = (given as Record<string, unknown>)['stream_options'];
        const own = typeof options === 'object' && !Array.isArray(options) ? options : {};
        const expected = {
          ...body,
          stream: true,
          stream_options: { ...own, include_usage: true },
        };
        expect(JSON.parse(found)).toEqual(JSON.parse(JSON.stringify(expected)));
      }),
    );
  });

  const WHOLE_ONLY: [string, string][] = [
    [CHAT, '{"prompt_logprobs":1}'],
    [CHAT, '{"echo":true}'],
    [CHAT, '{"use_beam_search":true}'],
    ['/v1/completions', '{"echo":true,"logprobs":0}'],
    ['/v1/responses', '{"background":true}'],
    ['/v1/embeddings', '{"input":"x"}'],
    [CHAT, '[]'],
    [CHAT, '{'],
  ];
  test.for(WHOLE_ONLY)('%s %s is not streamed', ([path, text]) => {
    expect(streamedRequest(path, Buffer.from(text))).toBeNull();
  });

  test('an echo without logprobs is', () => {
    expect(streamedRequest('/v1/completions', Buffer.from('{"echo":true}'))).not.toBeNull();
  });
});
