import { array, assert, nat, property, string } from 'fast-check';
import { describe, expect, test } from 'vitest';
import { isModelId, modelIdOf } from '../../src/domain/model.ts';
import { JOB_STATES, wantsEngines } from '../../src/domain/job.ts';
import type { JobState } from '../../src/domain/job.ts';
import { PROVISION_STATES, rehomeSlot, releaseStep } from '../../src/domain/provision.ts';
import { chooseTemplate, compareVersions, parallelismProblem } from '../../src/domain/template.ts';
import type { TemplateStatus } from '../../src/domain/template.ts';

describe('versions', () => {
  test.each([
    ['v1.0.0', 'v1.0.1'],
    ['v1.9.0', 'v1.10.0'],
    ['1.0.0', 'v2.0.0'],
    ['v1.0', 'v1.0.0'],
    ['v1.0.0-rc1', 'v1.0.0'],
    ['v1.0.0-rc1', 'v1.0.0-rc2'],
    ['V1.0.0', 'v1.0.0b'],
    ['v1.0.0', 'v1.0.0b'],
  ])('%s is lower than %s', (low, high) => {
    expect(compareVersions(low, high)).toBeLessThan(0);
    expect(compareVersions(high, low)).toBeGreaterThan(0);
  });

  test('v and V say nothing, and leading zeros are no other number', () => {
    expect(compareVersions('v1.2.3', '1.2.3')).toBe(0);
    expect(compareVersions('V1.02.3', 'v1.2.3')).toBe(0);
  });

  test('sorting numbers by it gives their order, however many parts they have', () => {
    const version = array(nat(20), { minLength: 1, maxLength: 4 });
    assert(
      property(version, version, (a, b) => {
        const order = Math.sign(compareVersions(a.join('.'), `v${b.join('.')}`));
        const i = a.findIndex((part, n) => part !== b[n]);
        const expected = i < 0 ? a.length - b.length : (a[i] ?? 0) - (b[i] ?? -1);
        expect(order).toBe(Math.sign(expected));
      }),
    );
  });
});

describe('which template is meant', () => {
  const all = (
    [
      ['v1.2.0', 'active'],
      ['v1.10.0', 'active'],
      ['v2.0.0', 'draft'],
      ['v1.11.0', 'deprecated'],
    ] satisfies [string, TemplateStatus][]
  ).map(([version, status]) => ({ version, status }));

  test('without a version the highest active one', () => {
    expect(chooseTemplate(all, '')).toMatchObject({ version: 'v1.10.0' });
  });

  test('a version is taken whatever its status', () => {
    expect(chooseTemplate(all, 'v2.0.0')).toMatchObject({ status: 'draft' });
    expect(chooseTemplate(all, 'v1.11.0')).toMatchObject({ status: 'deprecated' });
  });

  test('none, and none that is active, are two things', () => {
    expect(chooseTemplate([], '')).toBe('none');
    expect(chooseTemplate(all, 'v9')).toBe('none');
    expect(chooseTemplate([{ version: 'v1', status: 'draft' as const }], '')).toBe('none active');
  });
});

describe('parallelism', () => {
  function problem(count: number, parts: Partial<Record<'tp' | 'pp' | 'dp' | 'ep', number>>) {
    const parallelism = { tp: 1, pp: 1, dp: 1, ep: 1, sp: 1, cp: 1, ...parts };
    const rest = { type: 'H100', interconnect: '', vram_gb: 0, sku_hint: '' } as const;
    return parallelismProblem({ parallelism, accelerator: { count, ...rest } });
  }

  test.each([
    [1, {}],
    [8, { tp: 8 }],
    [8, { tp: 2, pp: 2, dp: 2 }],
    // AIBrix counts experts as a share of their own; in vLLM they lie on the GPUs of tp and dp.
    [8, { ep: 8 }],
    [8, { tp: 8, ep: 8 }],
  ])('%i GPUs are shared out by %o', (count, parts) => {
    expect(problem(count, parts)).toBeNull();
  });

  test.each([
    [4, {}, /tp × pp × dp is 1, but accelerator\.count is 4.*Set parallelism\.tp to 4/],
    [4, { tp: 8 }, /is 8, but accelerator\.count is 4/],
    [4, { tp: 2, ep: 3 }, /is 2 \(6\), but accelerator\.count is 4/],
  ])('%i GPUs are not shared out by %o', (count, parts, said) => {
    expect(problem(count, parts)).toMatch(said);
  });
});

test('a model gets its id from its name, and every such id may stand in a URL and in a key', () => {
  expect(modelIdOf('Qwen2.5 7B Instruct')).toBe('model-qwen2.5-7b-instruct');
  expect(modelIdOf('Qwen/Qwen2.5')).toBe('model-qwen-qwen2.5');
  assert(
    property(string({ unit: 'grapheme', minLength: 1, maxLength: 64 }), (name) => {
      const id = modelIdOf(name);
      expect(isModelId(id) || id.length > 134).toBe(true);
    }),
  );
  expect(isModelId('a/b')).toBe(false);
  expect(isModelId('a}b')).toBe(false);
});

describe('releasing a provision by hand', () => {
  const needsIt = (state: JobState | null) =>
    state !== null && (state === 'queued' || wantsEngines(state));

  test.each(PROVISION_STATES)('one that is %s', (state) => {
    for (const jobState of [...JOB_STATES, null]) {
      for (const choice of ['rehome', 'end', null] as const) {
        const step = releaseStep(jobState, state, choice);
        const isGone = state === 'releasing' || state === 'released';
        const expected = isGone ? 'nothing' : needsIt(jobState) ? (choice ?? 'ask') : 'release';
        expect(step, `${jobState} ${choice}`).toBe(expected);
      }
    }
  });

  test('only jobs that send lines or are about to need it', () => {
    const asking = JOB_STATES.filter((state) => releaseStep(state, 'serving', null) === 'ask');
    expect(asking).toEqual(['queued', 'resource_preparing', 'submitting', 'in_progress']);
  });

  test('the next one has the same slot, at the address that the settings give it now', () => {
    const released = { slot: 1, address: 'http://old' };
    const now = [
      { slot: 0, address: 'http://a' },
      { slot: 1, address: 'http://b' },
    ];
    expect(rehomeSlot(released, now)).toEqual({ slot: 1, address: 'http://b' });
    expect(rehomeSlot(released, [])).toEqual(released);
    expect(rehomeSlot(released, now.slice(0, 1))).toBeNull();
  });
});
