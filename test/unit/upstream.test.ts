import { describe, expect, test } from 'vitest';
import type { AttemptWish } from '../../src/dispatcher/upstream.ts';
import { createUpstream, isProxyCut } from '../../src/dispatcher/upstream.ts';

const CHAT = '/v1/chat/completions';
const BODY = Buffer.from('{"model":"m"}');

function job(upstreamStream: AttemptWish['upstreamStream'], id = 'job_a'): AttemptWish {
  return { id, answerTimeoutMs: null, upstreamStream };
}

describe('a proxy that gave up', () => {
  const CASES: [status: number | null, silentMs: number, isCut: boolean][] = [
    [524, 100_000, true],
    [524, 0, true],
    [504, 30_000, true],
    [502, 60_000, true],
    [502, 59_999, false],
    [null, 60_000, true],
    [null, 59_999, false],
    [200, 100_000, false],
    [500, 100_000, false],
    [503, 100_000, false],
  ];
  test.for(CASES)('status %s after %d ms of silence: %s', ([status, silentMs, isCut]) => {
    expect(isProxyCut(status, silentMs)).toBe(isCut);
  });
});

describe('which lines are streamed', () => {
  test('always, never, and neither at once', () => {
    const upstream = createUpstream();
    expect(upstream.begin(CHAT, BODY, job('always')).openStream).not.toBeNull();
    expect(upstream.begin(CHAT, BODY, job('auto')).openStream).toBeNull();
    expect(upstream.begin(CHAT, BODY, job('never'))).toMatchObject({ body: BODY, copied: 0 });
    expect(upstream.begin('/v1/embeddings', BODY, job('always')).openStream).toBeNull();
  });

  test('a cut is remembered for its job, and for no other', () => {
    const upstream = createUpstream();
    const first = upstream.begin(CHAT, BODY, job('auto'));
    expect(upstream.sawEnd(first, job('auto'), 503)).toBe('other');
    expect(upstream.begin(CHAT, BODY, job('auto')).openStream).toBeNull();
    expect(upstream.sawEnd(first, job('auto'), 524)).toBe('cut');
    const next = upstream.begin(CHAT, BODY, job('auto'));
    expect(next.openStream).not.toBeNull();
    expect(next.copied).toBe(next.body.length);
    expect(upstream.begin(CHAT, BODY, job('auto', 'job_b')).openStream).toBeNull();
  });

  test('a stream that breaks is no news, and a job that wants none gets none', () => {
    const upstream = createUpstream();
    const streamed = upstream.begin(CHAT, BODY, job('always'));
    expect(upstream.sawEnd({ ...streamed, silentMs: 90_000 }, job('always'), null)).toBe('other');
    const whole = upstream.begin(CHAT, BODY, job('never'));
    expect(upstream.sawEnd({ ...whole, silentMs: 90_000 }, job('never'), 524)).toBe('other');
    expect(upstream.begin(CHAT, BODY, job('never')).openStream).toBeNull();
  });

  test('of very many jobs the first ones are forgotten', () => {
    const upstream = createUpstream();
    for (let n = 0; n <= 1_000; n += 1) {
      const wish = job('auto', `job_${n}`);
      upstream.sawEnd(upstream.begin(CHAT, BODY, wish), wish, 524);
    }
    expect(upstream.begin(CHAT, BODY, job('auto', 'job_0')).openStream).toBeNull();
    expect(upstream.begin(CHAT, BODY, job('auto', 'job_1000')).openStream).not.toBeNull();
  });
});
