import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { inspectInput } from '../../src/main/plan-input.ts';

const RULES = { endpoint: '/v1/score', pinnedModel: null } as const;
let dataDir = '';
beforeEach(async () => {
  dataDir = await mkdtemp(join(tmpdir(), 'plan-input-'));
});
afterEach(() => rm(dataDir, { recursive: true }));

function inspect(source: Readable, signal: AbortSignal) {
  const limits = { dataDir, maxBatchLines: 1e9, maxLineBytes: 1_000 };
  const storage = { get: async () => source };
  return inspectInput({ ...limits, storage }, 'file-1', RULES, signal);
}

function line(n: number): string {
  const body = { model: 'm', text_1: 'abcd', text_2: 'abcd' };
  return `${JSON.stringify({ custom_id: `${n}`, method: 'POST', url: '/v1/score', body })}\n`;
}

test('an inspection that is aborted ends with the reason, whatever its source does, and closes it', async () => {
  for (const stalls of [false, true]) {
    const aborting = new AbortController();
    let n = 0;
    const source = new Readable({
      read() {
        n += 1;
        if (n === 3) setImmediate(() => aborting.abort(new Error('hung up')));
        // Not at once, as no disk does it: timers and signals would never be heard.
        if (n < 3 || !stalls) setImmediate(() => this.push(line(n)));
      },
    });
    await expect(inspect(source, aborting.signal)).rejects.toThrow('hung up');
    expect(source.destroyed).toBe(true);
  }
});

test('a source that breaks ends it with that error', async () => {
  const source = Readable.from(
    (function* () {
      yield Buffer.from(line(1));
      throw new Error('the disk is gone');
    })(),
  );
  await expect(inspect(source, new AbortController().signal)).rejects.toThrow('the disk is gone');
});

test('an inspection counts lines and tokens, and leaves nothing behind', async () => {
  const source = Readable.from([Buffer.from(line(1) + line(2) + line(1))]);
  expect(await inspect(source, new AbortController().signal)).toMatchObject({
    lines: 3,
    bad: 1,
    models: ['m'],
    estimate: { inputTokens: 6, maxOutputTokens: 0, unlimited: 3 },
  });
  expect(await readdir(dataDir)).toEqual([]);
});
