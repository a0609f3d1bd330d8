import { expect, test } from 'vitest';
import { startVllm } from '../simulators/vllm/simulator.ts';
import { openDispatchWorld, requestLine } from '../support/dispatch-world.ts';
import type { DispatchWorld } from '../support/dispatch-world.ts';
import { until } from '../support/until.ts';

const BODY = { model: 'sim-model', messages: [{ role: 'user', content: 'hello' }] };
const GOOD = Array.from({ length: 12 }, (_, n) =>
  requestLine(`good-${n}`, { ...BODY, user: `user ${n}` }),
);
const LONG = requestLine('long', { ...BODY, user: 'x'.repeat(10 * 1024 * 1024) });

/** Bad lines with the custom_id, code and message that are to be answered. */
const BAD: [string, string | null, string, RegExp][] = [
  ['nope\n', null, 'invalid_json_line', /not parseable.*Column 1: expected a value, got 'n'/],
  [
    '{"custom_id":"half","method":"POST"\n',
    null,
    'invalid_json_line',
    /not parseable.*Column 36: the line ends where/,
  ],
  ['[1]\n', null, 'invalid_json_line', /not a JSON object/],
  ['{"custom_id":7,"method":"POST","url":"/","body":{}}\n', null, 'invalid_type', /custom_id/],
  [
    requestLine('m\u00fct \u0022', BODY).replace('POST', 'GET'),
    'm\u00fct \u0022',
    'invalid_method',
    /GET/,
  ],
  [requestLine('no-model', { messages: [] }), 'no-model', 'missing_required_parameter', /model/],
  [
    requestLine('streamed', { ...BODY, stream: true }),
    'streamed',
    'unsupported_parameter',
    /stream/,
  ],
  [
    requestLine('elsewhere', BODY).replace('"/v1/chat/', '"/v1/'),
    'elsewhere',
    'url_mismatch',
    /endpoint/,
  ],
  [requestLine('good-3', BODY), 'good-3', 'duplicate_custom_id', /earlier line.*batches\/validate/],
  [requestLine('good-3', BODY), 'good-3', 'duplicate_custom_id', /earlier line.*batches\/validate/],
];
const TOO_LONG: (typeof BAD)[number] = [LONG, null, 'line_too_long', /longer/];

/** Good lines with a bad one behind each. */
function mixed(bad = BAD): string {
  return GOOD.map((line, n) => line + (bad[n]?.[0] ?? '')).join('');
}

interface Written {
  id: string;
  custom_id: string | null;
  response: { status_code: number } | null;
  error: { code: string; message: string } | null;
}

async function written({ ledger }: DispatchWorld): Promise<(Written & { kind: string })[]> {
  const answers = [...(await ledger.answers())].toSorted(([a], [b]) => a - b);
  return answers.map(([, { kind, bytes }]) => ({
    kind,
    ...(JSON.parse(bytes.toString()) as Written), // the code under test wrote it
  }));
}

async function expectExact(world: DispatchWorld, bad = BAD): Promise<void> {
  const lines = await written(world);
  expect(lines.map(({ id }) => id)).toEqual(
    Array.from({ length: GOOD.length + bad.length }, (_, n) => `batch_req_test_${n}`),
  );
  const answered = lines.filter(({ kind }) => kind === 'output');
  expect(answered.map((line) => line.custom_id)).toEqual(GOOD.map((_, n) => `good-${n}`));
  const refused = lines.filter(({ kind }) => kind === 'error');
  expect(refused).toEqual(
    bad.map(([, customId, code, message]) =>
      expect.objectContaining({
        custom_id: customId,
        response: null,
        error: { code, message: expect.stringMatching(message) },
      }),
    ),
  );
}

test('each bad line is answered once with what is wrong with it, and no engine sees it', async () => {
  await using engine = await startVllm({ profile: 'zero' });
  const bad = [...BAD, TOO_LONG];
  const input = mixed(bad);
  await using world = await openDispatchWorld({
    engines: [engine.url],
    input,
    cutLines: 4,
    lenient: true,
  });
  expect(new Set(await world.runAll())).toEqual(new Set(['done']));
  await expectExact(world, bad);
  expect(await engine.counts()).toMatchObject({ requests: GOOD.length, repeated: 0 });
  expect(world.dispatcher.load).toEqual({ unsent: 0, inFlight: 0, uncommitted: 0, budgetUsed: 0 });
  const counted = { ok: 0, failed: 0 };
  for (const { ok, failed } of world.ledger.shards.values()) {
    counted.ok += ok;
    counted.failed += failed;
  }
  expect(counted).toEqual({ ok: GOOD.length, failed: bad.length });
});

test('a shard that another process takes over is not answered twice', async () => {
  await using engine = await startVllm({ profile: 'zero', config: { latency_ms: 20 } });
  const input = mixed();
  await using world = await openDispatchWorld({ engines: [engine.url], input, lenient: true });
  // Both hold it, and both answer all: the second token makes the first one's commit stale.
  const both = await Promise.all([world.run(0), world.run(0)]);
  expect(both.toSorted()).toEqual(['done', 'lost']);
  await expectExact(world);
});

test('a shard that is given back half done goes on where it stood', async () => {
  await using engine = await startVllm({ profile: 'zero', config: { latency_ms: 30 } });
  await using world = await openDispatchWorld({
    engines: [engine.url],
    input: mixed(),
    lenient: true,
    maxConcurrency: 1,
  });
  const running = world.run();
  await until(async () => (await engine.counts()).requests > 1, { timeoutMs: 5_000 });
  world.stop.abort(new Error('the process stops'));
  expect(await running).toBe('stopped');
  const half = world.ledger.shards.get(0);
  expect(half?.failed).toBeGreaterThan(0);
  expect(half?.failed).toBeLessThan(BAD.length);
  const { signal } = new AbortController();
  const next = world.dispatcher.run(world.ledger.take(0), world.job, {
    stop: signal,
    abort: signal,
  });
  expect(await next).toBe('done');
  await expectExact(world);
  expect(await engine.counts()).toMatchObject({ requests: GOOD.length, repeated: 0 });
});

test('a shard with nothing but bad lines needs no engine', async () => {
  const input = Array.from({ length: 1_500 }, () => 'nope\n').join('');
  await using world = await openDispatchWorld({ engines: [], input, lenient: true });
  expect(await world.runAll()).toEqual(['done', 'done']);
  const lines = await written(world);
  expect(lines).toHaveLength(1_500);
  expect(new Set(lines.map(({ kind }) => kind))).toEqual(new Set(['error']));
});
