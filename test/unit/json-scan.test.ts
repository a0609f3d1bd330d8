import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { scanCustomId, scanModel, scanRequest } from '../../src/dispatcher/json-scan.ts';

function scan(text: string): { customId: string; body: string } | null {
  const found = scanRequest(Buffer.from(text));
  return found && { customId: found.customId.toString(), body: found.body.toString() };
}

/** JSON text with spaces between tokens and some characters escaped that need not be. */
function spaced(value: unknown, spaces: readonly string[], escapeAll: boolean): string {
  let turn = 0;
  const space = () => spaces[(turn += 1) % spaces.length] ?? '';
  function text(part: unknown): string {
    if (typeof part === 'string') {
      if (!escapeAll) return JSON.stringify(part);
      const units = Array.from({ length: part.length }, (_, n) => part.charCodeAt(n));
      return `"${units.map((unit) => `\\u${unit.toString(16).padStart(4, '0')}`).join('')}"`;
    }
    if (Array.isArray(part)) {
      return `[${part.map((item) => space() + text(item) + space()).join(',')}${space()}]`;
    }
    if (typeof part !== 'object' || part === null) return JSON.stringify(part);
    const members = Object.entries(part).map(
      ([key, item]) => `${space()}${text(key)}${space()}:${space()}${text(item)}${space()}`,
    );
    return `{${members.join(',')}}`;
  }
  return space() + text(value) + space();
}

function isJson(text: string): boolean {
  try {
    JSON.parse(text);
    return true;
  } catch {
    // which is what was asked
    return false;
  }
}

describe('scanRequest', () => {
  test("finds both members in the user's own bytes", () => {
    const body = '{ "seed" : 12345678901234567890, "b":1.0, "a":[ "}", "\\"" ] }';
    expect(scan(`{"custom_id": "a\\u0062", "method":"POST","body":${body} }`)).toEqual({
      customId: '"a\\u0062"',
      body,
    });
  });

  test('the last of duplicate members wins', () => {
    expect(scan('{"custom_id":"a","body":1,"body":{},"custom_id":"b"}')).toEqual({
      customId: '"b"',
      body: '{}',
    });
    expect(scan('{"custom_id":"a","body":1,"custom_id":7}')).toBeNull();
  });

  test('compares keys unescaped', () => {
    expect(scan('{"\\u0063ustom_id":"a","b\\u006fdy":null}')).toEqual({
      customId: '"a"',
      body: 'null',
    });
    expect(scan('{"\\u0064ustom_id":"a","body":null}')).toBeNull();
    expect(scan('{"\\x":1,"custom_id":"a","body":0}')).toEqual({ customId: '"a"', body: '0' });
  });

  test('does not look into nested values', () => {
    expect(scan('{"body":{"custom_id":"inner"},"x":[{"body":2}]}')).toBeNull();
  });

  test.for([
    ['{"custom_id":"a\\u0062"}', '"a\\u0062"'],
    ['{"method":"GET","custom_id":"","custom_id":"b"}', '"b"'],
    ['{"custom_id":7}', null],
    ['{"body":{"custom_id":"inner"}}', null],
    ['["custom_id","a"]', null],
    ['"custom_id"', null],
  ] as const)('the custom_id alone of %s', ([text, id]) => {
    expect(scanCustomId(Buffer.from(text))?.toString() ?? null).toBe(id);
  });

  test('skips long strings with escaped quotes and runs of backslashes', () => {
    for (const content of ['"'.repeat(100), '\\'.repeat(101), `${'x'.repeat(50)}\\"\\\\`]) {
      const body = JSON.stringify({ content });
      expect(scan(`{"body":${body},"custom_id":"z"}`)).toEqual({ customId: '"z"', body });
    }
  });

  test.for([
    '',
    ' ',
    '[]',
    '{}',
    '"custom_id"',
    '{"custom_id":"a"}',
    '{"body":{}}',
    '{"custom_id":"a","body":{}',
    '{"custom_id":"a","body":{}} x',
    '{"custom_id":"a","body":}',
    '{"custom_id":"a","body"}',
    '{"custom_id":"a","body":{]',
    '{"custom_id":"a","body":"open',
    `{"custom_id":"a","body":"${'open'.repeat(20)}`,
    `{"custom_id":"a","body":"${'o'.repeat(40)}\\"`,
    '{"custom_id":"a","body":{"open',
    '{"custom_id":"a",}',
    '{"custom_id":"a" "body":1}',
    '{custom_id:"a","body":1}',
    '{"custom_id',
  ])('finds nothing in %s', (text) => {
    expect(scan(text)).toBeNull();
  });

  test('finds what JSON.parse finds', () => {
    const key = fc.oneof(fc.constantFrom('custom_id', 'body', 'method'), fc.string());
    const request = fc.oneof(
      fc.dictionary(key, fc.jsonValue()),
      fc.record({ custom_id: fc.string(), body: fc.jsonValue(), url: fc.jsonValue() }),
    );
    const spaces = fc.array(fc.constantFrom('', ' ', '\t', '\r\n'), { minLength: 1, maxLength: 5 });
    fc.assert(
      fc.property(request, spaces, fc.boolean(), (value, between, escapeAll) => {
        const text = spaced(value, between, escapeAll);
        const parsed = JSON.parse(text) as Record<string, unknown>;
        const found = scan(text);
        const isRequest = typeof parsed['custom_id'] === 'string' && Object.hasOwn(parsed, 'body');
        expect(found !== null).toBe(isRequest);
        if (found === null) return;
        expect(JSON.parse(found.customId)).toEqual(parsed['custom_id']);
        expect(JSON.parse(found.body)).toEqual(parsed['body']);
      }),
      { numRuns: 2_000 },
    );
  });

  test('ends on any bytes, and agrees with JSON.parse where that accepts them', () => {
    const valid = '{"custom_id":"a\\"b","body":{"m":[1,"x\\\\"]},"n":-1.5e3}';
    const edit = fc.tuple(
      fc.nat(valid.length),
      fc.constantFrom(...'{}[]",:\\ a1\n'.split('')),
      fc.nat(2),
    );
    fc.assert(
      fc.property(fc.array(edit, { maxLength: 4 }), (edits) => {
        let text = valid;
        for (const [at, by, cut] of edits) text = text.slice(0, at) + by + text.slice(at + cut);
        const found = scan(text);
        // what is malformed below the top level is not looked at: that the scan ended is all there is to hold
        fc.pre(isJson(text));
        const fields = JSON.parse(text) as Record<string, unknown>;
        const isRequest = typeof fields['custom_id'] === 'string' && 'body' in fields;
        expect(found === null ? null : JSON.parse(found.body)).toEqual(
          isRequest ? fields['body'] : null,
        );
        expect(found !== null).toBe(isRequest);
      }),
      { numRuns: 3_000 },
    );
  });
});

describe('scanModel', () => {
  test.for([
    ['{"model":"a","messages":[]}', 'a'],
    ['{ "messages" : [{"model":"inner"}] , "model" : "a" }', 'a'],
    ['{"model":"a","model":"b"}', 'b'],
    ['{"model":"a","model":7}', null],
    ['{"m\\u006fdel":"\\u0061\\ud83d\\ude00 ä\\"😀"}', 'a😀 ä"😀'],
    ['{"\\x":1,"model":"a"}', 'a'],
    ['{"model":"\\x"}', null],
    ['{"input":"model","n":1}', null],
    ['{"model":"a"', null],
    ['["model","a"]', null],
    ['"model"', null],
  ] as const)('of %s', ([body, model]) => {
    expect(scanModel(Buffer.from(body))).toBe(model);
  });

  test('finds what JSON.parse finds, however the body is spelled', () => {
    const spaces = fc.array(fc.constantFrom('', ' ', '\n', '\t'), { minLength: 1 });
    const body = fc.dictionary(fc.constantFrom('model', 'input', 'mode'), fc.jsonValue());
    fc.assert(
      fc.property(body, spaces, fc.boolean(), (value, between, escapeAll) => {
        const { model } = value;
        const text = spaced(value, between, escapeAll);
        expect(scanModel(Buffer.from(text))).toBe(typeof model === 'string' ? model : null);
      }),
    );
  });
});
