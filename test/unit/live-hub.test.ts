import { pino } from 'pino';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { EXAMPLE_NEW_JOB } from '../../src/api/docs/examples.ts';
import { createLiveHub } from '../../src/api/live-hub.ts';
import type { JobEvent, JobRecord } from '../../src/domain/job.ts';

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval', 'performance'] });
});
afterEach(() => {
  vi.useRealTimers();
});

/** One stream over a job with this history, and how often the history was read. */
function open(history: readonly JobEvent[] = [], job = EXAMPLE_NEW_JOB) {
  const seen = { looks: 0, cuts: 0 };
  const hub = createLiveHub({
    store: {
      jobs: { get: () => Promise.resolve(job) },
      events: {
        after(_job, id) {
          seen.looks += 1;
          return Promise.resolve(
            history.filter((event) => Number.parseInt(event.id, 10) > Number.parseInt(id, 10)),
          );
        },
      },
    },
    log: pino({ level: 'silent' }),
    liveStreams: 1,
    stopping: new AbortController().signal,
  });
  const stream = hub.open({
    job: EXAMPLE_NEW_JOB,
    after: '0-0',
    opening: ': hello\n\n',
    wording: { state: ({ message }) => ({ message }), progress: () => ({}), done: () => ({}) },
    cut: () => void (seen.cuts += 1),
  });
  return { hub, reader: stream.getReader(), seen };
}

function event(n: number): JobEvent {
  return { id: `${n}-0`, at: n, kind: 'state', state: 'queued', message: 'x'.repeat(10_000) };
}

async function read(reader: ReadableStreamDefaultReader<Uint8Array>): Promise<string> {
  return Buffer.from((await reader.read()).value ?? []).toString();
}

test('a silent stream is kept alive every 15 s, and a second one finds no room beside it', async () => {
  const { hub, reader, seen } = open();
  expect(await read(reader)).toBe(': hello\n\n');
  await vi.advanceTimersByTimeAsync(14_000);
  await vi.advanceTimersByTimeAsync(1_500);
  expect(await read(reader)).toBe(': keep-alive\n\n');
  await vi.advanceTimersByTimeAsync(15_000);
  expect(await read(reader)).toBe(': keep-alive\n\n');
  expect(seen.cuts).toBe(0);
  const wording = { state: () => ({}), progress: () => ({}), done: () => ({}) };
  const second = { job: EXAMPLE_NEW_JOB, after: '0-0', opening: '', wording, cut: () => undefined };
  expect(() => hub.open(second)).toThrow('LIVE_STREAMS');
});

test('a reader that takes nothing for a minute is cut, and nobody looks for it any more', async () => {
  const { seen } = open(Array.from({ length: 50 }, (_, n) => event(n + 1)));
  await vi.advanceTimersByTimeAsync(59_000);
  expect(seen.cuts).toBe(0);
  await vi.advanceTimersByTimeAsync(2_000);
  expect(seen.cuts).toBe(1);
  const { looks } = seen;
  await vi.advanceTimersByTimeAsync(10_000);
  expect(seen.looks).toBe(looks);
  expect(vi.getTimerCount()).toBe(0);
});

test('who was told the end counts until it has taken all, and is cut when it takes nothing', async () => {
  const over: JobRecord = { ...EXAMPLE_NEW_JOB, state: 'completed', outcome: 'completed' };
  const { hub, seen } = open([event(1)], over);
  await vi.advanceTimersByTimeAsync(30_000);
  const wording = { state: () => ({}), progress: () => ({}), done: () => ({}) };
  const second = { job: over, after: '0-0', opening: '', wording, cut: () => undefined };
  expect(() => hub.open(second)).toThrow('LIVE_STREAMS');
  const { looks } = seen;
  await vi.advanceTimersByTimeAsync(32_000);
  expect([seen.cuts, seen.looks, vi.getTimerCount()]).toStrictEqual([1, looks, 0]);

  const read = await new Response(hub.open({ ...second, opening: ': again\n\n' })).text();
  expect(read).toMatch(/^: again\n\n(?:.*\n)*event: done\n/);
  expect(read.match(/event: done/g)).toHaveLength(1);
  expect(vi.getTimerCount()).toBe(0);
});

test('who hangs up is looked after no more', async () => {
  const { reader, seen } = open();
  await read(reader);
  await vi.advanceTimersByTimeAsync(2_000);
  const { looks } = seen;
  expect(looks).toBeGreaterThan(2);
  await reader.cancel();
  await vi.advanceTimersByTimeAsync(2_000);
  expect(seen.looks).toBe(looks);
  expect(vi.getTimerCount()).toBe(0);
});
