import { once } from 'node:events';
import { request } from 'node:http';
import * as v from 'valibot';
import { expect, inject, test } from 'vitest';
import type { Inspection } from '../../src/api/validate.ts';
import type { Offer } from '../../src/resources/contract.ts';
import { rawRequest, startApi } from '../support/api.ts';
import type { Overrides, TestApi } from '../support/api.ts';
import { requestLine } from '../support/batch.ts';
import { until } from '../support/until.ts';

const ENDPOINT = '/v1/chat/completions';
const BOTH = [
  ['/v1/batches/validate', 'input_file_id'],
  ['/api/v1/jobs/validate', 'input_dataset'],
] as const;

function start(overrides?: Overrides): Promise<TestApi> {
  return startApi(inject('redisUrl'), overrides);
}

async function upload(api: TestApi, text: string, purpose: 'batch' | 'user_data' = 'batch') {
  const file = new File([text], 'input.jsonl');
  return (await api.openai.files.create({ file, purpose })).id;
}

async function post(api: TestApi, path: string, body: object) {
  const text = JSON.stringify(body);
  const headers = { 'content-type': 'application/json', 'content-length': `${text.length}` };
  const answer = await rawRequest(`${api.url}${path}`, { method: 'POST', headers, body: [text] });
  return { ...answer, json: JSON.parse(answer.text) };
}

function line(id: string, more: object = {}): string {
  const messages = [{ role: 'user', content: 'x'.repeat(396) }];
  return requestLine(id, JSON.stringify({ model: 'm', messages, ...more }));
}

test.for(BOTH)(
  '%s says what would come of an input, and creates nothing',
  async ([path, field]) => {
    await using api = await start();
    const text = [
      line('a', { max_tokens: 100 }),
      line('b', { max_completion_tokens: 50, n: 2 }),
      line('c', { model: 'other' }),
      '',
    ].join('\n');
    const id = await upload(api, text);
    const { status, json } = await post(api, path, {
      [field]: id,
      endpoint: ENDPOINT,
      completion_window: '24h',
    });
    expect([status, json]).toEqual([
      200,
      {
        object: 'batch.validation',
        valid: true,
        validation: 'strict',
        input_file_id: id,
        endpoint: ENDPOINT,
        bytes: Buffer.byteLength(text),
        total_lines: 3,
        bad_lines: 0,
        problems: { object: 'list', data: [], total: 0 },
        warnings: { object: 'list', data: [] },
        models: ['m', 'other'],
        // Four letters of the role, and the content.
        estimated_input_tokens: 300,
        estimate_basis: 'bytes of text / 4',
        max_output_tokens: 200,
        lines_without_output_limit: 1,
        cost_estimate: null,
      },
    ]);
    expect((await api.store.jobs.page({ limit: 10 })).jobs).toEqual([]);
  },
);

test.for(BOTH)('%s lists the first 100 problems and how many there are', async ([path, field]) => {
  await using api = await start();
  const rows = [line('a'), line('a'), ...Array.from({ length: 150 }, () => 'nope')];
  const body = {
    [field]: await upload(api, rows.join('\n')),
    endpoint: ENDPOINT,
    completion_window: '24h',
  };
  const { json } = await post(api, path, body);
  expect(json).toMatchObject({ valid: false, total_lines: 152, bad_lines: 151 });
  expect(json.problems.total).toBe(151);
  expect(json.problems.data).toHaveLength(100);
  expect(json.problems.data[0]).toEqual({
    code: 'duplicate_custom_id',
    message: 'This custom_id is already used in line 1.',
    line: 2,
    param: 'custom_id',
  });
});

test('validation: lenient says that the good lines would run', async () => {
  await using api = await start();
  const id = await upload(api, `${line('a')}\nnope\n`);
  const common = { endpoint: ENDPOINT, completion_window: '24h' };
  const batch = { input_file_id: id, ...common, aibrix: { validation: 'lenient' } };
  const job = { input_dataset: id, ...common, validation: 'lenient' };
  for (const { json } of [
    await post(api, '/v1/batches/validate', batch),
    await post(api, '/api/v1/jobs/validate', job),
  ]) {
    expect(json).toMatchObject({ valid: true, validation: 'lenient', bad_lines: 1 });
    expect(json.problems.data).toMatchObject([{ code: 'invalid_json_line', line: 2 }]);
  }
  const empty = await upload(api, '\n');
  const { json } = await post(api, '/v1/batches/validate', { ...batch, input_file_id: empty });
  expect(json).toMatchObject({ valid: false, problems: { data: [{ code: 'empty_file' }] } });
});

test('a pinned model is one that all lines must name', async () => {
  await using api = await start();
  const id = await upload(api, [line('a'), line('b', { model: 'other' })].join('\n'));
  const body = {
    input_file_id: id,
    endpoint: ENDPOINT,
    completion_window: '24h',
    aibrix: { model: 'm' },
  };
  const { json } = await post(api, '/v1/batches/validate', body);
  expect(json.problems.data).toMatchObject([{ code: 'model_mismatch', line: 2 }]);
});

test('what creating would refuse is refused alike', async () => {
  await using api = await start();
  const id = await upload(api, line('a'));
  const good = { input_file_id: id, endpoint: ENDPOINT, completion_window: '24h' };
  const wrong: [object, string, string][] = [
    [{ ...good, input_file_id: 'file-none' }, 'invalid_input_file', 'input_file_id'],
    [
      { ...good, input_file_id: await upload(api, 'x', 'user_data') },
      'invalid_input_file',
      'input_file_id',
    ],
    [{ ...good, endpoint: '/v1/nope' }, 'invalid_value', 'endpoint'],
    [{ ...good, completion_window: 'soon' }, 'invalid_completion_window', 'completion_window'],
    [{ ...good, aibrix: { validation: 'lax' } }, 'invalid_value', 'aibrix.validation'],
    [{ ...good, aibrix: { validation: 1 } }, 'invalid_type', 'aibrix.validation'],
    [{ ...good, aibrix_: {} }, 'unknown_parameter', 'aibrix_'],
  ];
  for (const [body, code, param] of wrong) {
    const { status, json } = await post(api, '/v1/batches/validate', body);
    const created = await post(api, '/v1/batches', body);
    expect([created.status, created.json]).toEqual([status, json]);
    expect([status, json.error.param]).toEqual([400, param]);
    expect(json.error.code).toBe(code);
  }
  const lax = { input_dataset: id, endpoint: ENDPOINT, validation: 'lax' };
  const { status, json } = await post(api, '/api/v1/jobs/validate', lax);
  expect([status, json.error.param]).toEqual([400, 'validation']);
  expect(json.error.message).toMatch(/'strict'.*'lenient'/);
  const { status: noGet } = await rawRequest(`${api.url}/v1/batches/validate`);
  expect(noGet).toBe(405);
});

/** An offer as the catalog of static engines makes it. */
function offer(models: string[], more: Partial<Offer> = {}): Offer {
  return {
    provider: 'static',
    id: 'http://engine:8000',
    kind: 'engine',
    type: '',
    count: null,
    vramGb: null,
    pricePerHour: null,
    stock: 'available',
    regions: [],
    architecture: null,
    address: 'http://engine:8000',
    models,
    error: '',
    checkedAt: 0,
    ...more,
  };
}

const SILENT = offer([], { error: 'http://engine:8000/v1/models does not answer.' });
const WARNINGS: [string, Offer[], [string, RegExp][]][] = [
  ['all are served', [offer(['m']), offer(['other'])], []],
  [
    'one is not served',
    [offer(['m'])],
    [
      [
        'model_not_served',
        /'other' now: unless one does within 30 s, the job ends as submit_failed .* Served are: m\.$/,
      ],
    ],
  ],
  [
    'some engine is silent',
    [offer(['other']), SILENT],
    [
      [
        'model_not_served',
        /the model 'm' now: its lines would wait .*1 of 2 engines did not answer/,
      ],
    ],
  ],
  ['all engines are silent', [SILENT], [['no_engine_answers', /None of the 1 .*api\/v1\/catalog/]]],
  ['nobody knows of engines', [], []],
];
test.for(WARNINGS)('%s: warnings, and the input is valid', async ([, offers, warnings]) => {
  await using api = await start(() => ({ catalog: { offers: async () => offers } }));
  const id = await upload(api, [line('a'), line('b', { model: 'other' })].join('\n'));
  const common = { endpoint: ENDPOINT, completion_window: '24h' };
  for (const [path, field] of BOTH) {
    const { json } = await post(api, path, { [field]: id, ...common });
    expect(json).toMatchObject({ valid: true, models: ['m', 'other'] });
    expect(json.warnings).toEqual({
      object: 'list',
      data: warnings.map(([code, message]) => ({
        code,
        message: expect.stringMatching(message),
        param: code === 'model_not_served' ? 'body.model' : null,
      })),
    });
  }
  const options = { base_url: 'http://elsewhere:8000' };
  const aibrix = { runtime: { target: 'External', options } };
  const { json } = await post(api, BOTH[0][0], { input_file_id: id, ...common, aibrix });
  expect(json.warnings.data, 'of engines that nobody asks').toEqual([]);
});

test('what becomes of lines whose model nobody serves goes by `validation`', async () => {
  let offers = [offer(['m'])];
  await using api = await start(() => ({ catalog: { offers: async () => offers } }));
  const id = await upload(api, [line('a'), line('b', { model: 'other' })].join('\n'));
  async function said(validation: string): Promise<unknown[]> {
    const [, [path, field]] = BOTH;
    const body = { [field]: id, endpoint: ENDPOINT, completion_window: '24h', validation };
    const { json } = await post(api, path, body);
    return v
      .parse(v.array(v.object({ message: v.string() })), json.warnings.data)
      .map(({ message }) => message);
  }
  expect(await said('strict')).toEqual([expect.stringMatching(/the job ends as submit_failed/)]);
  expect(await said('lenient')).toEqual([
    expect.stringMatching(/its lines fail and go to the error file, while the others are asked/),
  ]);
  // With nothing to ask at all a lenient job ends as any other.
  offers = [offer(['third'])];
  const ends = expect.stringMatching(/the job ends as submit_failed/);
  expect(await said('lenient')).toEqual([ends, ends]);
  offers = [offer(['m']), SILENT];
  for (const validation of ['strict', 'lenient']) {
    const [message] = await said(validation);
    expect(message).toMatch(/would wait for one that does while an engine is silent/);
    expect(message).not.toMatch(/submit_failed|lines fail/);
  }
});

/** An inspection that ends when it is told to, or with its signal. */
function held() {
  const running: { signal: AbortSignal; end: (found: Inspection) => void }[] = [];
  const overrides: Overrides = () => ({
    inspectInput(_file, _rules, signal) {
      const { promise, resolve, reject } = Promise.withResolvers<Inspection>();
      signal.addEventListener('abort', () => reject(signal.reason));
      running.push({ signal, end: resolve });
      return promise;
    },
  });
  return { running, overrides };
}

const FOUND: Inspection = {
  lines: 1,
  bad: 0,
  models: [],
  problems: [],
  total: 0,
  unfit: null,
  estimate: { inputTokens: 0, maxOutputTokens: 0, unlimited: 1 },
};

test('two are validated at once, a third is told to come again', async () => {
  const { running, overrides } = held();
  await using api = await start(overrides);
  const id = await upload(api, line('a'));
  const body = { input_file_id: id, endpoint: ENDPOINT, completion_window: '24h' };
  const two = [post(api, '/v1/batches/validate', body), post(api, '/v1/batches/validate', body)];
  await until(() => running.length === 2, { timeoutMs: 5_000 });
  const third = await post(api, '/v1/batches/validate', body);
  expect([third.status, third.json.error.code]).toEqual([429, 'too_many_validations']);
  expect(third.headers['retry-after']).toBe('2');
  for (const { end } of running.splice(0)) end(FOUND);
  expect((await Promise.all(two)).map(({ status }) => status)).toEqual([200, 200]);
  const after = post(api, '/v1/batches/validate', body);
  await until(() => running.length === 1, { timeoutMs: 5_000 });
  running[0]?.end(FOUND);
  expect((await after).status).toBe(200);
});

test('a client that hangs up ends its validation, and gives its place back', async () => {
  const { running, overrides } = held();
  await using api = await start(overrides);
  const id = await upload(api, line('a'));
  const text = JSON.stringify({
    input_file_id: id,
    endpoint: ENDPOINT,
    completion_window: '24h',
  });
  for (let turn = 0; turn < 3; turn += 1) {
    const outgoing = request(`${api.url}/v1/batches/validate`, { method: 'POST', agent: false });
    outgoing.end(text);
    await until(() => running.length === turn + 1, { timeoutMs: 5_000 });
    const gone = once(outgoing, 'error');
    outgoing.destroy(new Error('enough'));
    await gone;
    await until(() => running[turn]?.signal.aborted, { timeoutMs: 5_000 });
  }
  await until(() => api.observed.length === 4, { timeoutMs: 5_000 });
  expect(api.observed.map(({ status }) => status)).toEqual([200, 499, 499, 499]);
  expect(api.logs.filter(({ level }) => Number(level) >= 50)).toEqual([]);
});
