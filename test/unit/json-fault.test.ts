import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { findJsonFault } from '../../src/dispatcher/json-fault.ts';

function isJson(text: string): boolean {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

describe('what is no JSON', () => {
  const KNOWN: [string, number, RegExp][] = [
    ['nope', 1, /^expected a value, got 'n'$/],
    ['{"a": 1,}', 9, /^expected a key in double quotes, got '}'$/],
    ["{'a': 1}", 2, /^expected a key in double quotes or '}', got a single quote \(.*double/],
    ['{"a" 1}', 6, /^expected ':' after the key, got '1'$/],
    ['{"a": 1 "b": 2}', 9, /^expected ',' or the closing bracket after a value, got '"'$/],
    ['{"a": [1, 2}', 12, /closing bracket.*got '}'$/],
    ['{"a": NaN}', 7, /^expected a value, got 'N'$/],
    ['{"a": 01}', 8, /closing bracket/],
    ['{"a": 1.}', 9, /number/],
    ['{"a": -}', 8, /number/],
    ['{"a": 1e+}', 10, /number/],
    ['{"a": "b', 7, /no closing quote/],
    ['{"a": "b\tc"}', 9, /control character/],
    ['{"a": "C:\\x"}', 10, /escape.*backslash/],
    ['{"a": "\\u12g4"}', 8, /escape/],
    ['{"a": 1', 8, /^the line ends where ',' or .* should be$/],
    ['{', 2, /^the line ends where a key/],
    ['', 1, /^the line ends where a value should be$/],
    ['{} {}', 4, /^expected nothing after the value, got '{'$/],
    ['[1,]', 4, /^expected a value, got ']'$/],
    ['{"a": "😀", b}', 13, /got 'b'$/],
    ['\u0000', 1, /got a control character$/],
    ['😀', 1, /got '😀'$/],
  ];
  test.for(KNOWN)('%j is told at column %d', ([text, column, reason]) => {
    expect(isJson(text)).toBe(false);
    expect(findJsonFault(text)).toEqual({ column, reason: expect.stringMatching(reason) });
  });

  const spoilt = fc
    .tuple(
      fc.json(),
      fc.array(
        fc.record({
          at: fc.nat(),
          cut: fc.nat(2),
          put: fc.constantFrom(
            '',
            '"',
            '\\',
            ',',
            '{',
            '}',
            ']',
            ':',
            ' ',
            '\n',
            '0',
            '-',
            'e',
            '.',
            't',
            'é',
            '\\u00',
          ),
        }),
        { maxLength: 3 },
      ),
    )
    .map(([text, changes]) => {
      let now = text;
      for (const { at, cut, put } of changes) {
        const from = at % (now.length + 1);
        now = now.slice(0, from) + put + now.slice(from + cut);
      }
      return now;
    });

  test('is what JSON.parse refuses, and nothing else', () => {
    fc.assert(
      fc.property(spoilt, (text) => {
        const found = findJsonFault(text);
        expect(found === null).toBe(isJson(text));
        if (found === null) return;
        expect(found.column).toBeGreaterThanOrEqual(1);
        expect(found.column).toBeLessThanOrEqual(text.length + 1);
        expect(found.reason.length).toBeLessThan(120);
      }),
      { numRuns: 3_000 },
    );
  });

  test('is found in a line of megabytes, however deep', () => {
    const text = `${'['.repeat(100_000)}"${'x'.repeat(4_000_000)}" "`;
    expect(findJsonFault(text)).toMatchObject({ column: 4_100_004 });
  });
});
