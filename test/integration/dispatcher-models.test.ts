import { describe, expect, test } from 'vitest';
import { startVllm } from '../simulators/vllm/simulator.ts';
import { openDispatchWorld, requestLine } from '../support/dispatch-world.ts';
import type { DispatchWorld } from '../support/dispatch-world.ts';
import { until } from '../support/until.ts';

async function expectAllAnswered({ ledger, errors }: DispatchWorld, count: number): Promise<void> {
  const answers = await ledger.answers();
  expect([...answers.keys()].toSorted((a, b) => a - b)).toEqual(
    Array.from({ length: count }, (_, n) => n),
  );
  expect(new Set([...answers.values()].map(({ kind }) => kind))).toEqual(new Set(['output']));
  expect(errors).toEqual([]);
}

describe('engines that serve some of the models', () => {
  /** `count` requests that ask for the models in turn. */
  function mixedLines(count: number, models: readonly string[]): string {
    return Array.from({ length: count }, (_, n) => {
      const model = models[n % models.length];
      const messages = [{ role: 'user', content: `question ${n}` }];
      return requestLine(`line-${n}`, { messages, model });
    }).join('');
  }

  /** An engine that answers at once and refuses models that it does not serve. */
  function startFor(models: string[]) {
    return startVllm({ profile: 'zero', models, config: { log: 'full' } });
  }

  test('each line goes to one that serves its model', async () => {
    await using one = await startFor(['a']);
    await using two = await startFor(['b', 'c']);
    await using world = await openDispatchWorld({
      engines: [one.url, two.url],
      serves: new Map([
        [one.url, ['a']],
        [two.url, ['b', 'c']],
      ]),
      models: ['a', 'b', 'c'],
      input: mixedLines(300, ['a', 'b', 'c']),
      cutLines: 70,
      maxConcurrency: 8,
    });
    expect(new Set(await world.runAll())).toEqual(new Set(['done']));
    await expectAllAnswered(world, 300);
    expect((await one.counts()).requests).toBe(100);
    expect((await two.counts()).requests).toBe(200);
  });

  test('a line that is asked again is asked where its model is served', async () => {
    await using one = await startFor(['a']);
    await using two = await startFor(['b']);
    await one.setFaults([{ kind: 'status', status: 500, count: 5 }]);
    await using world = await openDispatchWorld({
      engines: [one.url, two.url],
      serves: new Map([
        [one.url, ['a']],
        [two.url, ['b']],
      ]),
      models: ['a', 'b'],
      input: mixedLines(20, ['a', 'b']),
      sleepScale: 0.01,
    });
    expect(await world.run()).toBe('done');
    await expectAllAnswered(world, 20);
    expect([(await one.counts()).requests, (await two.counts()).requests]).toEqual([15, 10]);
  });

  test('lines whose model nobody serves yet wait in hand, as many as may, and the others go on', async () => {
    await using one = await startFor(['a']);
    const serves = new Map([[one.url, ['a']]]);
    await using world = await openDispatchWorld({
      engines: [one.url],
      serves,
      models: ['a', 'b'],
      input: mixedLines(100, ['b', 'a']),
      cutLines: 50,
      maxConcurrency: 8,
    });
    // The 9th line for b finds no place even to wait, in either shard; a shard of one model would go on.
    const running = world.runAll();
    await until(async () => (await one.counts()).requests >= 8, {
      what: 'lines of the other model',
    });
    const { load } = world.dispatcher;
    expect(load.unsent).toBeGreaterThan(50);
    expect(load.inFlight).toBeLessThanOrEqual(8);

    await using two = await startFor(['b']);
    serves.set(two.url, ['b']);
    world.engines.push(two.url);
    world.dispatcher.enginesChanged();
    expect(new Set(await running)).toEqual(new Set(['done']));
    await expectAllAnswered(world, 100);
    expect([(await one.counts()).requests, (await two.counts()).requests]).toEqual([50, 50]);
    expect(world.dispatcher.load.budgetUsed).toBe(0);
  });

  test('lines that wait take no memory that others need, and are left open by a stop', async () => {
    await using one = await startFor(['a']);
    const long = { messages: ['x'.repeat(1_000)], model: 'b' };
    const waiting = Array.from({ length: 20 }, (_, n) => requestLine(`b-${n}`, long)).join('');
    await using world = await openDispatchWorld({
      engines: [one.url],
      serves: new Map([[one.url, ['a']]]),
      models: ['a', 'b'],
      input: waiting + mixedLines(10, ['a']),
      cutLines: 20,
      deps: { memoryBudget: 10_000 },
    });
    const blocked = world.run(0);
    await until(() => world.dispatcher.load.budgetUsed >= 5_000, { what: 'lines that wait' });
    expect(await world.run(1)).toBe('done');
    expect(world.dispatcher.load).toMatchObject({ inFlight: 0, uncommitted: 0 });
    expect(world.dispatcher.load.budgetUsed).toBeLessThan(7_000);
    world.stop.abort();
    expect(await blocked).toBe('stopped');
    expect(world.dispatcher.load.budgetUsed).toBe(0);
    expect((await one.counts()).requests).toBe(10);
  });

  const GIVEN_UP = {
    response: null,
    error: {
      code: 'model_not_found',
      message: "No engine serves 'b', which this request asks for; they serve 'a'.",
    },
  };

  test('lines of a model that is given up fail, those that wait for it too, and the others run', async () => {
    await using one = await startFor(['a']);
    await using world = await openDispatchWorld({
      engines: [one.url],
      serves: new Map([[one.url, ['a']]]),
      models: ['a', 'b'],
      input: mixedLines(100, ['b', 'a']),
      cutLines: 50,
      maxConcurrency: 8,
    });
    const running = world.runAll();
    await until(() => world.dispatcher.load.inFlight === 0 && world.dispatcher.load.unsent < 100, {
      what: 'nothing but lines that wait',
    });
    world.givenUp.push('b');
    world.dispatcher.enginesChanged();
    expect(new Set(await running)).toEqual(new Set(['done']));
    const answers = await world.ledger.answers();
    expect(answers.size).toBe(100);
    for (const [line, { kind, bytes }] of answers) {
      expect(kind).toBe(line % 2 === 0 ? 'error' : 'output');
      if (kind === 'output') continue;
      expect(JSON.parse(bytes.toString())).toEqual({
        id: `batch_req_test_${line}`,
        custom_id: `line-${line}`,
        ...GIVEN_UP,
      });
    }
    expect((await one.counts()).requests).toBe(50);
    expect(world.dispatcher.load).toMatchObject({ unsent: 0, inFlight: 0, budgetUsed: 0 });
  });

  test('a line that waits to be asked again fails when its model is given up', async () => {
    await using one = await startFor(['a']);
    await using two = await startFor(['b']);
    await two.setFaults([{ kind: 'status', status: 500 }]);
    const serves = new Map([
      [one.url, ['a']],
      [two.url, ['b']],
    ]);
    await using world = await openDispatchWorld({
      engines: [one.url, two.url],
      serves,
      models: ['a', 'b'],
      input: mixedLines(10, ['a', 'b']),
      retry: { maxRetries: 10, baseMs: 60_000, capMs: 60_000 },
    });
    const running = world.run();
    await until(() => world.retries.length === 5, { what: 'lines that wait for their turn' });
    world.engines.pop();
    world.givenUp.push('b');
    world.dispatcher.enginesChanged();
    expect(await running).toBe('done');
    const answers = await world.ledger.answers();
    const errors = [...answers.values()].filter(({ kind }) => kind === 'error');
    expect(errors).toHaveLength(5);
    for (const { bytes } of errors) expect(JSON.parse(bytes.toString())).toMatchObject(GIVEN_UP);
  });

  test('a stop leaves lines open that wait, even those of a model that is given up then', async () => {
    await using one = await startFor(['a']);
    await using world = await openDispatchWorld({
      engines: [one.url],
      serves: new Map([[one.url, ['a']]]),
      models: ['a', 'b'],
      input: mixedLines(10, ['b']),
    });
    const running = world.run();
    await until(() => world.dispatcher.load.unsent === 0, { what: 'lines that wait' });
    world.stop.abort();
    world.givenUp.push('b');
    world.dispatcher.enginesChanged();
    expect(await running).toBe('stopped');
    expect((await world.ledger.answers()).size).toBe(0);
  });
});
