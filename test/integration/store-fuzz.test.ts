import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Client } from '../../src/store/scripts.ts';
import { fuzzStore } from '../support/fuzz/fuzz.ts';
import { BACK_ENDS, connectTo } from '../support/store-back-ends.ts';

// FUZZ_SECONDS=60 FUZZ_SEED=7 npx vitest run test/integration/store-fuzz.test.ts
const milliseconds = 1_000 * Number(process.env['FUZZ_SECONDS'] ?? 2.5);
const seed = Number(process.env['FUZZ_SEED'] ?? Date.now() % 1_000_000);

describe.each(BACK_ENDS)('the store on %s', (kind) => {
  let redis: Client;
  beforeAll(() => {
    redis = connectTo(kind);
  });
  afterAll(() => redis.disconnect());

  test(
    'answers every line once and counts it once, whatever dies and whenever',
    async () => {
      const stats = await fuzzStore({ redis, seed, milliseconds });
      expect(stats.runs).toBeGreaterThan(5);
      expect(stats.overlap).toBe(0);
      for (const kind of ['repeated', 'stale', 'stalls', 'kills', 'overdue', 'struck'] as const) {
        expect(stats[kind]).toBeGreaterThan(0);
      }
    },
    milliseconds + 20_000,
  );
});

describe('the fuzz turns red', () => {
  let redis: Client;
  beforeAll(() => {
    redis = connectTo('redis');
  });
  afterAll(() => redis.disconnect());

  // Seeds that find it early; that a repeat is answered otherwise would be too easy a find.
  test.each([
    ['sealing check', 'commit', /elseif [^\n]+ then -- check: sealed/, 'elseif false then', 1],
    ['token check', 'commit', /elseif [^\n]+ then -- check: token/, 'elseif false then', 1],
    ['look at a pause where a shard is taken', 'take', / or record\[2\] or/, ' or', 1],
    ['look at the deadline where a shard is taken', 'take', / or isOver then/, ' then', 1],
    ['look at a pause where shards are opened', 'open', / and not record\[4\]/, '', 1],
    ['counts that lost answers had', 'strike', /if struck[^\n]+ > 0 then/, 'if false then', 1],
    ['way back for struck shards', 'strike', /redis.call\('LPUSH'[^\n]+/, '', 1],
  ] as const)(
    'without the %s',
    async (_name, script, find, replace, seed) => {
      const mutant = { script, find, replace };
      const bounds = { runs: 200, milliseconds: 25_000, compareRepeats: false };
      const fuzz = fuzzStore({ redis, seed, ...bounds, mutant });
      await expect(fuzz).rejects.toThrow(/^fuzz seed \d, run \d+: (AssertionError|Error: stuck)/);
    },
    30_000,
  );

  test('when commit does not know a part again', async () => {
    const mutant = {
      script: 'commit',
      find: /if [^\n]+ then -- check: repeat/,
      replace: 'if false then',
    } as const;
    const options = { redis, seed: 1, runs: 50, milliseconds: 20_000, mutant };
    await expect(fuzzStore(options)).rejects.toThrow(/answers a repeat otherwise/);
  }, 30_000);
});
