import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { createAdvance } from '../../queues/advance.ts';
import type { Delivery } from '../../queues/catalog.ts';
import { SluiceError } from '../../src/domain/errors.ts';
import {
  batchStatus,
  ENDPOINTS,
  isSealed,
  JOB,
  JOB_STATES,
  OUTCOMES,
  parseCompletionWindow,
  stopTarget,
  wantsEngines,
} from '../../src/domain/job.ts';
import type { BatchStatus, Endpoint, JobState, Outcome, QueueName } from '../../src/domain/job.ts';
import { checkLine } from '../../src/domain/plan.ts';
import { PROVISION, PROVISION_STATES, settledStep } from '../../src/domain/provision.ts';
import {
  DEFAULT_RETRY,
  isRetriedStatus,
  parseRetryAfter,
  retryDelay,
} from '../../src/domain/retry.ts';

describe('stopping a job', () => {
  const stops = OUTCOMES.filter((outcome) => outcome !== 'completed');
  const cells = JOB_STATES.flatMap((state) => stops.map((outcome) => ({ state, outcome })));
  test.for(cells)('$state, $outcome', ({ state, outcome }) => {
    const target = stopTarget({ state }, outcome);
    const isStopped = state === 'cancelling' || isSealed(state);
    expect(target).toBe(isStopped ? null : state === 'queued' ? outcome : 'cancelling');
    const next: readonly JobState[] = JOB[state].next;
    expect(target === null || next.includes(target)).toBe(true);
  });
});

describe('settling', () => {
  const states = fc.array(fc.constantFrom(...PROVISION_STATES), { maxLength: 4 });
  test('comes to rest, on allowed steps, where the best engine says', () => {
    fc.assert(
      fc.property(fc.constantFrom(...JOB_STATES), states, (first, provisions) => {
        let state: JobState = first;
        for (let steps = 0; ; steps += 1) {
          expect(steps).toBeLessThan(4);
          const to = settledStep(state, provisions);
          if (to === null) break;
          const next: readonly JobState[] = JOB[state].next;
          expect(next).toContain(to);
          state = to;
        }
        const best = provisions.includes('serving')
          ? 'in_progress'
          : provisions.includes('starting')
            ? 'submitting'
            : 'resource_preparing';
        expect(state).toBe(wantsEngines(first) ? best : first);
      }),
      { numRuns: 2_000 },
    );
  });
});

describe('advance', () => {
  const pairs = [
    ...JOB_STATES.flatMap((from) => JOB_STATES.map((to) => ({ kind: 'job' as const, from, to }))),
    ...PROVISION_STATES.flatMap((from) =>
      PROVISION_STATES.map((to) => ({ kind: 'provision' as const, from, to })),
    ),
  ];
  /** The tables once more, so that a successor that is added by mistake is seen. */
  const ALLOWED: Record<string, string> = {
    queued: 'resource_preparing finalizing failed expired cancelled resource_failed submit_failed',
    resource_preparing: 'submitting finalizing cancelling',
    submitting: 'in_progress finalizing resource_preparing cancelling',
    in_progress: 'finalizing submitting resource_preparing cancelling',
    cancelling: 'finalizing',
    finalizing:
      'completed failed expired cancelled resource_failed submit_failed resource_preparing',
    intended: 'creating starting releasing',
    creating: 'creating booting starting releasing',
    booting: 'creating starting releasing',
    starting: 'serving releasing',
    serving: 'starting releasing',
    releasing: 'released',
  };

  test.for(pairs)('$kind: $from to $to', async ({ kind, from, to }) => {
    const added: Delivery[] = [];
    const moves: string[] = [];
    const table: Record<string, { queue: QueueName | null; next: readonly string[] }> =
      kind === 'job' ? JOB : PROVISION;
    const advance = createAdvance(
      table,
      async (_record, state: string) => {
        moves.push(state);
        return { version: 8, wake: 4 };
      },
      async (delivery) => void added.push(delivery),
    );
    const moving = advance({ id: 'x_1', state: from, version: 7, wake: 3 }, to);
    const result = await moving.catch((error: SluiceError) => error.code);
    const isAllowed = (ALLOWED[from]?.split(' ') ?? []).includes(to);
    const moved = { id: 'x_1', state: to, version: 8, wake: 4 };
    expect(result).toEqual(isAllowed ? moved : 'state.forbidden');
    const queue = table[to]?.queue ?? null;
    expect(moves).toEqual(isAllowed ? [to] : []);
    const isDelivered = isAllowed && queue !== null;
    expect(added).toEqual(isDelivered ? [{ queue, entity: 'x_1', wake: 4 }] : []);
  });

  test('who was too late adds nothing', async () => {
    const added: Delivery[] = [];
    const job = { id: 'job_1', state: 'in_progress' as JobState, version: 1, wake: 1 };
    const advance = createAdvance<typeof job, JobState, undefined>(
      JOB,
      async () => 'stale',
      async (delivery) => void added.push(delivery),
    );
    expect(await advance(job, 'finalizing')).toBe('stale');
    expect(added).toEqual([]);
  });
});

describe('the status that OpenAI shows', () => {
  const SHOWN: Record<JobState, BatchStatus | 'by outcome' | 'by begun'> = {
    queued: 'by begun',
    resource_preparing: 'by begun',
    submitting: 'by begun',
    in_progress: 'in_progress',
    cancelling: 'by outcome',
    finalizing: 'by outcome',
    completed: 'completed',
    failed: 'failed',
    expired: 'expired',
    cancelled: 'cancelled',
    resource_failed: 'failed',
    submit_failed: 'failed',
  };
  const outcomes: (Outcome | null)[] = [null, ...OUTCOMES];
  const cells = JOB_STATES.flatMap((state) =>
    outcomes.flatMap((outcome) => [true, false].map((begun) => ({ state, outcome, begun }))),
  );
  test.for(cells)('$state, outcome $outcome, begun $begun', ({ state, outcome, begun }) => {
    const shown = SHOWN[state];
    const byOutcome = outcome === 'cancelled' ? 'cancelling' : 'finalizing';
    const byBegun = begun ? 'in_progress' : 'validating';
    const expected = shown === 'by begun' ? byBegun : shown === 'by outcome' ? byOutcome : shown;
    expect(batchStatus({ state, outcome, begun })).toBe(expected);
  });
});

describe('the completion window', () => {
  const GOOD: [string, number][] = [
    ['24h', 86_400_000],
    ['1d12h', 129_600_000],
    ['90m', 5_400_000],
    ['90min', 5_400_000],
    ['1d1h1m', 90_060_000],
    ['365d', 31_536_000_000],
  ];
  test.for(GOOD)('%s', ([text, ms]) => {
    expect(parseCompletionWindow(text)).toBe(ms);
  });

  const BAD = [
    '',
    '0h',
    '0d0h0m',
    '24',
    '24 h',
    '-1h',
    '1.5h',
    '366d',
    '8761h',
    '1h1d',
    '24H',
    '1s',
  ];
  test.for(BAD)('%j is refused', (text) => {
    expect(() => parseCompletionWindow(text)).toThrow(SluiceError);
    expect(() => parseCompletionWindow(text)).toThrow(/24h/);
  });
});

describe('retries', () => {
  test('statuses that are asked again', () => {
    const all = Array.from({ length: 500 }, (_, n) => n + 100);
    const retried = all.filter((status) => isRetriedStatus(status) && status < 500);
    expect(retried).toEqual([408, 409, 425, 429]);
    expect(all.filter((status) => status >= 500).every(isRetriedStatus)).toBe(true);
  });

  test('wait longer each time, up to a cap', () => {
    const delays = Array.from({ length: 10 }, (_, n) =>
      retryDelay(DEFAULT_RETRY, { attempt: n + 1, retryAfterMs: null }, 0),
    );
    expect(delays).toEqual([125, 250, 500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000, 15_000]);
  });

  test('Retry-After is a lower bound, up to ten minutes', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 10 }),
        fc.option(fc.nat(1_000_000)),
        fc.double({ min: 0, max: 0.999, noNaN: true }),
        (attempt, retryAfterMs, random) => {
          const delay = retryDelay(DEFAULT_RETRY, { attempt, retryAfterMs }, random);
          const ceiling = Math.min(DEFAULT_RETRY.capMs, 250 * 2 ** (attempt - 1));
          const asked = Math.min(retryAfterMs ?? 0, 600_000);
          expect(delay).toBeGreaterThanOrEqual(Math.max(ceiling / 2, asked));
          expect(delay).toBeLessThanOrEqual(Math.max(ceiling, asked));
        },
      ),
    );
  });

  const NOW = Date.parse('2026-01-01T00:00:00Z');
  const HEADERS: [string | undefined, number | null][] = [
    [undefined, null],
    ['2', 2_000],
    [' 0.5 ', 500],
    ['0', 0],
    ['Thu, 01 Jan 2026 00:00:30 GMT', 30_000],
    ['Wed, 31 Dec 2025 00:00:00 GMT', 0],
    ['soon', null],
    ['', null],
  ];
  test.for(HEADERS)('Retry-After: %s', ([header, ms]) => {
    expect(parseRetryAfter(header, NOW)).toBe(ms);
  });
});

describe('a line of each endpoint', () => {
  const GOOD: Record<Endpoint, Record<string, unknown>[]> = {
    '/v1/chat/completions': [{ model: 'm', messages: [] }],
    '/v1/completions': [
      { model: 'm', prompt: 'p' },
      { model: 'm', prompt: ['p', [1, 2]] },
    ],
    '/v1/embeddings': [
      { model: 'm', input: 'i' },
      { model: 'm', input: ['i'] },
    ],
    '/v1/responses': [
      { model: 'm', input: 'i' },
      { model: 'm', input: [{ role: 'user' }] },
    ],
    '/v1/rerank': [{ model: 'm', query: 'q', documents: ['d'] }],
    '/v1/score': [{ model: 'm', text_1: 'a', text_2: 'b' }],
    '/v1/moderations': [{ input: 'i' }, { model: 'm', input: ['i'] }],
  };
  const cells = ENDPOINTS.flatMap((endpoint) => GOOD[endpoint].map((body) => ({ endpoint, body })));

  function check(endpoint: Endpoint, body: object) {
    const line = { custom_id: 'a', method: 'POST', url: endpoint, body, more: 1 };
    return checkLine(line, { endpoint, pinnedModel: null });
  }

  test.for(cells)('$endpoint takes $body', ({ endpoint, body }) => {
    expect(check(endpoint, body)).toEqual({ customId: 'a', model: body['model'] ?? null, body });
    expect(check(endpoint, { ...body, stream: false, foreign: [] })).not.toHaveProperty('code');
    expect(check(endpoint, { ...body, stream: true })).toMatchObject({ param: 'body.stream' });
  });

  const needed = cells.flatMap(({ endpoint, body }) =>
    Object.keys(body)
      .filter((field) => !field.startsWith('text_'))
      .filter((field) => endpoint !== '/v1/moderations' || field !== 'model')
      .map((field) => ({ endpoint, body, field })),
  );
  test.for(needed)('$endpoint needs $field', ({ endpoint, body, field }) => {
    const { [field]: _, ...rest } = body;
    expect(check(endpoint, rest)).toMatchObject({
      code: 'missing_required_parameter',
      param: `body.${field}`,
    });
    for (const wrong of [7, null, {}, true]) {
      expect(check(endpoint, { ...body, [field]: wrong })).toMatchObject({
        code: 'invalid_type',
        param: `body.${field}`,
      });
    }
  });

  test('what a user wrote is cut in messages', () => {
    const line = { custom_id: 'a', method: 'x'.repeat(5_000), url: '', body: {} };
    const found = checkLine(line, { endpoint: '/v1/score', pinnedModel: null });
    expect(JSON.stringify(found).length).toBeLessThan(300);
  });
});
