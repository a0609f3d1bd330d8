import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  ANNOTATION_PREFIX,
  formatAnnotations,
  mergeAnnotations,
  parseAnnotations,
} from '../../src/domain/kubernetes/annotations.ts';
import type { BatchSpec } from '../../src/domain/kubernetes/annotations.ts';

const LEAST = { 'input-file-id': 'file-123', endpoint: '/v1/chat/completions' };

const NOTHING: BatchSpec = {
  inputFileId: 'file-123',
  endpoint: '/v1/chat/completions',
  completionWindow: null,
  sessionId: null,
  metadata: {},
  failAfterRequests: null,
  aibrix: null,
  outputFileId: null,
  errorFileId: null,
  tempOutputFileId: null,
  tempErrorFileId: null,
  modelTemplateName: null,
  modelTemplateVersion: null,
  profileName: null,
  templateOverrides: null,
  profileOverrides: null,
};

function specOf(values: Record<string, string>): BatchSpec {
  const parsed = parseAnnotations({ ...LEAST, ...values });
  if ('spec' in parsed && parsed.problems === undefined) return parsed.spec;
  throw new Error(`it was refused: ${parsed.problems?.join(', ')}`);
}

function problemsOf(values: Record<string, string>): readonly string[] {
  return parseAnnotations(values).problems ?? [];
}

describe('annotations that are a batch', () => {
  test.for<[name: string, values: Record<string, string>, spec: Partial<BatchSpec>]>([
    ['the least', {}, {}],
    ['session-id', { 'session-id': 's-1' }, { sessionId: 's-1' }],
    ['completion-window', { 'completion-window': '1d12h' }, { completionWindow: '1d12h' }],
    [
      'metadata.<key>',
      { 'metadata.priority': 'high', 'metadata.customer': 'test-customer' },
      { metadata: { priority: 'high', customer: 'test-customer' } },
    ],
    [
      'opts.<key> of the older generation',
      { 'opts.fail_after_n_requests': '3' },
      { failAfterRequests: 3 },
    ],
    ['opts of the newer one', { opts: '{"fail_after_n_requests":4}' }, { failAfterRequests: 4 }],
    [
      'ids of files',
      {
        'output-file-id': 'out',
        'temp-output-file-id': 'out-t',
        'error-file-id': 'err',
        'temp-error-file-id': 'err-t',
      },
      {
        outputFileId: 'out',
        tempOutputFileId: 'out-t',
        errorFileId: 'err',
        tempErrorFileId: 'err-t',
      },
    ],
    [
      'template and profile',
      {
        'model-template-name': 't',
        'model-template-version': 'v1',
        'profile-name': 'p',
        'template-overrides': '{"engine_args":{}}',
        'profile-overrides': '{"scheduling":{}}',
      },
      {
        modelTemplateName: 't',
        modelTemplateVersion: 'v1',
        profileName: 'p',
        templateOverrides: { engine_args: {} },
        profileOverrides: { scheduling: {} },
      },
    ],
    ['aibrix', { aibrix: '{"model":"m"}' }, { aibrix: { model: 'm' } }],
    [
      'the state that a control plane has written',
      { state: 'in_progress', condition: 'cancelled', 'in-progress-at': '2026-01-01T00:00:00Z' },
      {},
    ],
  ])('%s', ([, values, spec]) => {
    expect(specOf(values)).toEqual({ ...NOTHING, ...spec });
  });
});

describe('annotations that are none', () => {
  test.for<[name: string, values: Record<string, string>, says: string]>([
    [
      'no input-file-id',
      { endpoint: '/v1/embeddings' },
      "Required annotation 'batch.job.aibrix.ai/input-file-id' not found",
    ],
    [
      'no endpoint',
      { 'input-file-id': 'x' },
      "Required annotation 'batch.job.aibrix.ai/endpoint' not found",
    ],
    [
      'an endpoint that there is not',
      { ...LEAST, endpoint: '/invalid/endpoint' },
      "endpoint must be one of /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/responses, /v1/rerank, /v1/score, /v1/moderations, got '/invalid/endpoint'",
    ],
    [
      'a window in seconds',
      { ...LEAST, 'completion-window': '30s' },
      "completion-window must be days, hours and minutes such as 24h, 1d12h or 90m, at most 365d, got '30s'",
    ],
    [
      'a slip of the pen',
      { ...LEAST, 'completion-windows': '24h' },
      'completion-windows is no annotation of a batch',
    ],
    [
      'an option that there is not',
      { ...LEAST, 'opts.speed': 'fast' },
      'opts.speed is no option: the only one is fail_after_n_requests',
    ],
    [
      'an option of the wrong kind',
      { ...LEAST, opts: '{"fail_after_n_requests":0}' },
      'opts.fail_after_n_requests must be a whole number from 1, got 0',
    ],
    ['JSON that is none', { ...LEAST, aibrix: '{' }, "aibrix must be a JSON object, got '{'"],
    [
      'JSON that is no object',
      { ...LEAST, 'profile-overrides': '[]' },
      "profile-overrides must be a JSON object, got '[]'",
    ],
    [
      'a path as id',
      { ...LEAST, 'output-file-id': '../x' },
      "output-file-id must be 1 to 200 characters out of A-Z, a-z, 0-9, ., _ and -, got '../x'",
    ],
    [
      'one file for both',
      { ...LEAST, 'output-file-id': 'x', 'error-file-id': 'x' },
      'error-file-id must be another one than output-file-id',
    ],
    [
      'a long value',
      { ...LEAST, 'metadata.k': 'x'.repeat(513) },
      'metadata.k must have at most 512 characters, got 513',
    ],
  ])('%s', ([, values, says]) => {
    const problems = problemsOf(values);
    expect(problems).toHaveLength(1);
    expect(problems[0]).toContain(says);
  });

  test('more than 16 pairs of metadata', () => {
    const pairs = Array.from({ length: 17 }, (_each, n) => [`metadata.k${n}`, 'v']);
    expect(problemsOf({ ...LEAST, ...Object.fromEntries(pairs) })).toEqual([
      'batch.job.aibrix.ai/metadata.<key>: a batch has at most 16 of them, got 17',
    ]);
  });

  test('all that is wrong is said at once', () => {
    expect(problemsOf({ endpoint: 'x', opts: '1', 'completion-window': 'y' })).toHaveLength(4);
  });
});

test('the Job’s annotation counts before that of its pod template, and an empty one is none', () => {
  const own = (annotations: Record<string, string>) =>
    Object.fromEntries(
      Object.entries(annotations).map(([key, value]) => [`${ANNOTATION_PREFIX}${key}`, value]),
    );
  const { values, conflicts } = mergeAnnotations([
    { name: 'the Job', annotations: { ...own({ endpoint: '', 'session-id': 'a' }), other: 'x' } },
    {
      name: 'its pod template',
      annotations: own({ endpoint: '/v1/embeddings', 'session-id': 'b', state: 'created' }),
    },
  ]);
  expect(values).toEqual({ endpoint: '/v1/embeddings', 'session-id': 'a', state: 'created' });
  expect(conflicts).toEqual([
    "batch.job.aibrix.ai/session-id is 'a' on the Job and 'b' on its pod template: the Job's counts",
  ]);
});

test('what is written is read back, whatever is in it', () => {
  const text = fc.string({ minLength: 1, maxLength: 40 });
  const maybe = fc.option(text, { nil: null });
  const id = fc.option(fc.stringMatching(/^[A-Za-z0-9_-]{1,40}$/), { nil: null });
  const object = fc.option(fc.dictionary(fc.string(), fc.jsonValue()), { nil: null });
  const spec = fc.record({
    inputFileId: text,
    endpoint: fc.constantFrom('/v1/embeddings' as const, '/v1/score' as const),
    completionWindow: fc.constantFrom(null, '24h', '1d2h3m'),
    sessionId: maybe,
    metadata: fc.dictionary(fc.stringMatching(/^[a-z0-9]{1,10}$/), text, { maxKeys: 16 }),
    failAfterRequests: fc.option(fc.integer({ min: 1 }), { nil: null }),
    aibrix: object,
    outputFileId: id.map((each) => each && `o${each}`),
    errorFileId: id.map((each) => each && `e${each}`),
    tempOutputFileId: maybe,
    tempErrorFileId: maybe,
    modelTemplateName: maybe,
    modelTemplateVersion: maybe,
    profileName: maybe,
    templateOverrides: object,
    profileOverrides: object,
  });
  fc.assert(
    fc.property(spec, (wanted) => {
      const { values } = mergeAnnotations([
        { name: 'the Job', annotations: formatAnnotations(wanted) },
      ]);
      const parsed = parseAnnotations(values);
      // As JSON has them: no -0, and objects without a prototype are none.
      const plain = (value: unknown): unknown => JSON.parse(JSON.stringify(value));
      expect(plain(parsed)).toEqual(plain({ spec: wanted }));
    }),
  );
});
