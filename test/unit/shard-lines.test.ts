import { PassThrough } from 'node:stream';
import { expect, test } from 'vitest';
import { createBudget } from '../../src/dispatcher/budget.ts';
import { openLines } from '../../src/dispatcher/shard-lines.ts';
import { createVirtualClock } from '../support/virtual-clock.ts';

const LINES = 6;
const BODY = '{"custom_id":"a","body":{"model":"m"}}\n';

/** A shard whose input comes from storage as a test hands it out. */
function openWorld() {
  const source = new PassThrough();
  const clock = createVirtualClock();
  const budget = createBudget(1_000_000, () => undefined);
  const plan = { n: 0, first: 0, lines: LINES, offset: 0, bytes: LINES * BODY.length };
  const lines = openLines(
    {
      plan,
      done: Buffer.alloc(1),
      inputKey: 'files/test',
      endpoint: '/v1/chat/completions',
      inOrder: false,
    },
    { maxLineBytes: 1_000, budget, clock, openInput: async () => Promise.resolve(source) },
  );
  /** Indexes of the lines that come next; undefined while nothing comes. */
  function read(): { got: number[] | null | undefined } {
    const seen: { got: number[] | null | undefined } = { got: undefined };
    void lines.next().then(({ value, done }) => {
      seen.got = done === true ? null : value.map(({ index }) => index);
    });
    return seen;
  }
  async function send(count: number): Promise<void> {
    source.write(BODY.repeat(count));
    await turn();
  }
  /** Lets the stream hand on what it has. */
  async function turn(): Promise<void> {
    for (let n = 0; n < 5; n += 1) {
      await new Promise((resolve) => {
        setImmediate(resolve);
      });
    }
  }
  return { source, clock, budget, lines, read, send, turn };
}

test('lines that were read are sent in time, however long the next are in coming', async () => {
  const { source, clock, read, send, turn } = openWorld();
  const first = read();
  await turn();
  await send(2);
  await clock.advance(10);
  expect(first.got, 'more may come').toBeUndefined();
  await clock.advance(20);
  expect(first.got).toEqual([0, 1]);

  const second = read();
  await clock.advance(1_000);
  expect(second.got, 'there are none').toBeUndefined();
  await send(1);
  expect(second.got, 'what was being read meanwhile is not lost').toEqual([2]);

  const third = read();
  await send(3);
  source.end();
  await turn();
  expect(third.got).toEqual([3, 4, 5]);
  const end = read();
  await turn();
  expect(end.got).toBeNull();
  expect(clock.pending, 'no timer is left').toBe(0);
});

test('who stops reading while the source is silent closes it, and holds no memory', async () => {
  const { source, clock, budget, lines, read, send, turn } = openWorld();
  const first = read();
  await turn();
  await send(2);
  await clock.advance(30);
  expect(first.got).toEqual([0, 1]);
  await lines.return(undefined);
  expect(source.destroyed).toBe(true);
  await turn();
  expect(budget.used).toBe(0);
});

test('what was read before the source broke is sent, then the error is told', async () => {
  const { source, clock, lines, read, send, turn } = openWorld();
  const first = read();
  await turn();
  await send(2);
  source.destroy(new Error('the network is away'));
  await turn();
  await clock.settle();
  expect(first.got).toEqual([0, 1]);
  await expect(lines.next()).rejects.toThrow('the network is away');
});
