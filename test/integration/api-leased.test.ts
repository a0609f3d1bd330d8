import { describe, expect, inject, test } from 'vitest';
import type { JobState } from '../../src/domain/job.ts';
import type { ApiDeps } from '../../src/api/app.ts';
import { outputFileId } from '../../src/domain/file.ts';
import type { JobChange } from '../../src/store/jobs.ts';
import { createdJob, refusedWith } from '../support/api-answers.ts';
import { postJson, uploadInput } from '../support/api.ts';
import type { Overrides, TestApi } from '../support/api.ts';
import {
  addTemplate,
  machineOffer,
  MODEL,
  SERVED,
  SPEC,
  startLeasing,
  TEMPLATE,
} from '../support/leasing-api.ts';

const ENDPOINT = '/v1/chat/completions';
const LINE = JSON.stringify({
  custom_id: 'a',
  method: 'POST',
  url: ENDPOINT,
  body: { model: SERVED, messages: [{ role: 'user', content: 'x'.repeat(400) }], max_tokens: 600 },
});
const BOTH = ['job', 'batch'] as const;
type Interface = (typeof BOTH)[number];

function start(defaults?: Partial<ApiDeps['defaults']>, more?: Overrides): Promise<TestApi> {
  return startLeasing(inject('redisUrl'), defaults, more);
}

/** The same wish in the words of either interface. */
async function ask(
  api: TestApi,
  by: Interface,
  { resources, template = TEMPLATE }: { resources?: object | undefined; template?: string | null },
  { path = '' } = {},
) {
  const input = await uploadInput(api, `${LINE}\n`);
  if (by === 'job') {
    return postJson(api, `/api/v1/jobs${path}`, {
      input_dataset: input,
      endpoint: ENDPOINT,
      ...(template === null ? {} : { model_template_name: template }),
      ...(resources === undefined ? {} : { resource_request: resources }),
    });
  }
  return postJson(api, `/v1/batches${path}`, {
    input_file_id: input,
    endpoint: ENDPOINT,
    completion_window: '24h',
    aibrix: {
      ...(template === null ? {} : { model_template: { name: template } }),
      ...(resources === undefined ? {} : { resource_allocation: resources }),
    },
  });
}

const FIELD = { job: 'resource_request', batch: 'aibrix.resource_allocation' };
const TEMPLATE_FIELD = { job: 'model_template_name', batch: 'aibrix.model_template' };

describe.each(BOTH)('a %s on a server that leases machines', (by) => {
  test('has a copy of its template, and machines as the server gives them', async () => {
    await using api = await start();
    const { options } = await createdJob(api, await ask(api, by, {}));
    expect(options).toMatchObject({
      template: { name: TEMPLATE, version: 'v1.0.0' },
      pinnedModel: SERVED,
      resources: {
        spec: { ...SPEC, model_source: expect.objectContaining(SPEC.model_source) },
        servingName: SERVED,
        templateId: expect.stringMatching(/^tpl_/),
        replicas: 1,
        providers: ['runpod', 'lambdaCloud'],
        regions: [],
        gpuTypes: [],
        interruptible: false,
        maxPricePerHour: null,
        maxCostUsd: null,
        maxIdleMinutes: null,
      },
    });
  });

  const FIELDS: [string, object, object][] = [
    ['replicas', { replicas: 3 }, { replicas: 3 }],
    ['replicas 0', { replicas: 0 }, { replicas: 1 }],
    ['provider', { provider: 'lambdaCloud' }, { providers: ['lambdaCloud'] }],
    [
      'provider as a list',
      { provider: ['lambdaCloud', 'runpod', 'lambdaCloud'] },
      { providers: ['lambdaCloud', 'runpod'] },
    ],
    ['provider of nobody', { provider: '' }, { providers: ['runpod', 'lambdaCloud'] }],
    ['regions', { regions: ['US-KS-2', 'us-west-1'] }, { regions: ['US-KS-2', 'us-west-1'] }],
    ['gpu_types', { gpu_types: ['H200', 'H100'] }, { gpuTypes: ['H200', 'H100'] }],
    ['interruptible', { interruptible: true }, { interruptible: true }],
    ['max_price_per_hour', { max_price_per_hour: 2.5 }, { maxPricePerHour: 2.5 }],
    ['max_cost_usd', { max_cost_usd: 40 }, { maxCostUsd: 40 }],
    ['max_idle_minutes', { max_idle_minutes: 0.5 }, { maxIdleMinutes: 0.5 }],
  ];
  test.each(FIELDS)('is given %s', async (_field, resources, kept) => {
    await using api = await start();
    const { options } = await createdJob(api, await ask(api, by, { resources }));
    expect(options.resources).toMatchObject(kept);
  });

  const WRONG: [string, object, string, RegExp][] = [
    [
      'a provider that is not enabled',
      { provider: 'lambdaCloud' },
      'provider',
      /leases from runpod, not from 'lambdaCloud': .*PROVISIONER=runpod,lambdaCloud/,
    ],
    [
      'a provider that is none',
      { provider: ['runpod', 'aws'] },
      'provider',
      /leases from runpod, not from 'aws': name one of these\.$/,
    ],
    [
      'more machines than may be leased',
      { replicas: 9 },
      'replicas',
      /at most 8 machines .*MAX_LEASES/,
    ],
    ['a limit of nothing', { max_cost_usd: 0 }, 'max_cost_usd', /above 0 .*leave it out/],
    ['a price that is none', { max_price_per_hour: '2' }, 'max_price_per_hour', /US dollars/],
    ['no name of a region', { regions: [''] }, 'regions.0', /1 to 128/],
    ['a region for a list', { regions: 'us' }, 'regions', /a list/],
    ['a GPU for a list', { gpu_types: 'H100' }, 'gpu_types', /a list/],
    ['a provider of no kind', { provider: 7 }, 'provider', /in the order/],
    ['a typo', { region: ['us'] }, 'region', /Did you mean 'regions'/],
  ];
  test.each(WRONG)('is refused with %s', async (_what, resources, field, message) => {
    await using api = await start({ providers: ['runpod'] });
    const answer = await ask(api, by, { resources });
    const { error } = answer.body as { error: { param: string; message: string } };
    expect([answer.status, error.param]).toEqual([400, `${FIELD[by]}.${field}`]);
    expect(error.message).toMatch(message);
  });

  test('has the limits of the server where it sets none', async () => {
    await using api = await start({ spend: { maxCostUsd: 10, maxIdleMinutes: 15 } });
    const plain = await createdJob(api, await ask(api, by, {}));
    expect(plain.options.resources).toMatchObject({ maxCostUsd: 10, maxIdleMinutes: 15 });
    const resources = { max_cost_usd: 2, max_idle_minutes: 25 };
    const own = await createdJob(api, await ask(api, by, { resources }));
    expect(own.options.resources).toMatchObject({ maxCostUsd: 2, maxIdleMinutes: 25 });
  });

  test('needs a template', async () => {
    await using api = await start();
    expect(await ask(api, by, { template: null })).toMatchObject(
      refusedWith(
        'template_required',
        TEMPLATE_FIELD[by],
        /leases machines \(PROVISIONER=runpod,lambdaCloud\).*DEFAULT_BATCH_MODEL_DEPLOYMENT_TEMPLATE/,
      ),
    );
  });

  test('has the default template where it names none', async () => {
    await using api = await start({ defaultTemplate: TEMPLATE });
    const { options } = await createdJob(api, await ask(api, by, { template: null }));
    expect(options).toMatchObject({
      template: { name: TEMPLATE, version: 'v1.0.0' },
      resources: { servingName: SERVED },
    });
  });

  test('says whose a default template is that there is not', async () => {
    await using api = await start({ defaultTemplate: 'gone' });
    expect(await ask(api, by, { template: null })).toMatchObject(
      refusedWith(
        'template_not_found',
        TEMPLATE_FIELD[by],
        /no template 'gone'.*default of this server \(DEFAULT_BATCH_MODEL_DEPLOYMENT_TEMPLATE\)/,
      ),
    );
  });

  const UNFIT: [string, object, string, RegExp][] = [
    [
      'a flag that an engine ignores',
      { engine: { ...SPEC.engine, serve_args: ['--port', '9'] } },
      'engine.refused',
      /'v1\.0\.0' cannot be started on a machine of runpod\. .*--port/,
    ],
    [
      'an engine that nobody starts',
      { engine: { ...SPEC.engine, type: 'trtllm' } },
      'engine.unsupported',
      /supported are vllm/,
    ],
    [
      'an engine of somebody else',
      { deployment_mode: 'external' },
      'engine.refused',
      /deployment_mode: external.*set it to dedicated/,
    ],
  ];
  test.each(UNFIT)('is refused before anything is leased: %s', async (_what, more, code, text) => {
    await using api = await start();
    await addTemplate(api, 'unfit', { ...SPEC, ...more });
    const answers = [
      await ask(api, by, { template: 'unfit' }),
      await ask(api, by, { template: 'unfit' }, { path: '/validate' }),
    ];
    for (const answer of answers) {
      expect(answer).toMatchObject(refusedWith(code, TEMPLATE_FIELD[by], text));
    }
    expect((await api.store.jobs.page({ limit: 10 })).jobs).toEqual([]);
  });

  test('is estimated on the cheapest machine that fits', async () => {
    const offers = [
      machineOffer({ pricePerHour: 1, type: 'NVIDIA L4', id: 'l4', vramGb: 24 }),
      machineOffer({ pricePerHour: 3.6, provider: 'lambdaCloud', id: 'gpu_1x_h100_pcie' }),
      machineOffer(),
      machineOffer({ pricePerHour: null, id: 'unknown' }),
    ];
    await using api = await start({}, () => ({ catalog: { offers: async () => offers } }));
    const { body } = await ask(api, by, { resources: { replicas: 2 } }, { path: '/validate' });
    expect(body).toMatchObject({
      valid: true,
      warnings: { data: [] },
      cost_estimate: {
        basis: 'assumed',
        provider: 'runpod',
        gpu_type: 'NVIDIA H100 PCIe',
        gpu_count: 1,
        replicas: 2,
        price_per_hour: 2.4,
        output_tokens: 600,
        // Ten minutes to start, and next to nothing to run.
        seconds: 601,
        usd: 0.8,
      },
    });
    const dear = await ask(
      api,
      by,
      { resources: { provider: 'lambdaCloud' } },
      { path: '/validate' },
    );
    expect(dear.body).toMatchObject({ cost_estimate: { provider: 'lambdaCloud', usd: 0.66 } });
    // The one that it prefers is not the cheapest one.
    const resources = { gpu_types: ['H200', 'H100'] };
    offers.push(machineOffer({ pricePerHour: 4, type: 'NVIDIA H200', id: 'h200', vramGb: 141 }));
    const either = await ask(api, by, { resources }, { path: '/validate' });
    expect(either.body).toMatchObject({ cost_estimate: { price_per_hour: 2.4 } });
    expect((await api.store.jobs.page({ limit: 10 })).jobs).toEqual([]);
  });

  test('is warned of machines that are not to be had', async () => {
    const offers = [machineOffer({ stock: 'unavailable' })];
    await using api = await start({}, () => ({ catalog: { offers: async () => offers } }));
    const wishes: [object, string][] = [
      [{}, 'lease.no_capacity'],
      [{ gpu_types: ['B999'] }, 'lease.no_gpu_type'],
      [{ max_price_per_hour: 2 }, 'lease.no_offer'],
    ];
    for (const [resources, code] of wishes) {
      const { body } = await ask(api, by, { resources }, { path: '/validate' });
      expect(body).toMatchObject({
        valid: true,
        cost_estimate: null,
        warnings: { data: [{ code }] },
      });
    }
  });
});

describe('resource_allocation in the words of AIBrix', () => {
  test('is one kind of machine, and how many', async () => {
    await using api = await start();
    const resources = { resource_details: [{ gpu_type: 'H200', replica: 2 }] };
    const { options } = await createdJob(api, await ask(api, 'batch', { resources }));
    expect(options.resources).toMatchObject({ gpuTypes: ['H200'], replicas: 2 });
  });

  const DETAIL = { gpu_type: 'H200', replica: 2 };
  test.each<[object, string, RegExp]>([
    [{ resource_details: [DETAIL, DETAIL] }, 'resource_details', /at most one/],
    [{ resource_details: [DETAIL], replicas: 3 }, 'replicas', /twice/],
    [{ resource_details: [DETAIL], gpu_types: ['H100'] }, 'gpu_types', /twice/],
    [
      { resource_details: [{ endpoint_cluster: 'c' }] },
      'resource_details.0.endpoint_cluster',
      /regions/,
    ],
    [{ provision_id: 'p' }, 'provision_id', /aibrix\.runtime/],
    [{ provision_resource_deadline: 1 }, 'provision_resource_deadline', /completion_window/],
  ])('%j is refused', async (resources, field, message) => {
    await using api = await start();
    const answer = await ask(api, 'batch', { resources });
    const { error } = answer.body as { error: { param: string; message: string } };
    expect([answer.status, error.param]).toEqual([400, `aibrix.resource_allocation.${field}`]);
    expect(error.message).toMatch(message);
  });
});

test('a model of the request says whose default template is meant', async () => {
  await using api = await start({ defaultTemplate: TEMPLATE });
  const body = { input_dataset: await uploadInput(api), endpoint: ENDPOINT };
  await postJson(api, '/api/v1/models', { id: 'model-other', name: 'Other' });
  const other = '/api/v1/models/model-other/deployment-templates';
  await postJson(api, other, { name: TEMPLATE, version: 'v2.0.0', spec: SPEC });
  const both = await postJson(api, '/api/v1/jobs', body);
  expect(both).toMatchObject(refusedWith('template_ambiguous', 'model_template_name', /Several/));
  const one = await postJson(api, '/api/v1/jobs', { ...body, model_id: MODEL });
  expect((await createdJob(api, one)).options.template).toEqual({
    name: TEMPLATE,
    version: 'v1.0.0',
  });
});

test('engines of the caller are used, and nothing is leased for them', async () => {
  await using api = await start();
  const runtime = { target: 'External', options: { base_url: 'http://mine:8000' } };
  const batch = {
    input_file_id: await uploadInput(api),
    endpoint: ENDPOINT,
    completion_window: '24h',
  };
  const record = await createdJob(
    api,
    await postJson(api, '/v1/batches', { ...batch, aibrix: { runtime } }),
  );
  expect([record.engines, record.options.resources]).toEqual([['http://mine:8000'], null]);
  for (const [resources, field] of [
    [{ gpu_types: ['H100'] }, 'gpu_types'],
    [{ replicas: 2 }, 'replicas'],
  ] as const) {
    const aibrix = { runtime, resource_allocation: resources };
    expect(await postJson(api, '/v1/batches', { ...batch, aibrix })).toMatchObject(
      refusedWith('invalid_value', `aibrix.resource_allocation.${field}`, /aibrix\.runtime/),
    );
  }
});

describe('a copy of a job', () => {
  test('has its machines, and the limits of the server where it set none', async () => {
    const spend: { maxCostUsd: number | null; maxIdleMinutes: number | null } = {
      maxCostUsd: null,
      maxIdleMinutes: null,
    };
    await using api = await start({ spend });
    const resources = { replicas: 3, gpu_types: ['H200'], max_cost_usd: 40, interruptible: true };
    const first = await createdJob(api, await ask(api, 'job', { resources }));
    const path = `/api/v1/jobs/${first.id}/clone`;
    const same = await createdJob(api, await postJson(api, path, {}));
    expect(same.options).toEqual(first.options);
    Object.assign(spend, { maxCostUsd: 30, maxIdleMinutes: 5 });
    const bounded = await createdJob(api, await postJson(api, path, {}));
    expect(bounded.options.resources).toEqual({
      ...first.options.resources,
      maxCostUsd: 40,
      maxIdleMinutes: 5,
    });
  });

  test('that asks its failed lines again has them as well', async () => {
    await using api = await start();
    const resources = { provider: 'runpod', gpu_types: ['H200'], max_cost_usd: 40 };
    const first = await createdJob(api, await ask(api, 'job', { resources }));
    const errorFile = outputFileId(first.id, 'error');
    const file = { bytes: 1, sha256: '', filename: 'e', purpose: 'batch_output' } as const;
    await api.store.files.create({ id: errorFile, ...file });
    const steps: [JobState, JobChange][] = [
      ['resource_preparing', { set: { lines: 1, shards: 1 } }],
      ['finalizing', { outcome: 'completed' }],
      ['completed', { set: { failed: 1, errorFile } }],
    ];
    for (const [to, change] of steps) {
      const job = await api.store.jobs.get(first.id);
      if (job === null) throw new Error('the job is gone');
      await api.store.jobs.move(job, to, change);
    }
    const again = await createdJob(api, await postJson(api, `/api/v1/jobs/${first.id}/retry`, {}));
    expect(again.options).toEqual({ ...first.options, retryOf: first.id });
  });

  test('of a server without machines has some by its template where they are leased', async () => {
    const providers: ('runpod' | 'lambdaCloud')[] = [];
    await using api = await start({ providers, engineUrls: ['http://engine:8000'] });
    const first = await createdJob(api, await ask(api, 'job', {}));
    expect(first.options.resources).toBeNull();
    providers.push('runpod');
    const path = `/api/v1/jobs/${first.id}/clone`;
    const leased = await createdJob(api, await postJson(api, path, {}));
    expect(leased.options.resources).toMatchObject({ servingName: SERVED, providers: ['runpod'] });
    providers.pop();
    const back = `/api/v1/jobs/${leased.id}/clone`;
    expect((await createdJob(api, await postJson(api, back, {}))).options.resources).toBeNull();
  });

  test('is not to be had of a provider that is enabled no longer', async () => {
    const providers: ('runpod' | 'lambdaCloud')[] = ['runpod', 'lambdaCloud'];
    await using api = await start({ providers });
    const made: string[] = [];
    for (const provider of ['lambdaCloud', ['lambdaCloud', 'runpod']]) {
      made.push((await createdJob(api, await ask(api, 'job', { resources: { provider } }))).id);
    }
    providers.pop();
    const [only, both] = made.map((id) => `/api/v1/jobs/${id}/clone`);
    expect(await postJson(api, only ?? '', {})).toMatchObject(
      refusedWith('provider_not_enabled', 'id', /leases from runpod, not from 'lambdaCloud'/),
    );
    const { options } = await createdJob(api, await postJson(api, both ?? '', {}));
    expect(options.resources?.providers).toEqual(['runpod']);
  });
});

test('the capabilities say what a job may have', async () => {
  await using api = await start({ spend: { maxCostUsd: 10, maxIdleMinutes: null } });
  const answer = await fetch(`${api.url}/api/v1/config/job-capabilities`);
  expect(await answer.json()).toMatchObject({
    resource_request: {
      min_replicas: 1,
      max_replicas: 8,
      default_max_cost_usd: 10,
      default_max_idle_minutes: null,
    },
    providers: ['runpod', 'lambdaCloud'],
    default_template: '',
  });
});
