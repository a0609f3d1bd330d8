import { expect, test } from 'vitest';
import { askLine } from '../../src/dispatcher/ask.ts';
import type { AskDeps } from '../../src/dispatcher/ask.ts';
import { createBudget } from '../../src/dispatcher/budget.ts';
import type { Engine } from '../../src/dispatcher/engine.ts';
import { createLimiter } from '../../src/dispatcher/limiter.ts';
import { createRoom } from '../../src/dispatcher/room.ts';
import type { Wish } from '../../src/dispatcher/room.ts';
import { createSuspects } from '../../src/dispatcher/suspects.ts';
import { NO_LIMITS } from '../../src/domain/rate-limit.ts';
import { DEFAULT_RETRY } from '../../src/domain/retry.ts';
import { fakeEngine, fakeTenant, UNDISTURBED } from '../support/fake-engine.ts';
import { createVirtualClock } from '../support/virtual-clock.ts';

const NEVER = new AbortController().signal;
const LIMITS = { requestsPerSecond: 0.001, tokensPerMinute: null };
const SCOPE = { jobId: 'job_a', engine: 'http://a', key: null, limits: LIMITS };

const engine: Engine = {
  ...fakeEngine('http://a'),
  async send(_path, _body, signal) {
    signal.throwIfAborted();
    throw new Error('nobody answers here');
  },
};

test('a line that is cut before it is sent gives its permit back', async () => {
  const clock = createVirtualClock();
  const room = createRoom();
  const limiter = createLimiter({
    clock,
    engineLimits: NO_LIMITS,
    keyLimits: NO_LIMITS,
    // One request, and then none for a long time.
    draw: async (_name, op) =>
      op === 'op-1' ? { granted: 1, waitMs: 0 } : { granted: 0, waitMs: 1_000_000 },
    newOp: (
      (n) => () =>
        `op-${(n += 1)}`
    )(0),
    onChange: () => room.kick(),
    onError() {},
  });
  const first = limiter.permit(SCOPE, 0, NEVER);
  await clock.advance(1);
  // Its unit is in hand from here on.
  (await first)?.settle(null);

  const tenant = fakeTenant(() => [engine], 1);
  const wish: Wish = { tenant, model: null, affinity: null };
  const deps: AskDeps = {
    room,
    limiter,
    clock,
    budget: createBudget(1_000, () => {}),
    onRetry() {},
  };
  const question = { line: 0, id: 'r', customId: Buffer.from('"a"'), body: Buffer.from('{}') };
  const place = await room.take(wish, NEVER);
  const asked = askLine(
    question,
    place ?? engine,
    {
      path: '/v1/chat/completions',
      retry: DEFAULT_RETRY,
      job: { id: 'job_a', limits: LIMITS, answerTimeoutMs: null, upstreamStream: 'never' },
      wish,
      suspect: createSuspects({ room, clock, isolation: UNDISTURBED }).of('job_a', 0, wish, null),
      guard: null,
      hedging: null,
      stop: NEVER,
      abort: AbortSignal.abort(),
    },
    deps,
  );
  expect(await asked).toBeNull();
  expect(tenant.inFlight.get(engine)).toBe(0);
  expect(limiter.tryPermit(SCOPE, 0)).not.toBeNull();
});
