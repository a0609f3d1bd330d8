import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { errorOnlyLine, outputLine } from '../../src/dispatcher/answer-lines.ts';
import { partsOfLine, responseAt, statusAt } from '../../src/domain/answer-line.ts';

const TEXT = fc.oneof(
  fc.string({ unit: 'grapheme' }),
  fc.constantFrom(',"response":{', '"response":null', ',"body":', '},"error":null}', '\\', '",'),
);

function answered(customId: string, status: number, requestId: string | null, body: Buffer) {
  const raw = Buffer.from(JSON.stringify(customId));
  const answer = { id: 'batch_req_a1_7', customId: raw, status, requestId, body };
  return Buffer.concat(outputLine(answer).map((piece) => Buffer.from(piece)));
}

describe('a finished line', () => {
  test('that an engine answered comes apart as it was put together, whatever is in it', () => {
    fc.assert(
      fc.property(
        TEXT,
        fc.integer({ min: 100, max: 599 }),
        fc.option(TEXT),
        fc.json(),
        fc.boolean(),
        (customId, status, requestId, json, bare) => {
          const body = Buffer.from(json);
          const line = answered(customId, status, requestId, body);
          expect(statusAt(line, responseAt(line))).toBe(status);
          const parts = partsOfLine(bare ? line.subarray(0, -1) : line);
          expect(parts.index).toBe(7);
          expect(JSON.parse(parts.customId.toString())).toBe(customId);
          expect(parts.body?.toString()).toBe(json);
          expect(JSON.parse(String(parts.head))).toEqual({
            status_code: status,
            request_id: requestId,
          });
          expect(parts.error.toString()).toBe('null');
          const whole = JSON.parse(line.toString());
          expect(JSON.parse(parts.response.toString())).toEqual(whole.response);
        },
      ),
    );
  });

  test('that none answered comes apart, too', () => {
    fc.assert(
      fc.property(TEXT, TEXT, (customId, message) => {
        const raw = Buffer.from(JSON.stringify(customId));
        const line = errorOnlyLine({ id: 'batch_req_a1_7', customId: raw, code: 'c', message });
        expect(responseAt(line)).toBe(-1);
        expect(statusAt(line, -1)).toBeNull();
        const parts = partsOfLine(line);
        expect([parts.index, parts.body, parts.head]).toEqual([7, null, null]);
        expect(parts.customId.equals(raw)).toBe(true);
        expect(parts.response.toString()).toBe('null');
        expect(JSON.parse(parts.error.toString())).toEqual({ code: 'c', message });
      }),
    );
  });

  const none = [
    '',
    '{}',
    '{"custom_id":"a","response":null,"error":null}',
    '{"id":"other","custom_id":"a","response":null,"error":null}',
    '{"id":"batch_req_a_1","custom_id":"a","response":{"status_code":200,"request_id":"r","body":{}},"error":nul',
    '{"id":"batch_req_a_1","custom_id":"a","response":{"status_code":200},"error":null}',
  ];
  test.for(none)('%s is none', (text) => {
    expect(() => partsOfLine(Buffer.from(text))).toThrow(
      expect.objectContaining({ kind: 'Permanent', code: 'answer.malformed' }),
    );
  });
});
