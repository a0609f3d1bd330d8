import { describe, expect, test } from 'vitest';
import { errorOnlyLine, outputLine, requestId } from '../../src/dispatcher/answer-lines.ts';

describe('answer lines', () => {
  test('ids derive from the job and the line', () => {
    expect(requestId('job_abc', 12)).toBe('batch_req_abc_12');
  });

  test("hold the user's and the engine's bytes", () => {
    const line = outputLine({
      id: 'batch_req_abc_0',
      customId: Buffer.from('"\\u0061"'),
      status: 200,
      requestId: 'engine-"1"',
      body: Buffer.from('{"n":12345678901234567890, "m":1.0}'),
    });
    expect(line.join('')).toBe(
      '{"id":"batch_req_abc_0","custom_id":"\\u0061","response":{"status_code":200,' +
        '"request_id":"engine-\\"1\\"","body":{"n":12345678901234567890, "m":1.0}},"error":null}\n',
    );
  });

  test.for(['{\r\n  "a": [\n1 ]\r}\n', '{\r"a":[1]}'])('are one line each: %j', (body) => {
    const engine = Buffer.from(body);
    const line = outputLine({
      id: 'i',
      customId: Buffer.from('"c"'),
      status: 400,
      requestId: null,
      body: engine,
    }).join('');
    expect(line.indexOf('\n')).toBe(line.length - 1);
    expect(line).not.toContain('\r');
    expect(JSON.parse(line)).toEqual({
      id: 'i',
      custom_id: 'c',
      response: { status_code: 400, request_id: null, body: { a: [1] } },
      error: null,
    });
    expect(engine.toString()).toBe(body);
  });

  test('say why no engine answered', () => {
    const line = errorOnlyLine({
      id: 'batch_req_abc_3',
      customId: Buffer.from('"c"'),
      code: 'batch_expired',
      message: 'too\nlate',
    });
    expect(line.toString()).toBe(
      '{"id":"batch_req_abc_3","custom_id":"c","response":null,' +
        '"error":{"code":"batch_expired","message":"too\\nlate"}}\n',
    );
  });
});
