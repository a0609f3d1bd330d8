import { expect, test } from 'vitest';
import { affinityOf, orderForCache } from '../../src/dispatcher/prefix-order.ts';
import type { InputLine } from '../../src/dispatcher/lines.ts';

const CHAT = '/v1/chat/completions';
const LONG = 'x'.repeat(300);

function line(index: number, body: object | string): InputLine {
  const text = typeof body === 'string' ? body : JSON.stringify(body);
  const bytes = Buffer.from(`{"custom_id":"messages","body":${text}}`);
  return { index, number: index + 1, offset: 0, end: 0, bytes };
}

function chat(index: number, system: string, more: Record<string, unknown> = {}): InputLine {
  const messages = [
    { role: 'system', content: system },
    { role: 'user', content: `question ${index}` },
  ];
  return line(index, { model: 'm', ...more, messages });
}

function indexes(lines: readonly InputLine[]): number[] {
  return lines.map(({ index }) => index);
}

test('lines that begin alike come one after the other', () => {
  const lines = Array.from({ length: 60 }, (_, n) => chat(n, `${n % 3} ${LONG}`));
  const ordered = indexes(orderForCache(lines, CHAT));
  expect(ordered.toSorted((a, b) => a - b)).toEqual(indexes(lines));
  const changes = ordered.filter((n, at) => at > 0 && n % 3 !== (ordered[at - 1] ?? 0) % 3);
  expect(changes).toHaveLength(2);
});

test('groups with the longest generation come first, and so do long ones in a group', () => {
  const limits = [5, 9, 7, 1, 9, 3];
  const lines = limits.map((most, n) => chat(n, `${n % 2} ${LONG}`, { max_tokens: most }));
  // Group 1 has 9, 1, 3 (and 9 at 4 is of group 0): of equals the first bytes decide.
  expect(indexes(orderForCache(lines, CHAT))).toEqual([4, 2, 0, 1, 5, 3]);
});

test.for(['max_tokens', 'max_completion_tokens'])('%s alone makes an order', (name) => {
  const lines = [3, 30, 3].map((most, n) => chat(n, `${n}${LONG}`, { [name]: most }));
  expect(indexes(orderForCache(lines, CHAT))).toEqual([1, 0, 2]);
});

test('one without a limit may become longest', () => {
  const lines = [{ max_tokens: 9 }, {}, { max_tokens: 10 }].map((more, n) => chat(n, `${n}`, more));
  expect(indexes(orderForCache(lines, CHAT))).toEqual([1, 2, 0]);
});

test('without a shared beginning or a difference in length lines stay as they are', () => {
  const lines = Array.from({ length: 50 }, (_, n) => chat((n * 7) % 50, `${(n * 7) % 50} ${LONG}`));
  expect(orderForCache(lines, CHAT)).toBe(lines);
  const short = [3, 1, 2].map((n) => chat(n, `rule ${n}`));
  expect(orderForCache(short, CHAT), 'a few bytes are not worth it').toBe(short);
});

test('what the text of a prompt says is no member', () => {
  const quoted = '"messages": "max_tokens": 900';
  const lines = [chat(0, quoted), chat(1, 'x', { max_tokens: 5 }), chat(2, 'y', { max_tokens: 6 })];
  const all = lines.map((each, n) => (n === 0 ? chat(0, quoted, { max_tokens: 1 }) : each));
  expect(indexes(orderForCache(all, CHAT))).toEqual([2, 1, 0]);
});

test('lines that cannot be read come first, and none is lost', () => {
  const long = { ...line(1, {}), bytes: null };
  const lines = [chat(0, 'a', { max_tokens: 1 }), long, line(2, '5'), chat(3, 'b')];
  expect(indexes(orderForCache(lines, CHAT))).toEqual([1, 2, 3, 0]);
});

test('prompts and inputs of other endpoints are found', () => {
  const prompts = [1, 2, 1, 2].map((group, n) => line(n, { prompt: `${group} ${LONG} ${n}` }));
  expect(indexes(orderForCache(prompts, '/v1/completions'))).toEqual([0, 2, 1, 3]);
  const inputs = [1, 2, 1, 2].map((group, n) => line(n, { input: `${group} ${LONG} ${n}` }));
  expect(indexes(orderForCache(inputs, '/v1/embeddings'))).toEqual([0, 2, 1, 3]);
});

test('affinity is that of the system prompt, whatever is asked', () => {
  const of = (each: InputLine) => affinityOf(each.bytes ?? Buffer.alloc(0), CHAT);
  expect(of(chat(0, 'a'))).toBe(of(chat(1, 'a')));
  expect(of(chat(0, 'a'))).not.toBe(of(chat(0, 'b')));
  const alone = (content: string) => of(line(0, { messages: [{ role: 'user', content }] }));
  expect(alone(`${LONG} one`), 'a template before the text').toBe(alone(`${LONG} two`));
  expect(alone('one')).not.toBe(alone('two'));
  expect(of(line(0, {}))).toBeNull();
});
