import * as v from 'valibot';
import { expect, inject, test } from 'vitest';
import type { JobState, QueueName } from '../../src/domain/job.ts';
import type { ProvisionRecord } from '../../src/domain/provision.ts';
import { postJson, uploadInput } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';
import { openEvents } from '../support/event-stream.ts';
import {
  attemptOf,
  leasedProvision,
  SPEC,
  startLeasing,
  TEMPLATE,
} from '../support/leasing-api.ts';

const PATH = '/api/v1/jobs';
const HOUR = 3_600_000;

/** A server whose jobs have these provisions. */
async function start(provisionsOf: (jobId: string) => ProvisionRecord[]): Promise<TestApi> {
  return startLeasing(inject('redisUrl'), {}, ({ store }) => ({
    store: {
      ...store,
      provisions: { ...store.provisions, ofJob: async (id: string) => provisionsOf(id) },
    },
  }));
}

async function makeJob(api: TestApi, resources: object, ...path: JobState[]): Promise<string> {
  const { body } = await postJson(api, PATH, {
    input_dataset: await uploadInput(api),
    endpoint: '/v1/chat/completions',
    model_template_name: TEMPLATE,
    resource_request: resources,
  });
  const { id } = v.parse(v.object({ id: v.string() }), body);
  for (const to of path) {
    const job = await api.store.jobs.get(id);
    if (job === null) throw new Error(`no job ${id}`);
    const failed = to === 'resource_failed';
    const reason = 'runpod: there are no instances left of NVIDIA H100 PCIe.';
    const change = failed ? { outcome: to, set: { reason } } : {};
    expect(await api.store.jobs.move(job, to, change)).not.toBe('stale');
  }
  return id;
}

async function get(api: TestApi, path: string) {
  const response = await fetch(`${api.url}${path}`);
  expect(response.status).toBe(200);
  return v.parse(v.looseObject({ provision: v.nullable(provision) }), await response.json());
}

const named = v.object({ name: v.string(), version: v.string() });
const provision = v.looseObject({ raw_json: v.string() });

test('a job shows every machine that it ever had by the provider’s own id, whatever became of it', async () => {
  const attempts = [
    attemptOf(1, {
      state: 'none',
      machine: null,
      endedAt: 1,
      createdAt: null,
      error: 'no stock',
      raw: '',
    }),
    attemptOf(2, { error: 'no GPU answers', raw: '{"desiredStatus":"EXITED"}' }),
    attemptOf(3, { region: 'EU-RO-1', raw: 'cut {' }),
  ];
  const login = { host: '1.2.3.4', port: 10_022, user: 'root' };
  await using api = await start((id) => [
    leasedProvision({ id }, 0, { state: 'released', attempts, login }),
  ]);
  const id = await makeJob(api, {}, 'resource_failed');
  const job = await get(api, `${PATH}/${id}`);
  expect(job).toMatchObject({
    status: 'resource_failed',
    error_message: 'runpod: there are no instances left of NVIDIA H100 PCIe.',
    provision: { provider: 'runpod', region: 'EU-RO-1', status: 'released' },
  });
  const raw: unknown = JSON.parse(job.provision?.raw_json ?? '');
  expect(raw).toMatchObject({
    status: 'released',
    region: 'EU-RO-1',
    runpod: {
      pods: [
        { podId: 'pod-2', gpuTypeId: 'NVIDIA H100 PCIe', publicIp: '', state: 'gone' },
        {
          podId: 'pod-3',
          publicIp: '1.2.3.4',
          sshUser: 'root',
          sshPort: 10_022,
          dataCenterId: 'EU-RO-1',
        },
      ],
    },
    attempts: [
      { n: 1, machineId: '', state: 'none', error: 'no stock', createdAt: '', raw: null },
      {
        n: 2,
        provider: 'runpod',
        name: attempts[1]?.name,
        machineId: 'pod-2',
        pricePerHour: 2.4,
        region: 'US-KS-2',
        state: 'gone',
        error: 'no GPU answers',
        askedAt: '2001-09-09T01:46:40.000Z',
        createdAt: '2001-09-09T01:46:40.000Z',
        reachedAt: '2001-09-09T01:47:40.000Z',
        endedAt: '2001-09-09T02:46:40.000Z',
        raw: { desiredStatus: 'EXITED' },
      },
      { n: 3, machineId: 'pod-3', raw: 'cut {' },
    ],
  });
});

test('raw_json of a job has the machines of all its provisions, at whichever provider', async () => {
  const lambda = {
    provider: 'lambdaCloud',
    offer: 'gpu_1x_h100_pcie',
    region: 'us-west-1',
    machine: 'i-1',
  } as const;
  await using api = await start((id) => [
    leasedProvision({ id }, 0, { state: 'released', attempts: [attemptOf(1)] }),
    leasedProvision({ id }, 1, { provider: 'lambdaCloud', attempts: [attemptOf(1, lambda)] }),
  ]);
  const job = await get(api, `${PATH}/${await makeJob(api, {})}`);
  expect(JSON.parse(job.provision?.raw_json ?? '')).toMatchObject({
    provisionId: expect.stringMatching(/_1_0$/),
    attempts: [{ machineId: 'i-1' }],
    others: [{ status: 'released', attempts: [{ machineId: 'pod-1' }] }],
    runpod: { pods: [{ podId: 'pod-1' }] },
    lambdaCloud: {
      groupResults: [
        {
          instances: [{ instanceId: 'i-1', instanceType: 'gpu_1x_h100_pcie', region: 'us-west-1' }],
          replicas: 1,
          acceleratorType: 'NVIDIA H100 PCIe',
          acceleratorCount: 1,
        },
      ],
    },
  });
});

test('why a machine was not to be had is its error where the provision has no other', async () => {
  const attempts = [attemptOf(1, { error: 'no stock' })];
  await using api = await start((id) => [leasedProvision({ id }, 0, { attempts, reason: '' })]);
  const id = await makeJob(api, {});
  expect(await get(api, `${PATH}/${id}`)).toMatchObject({
    provision: { error_message: 'no stock' },
  });
});

test('resource_allocation says what is asked for, then what is leased, then what was', async () => {
  let provisions: (jobId: string) => ProvisionRecord[] = () => [];
  await using api = await start((id) => provisions(id));
  const resources = { replicas: 3, gpu_types: ['H200'], max_cost_usd: 9, regions: ['US-KS-2'] };
  const path = `${PATH}/${await makeJob(api, resources)}`;
  const requested = {
    replicas: 3,
    provider: ['runpod', 'lambdaCloud'],
    regions: ['US-KS-2'],
    gpu_types: ['H200'],
    gpu_count: 1,
    interruptible: false,
    max_price_per_hour: null,
    max_cost_usd: 9,
    max_idle_minutes: null,
  };
  const { model_template_ref: template } = await get(api, path);
  const { raw_json: copy } = v.parse(
    v.object({ ...named.entries, raw_json: v.string() }),
    template,
  );
  expect(JSON.parse(copy)).toMatchObject({ name: TEMPLATE, version: 'v1.0.0', spec: SPEC });
  const asked = { endpoint_cluster: '', gpu_type: 'H200', replica: 3, extra: { gpu_count: '1' } };
  expect(await get(api, path)).toMatchObject({
    resource_allocation: {
      provision_id: '',
      provision_resource_deadline: 0,
      resource_details: [asked],
      requested,
    },
  });
  const there = { state: 'there', endedAt: null } as const;
  provisions = (id) => [
    leasedProvision({ id }, 0, { attempts: [attemptOf(1), attemptOf(2, there)] }),
    leasedProvision({ id }, 1, { attempts: [attemptOf(1, there)] }),
    leasedProvision({ id }, 2, { attempts: [attemptOf(1, { ...there, region: 'EU-RO-1' })] }),
    leasedProvision({ id }, 3, { attempts: [attemptOf(1)] }),
  ];
  const extra = {
    provider: 'runpod',
    region: 'US-KS-2',
    offer: '1x NVIDIA H100 PCIe',
    gpu_count: '1',
    price_per_hour: '2.4',
  };
  const detail = { endpoint_cluster: '', gpu_type: 'NVIDIA H100 PCIe', replica: 2, extra };
  const other = { ...detail, replica: 1, extra: { ...extra, region: 'EU-RO-1' } };
  expect(await get(api, path)).toMatchObject({
    resource_allocation: {
      provision_id: expect.stringMatching(/_0_0$/),
      resource_details: [detail, other],
      requested,
    },
  });
  provisions = (id) => [leasedProvision({ id }, 0, { attempts: [attemptOf(1)] })];
  expect(await get(api, path)).toMatchObject({
    resource_allocation: { resource_details: [{ ...detail, replica: 1 }] },
  });
});

test('the cost of a job is that of all its machines, and final once none can cost any more', async () => {
  let provisions: (jobId: string) => ProvisionRecord[] = () => [];
  await using api = await start((id) => provisions(id));
  const id = await makeJob(api, {});
  const path = `${PATH}/${id}`;
  const nothing = { so_far_usd: 0, per_hour_usd: 0, unpriced_machines: 0, is_final: false };
  expect(await get(api, path)).toMatchObject({ cost: nothing });

  const gone = attemptOf(1);
  const now = Date.now();
  const half = { createdAt: null, askedAt: now - HOUR / 2, endedAt: null, state: 'there' } as const;
  const unpriced = attemptOf(1, { pricePerHour: null });
  const never = attemptOf(1, { machine: null, createdAt: null, state: 'none' });
  provisions = (job) => [
    leasedProvision({ id: job }, 0, { attempts: [gone, attemptOf(2, half)] }),
    leasedProvision({ id: job }, 1, { attempts: [unpriced, never] }),
  ];
  expect(await get(api, path)).toMatchObject({
    cost: { so_far_usd: 3.6, per_hour_usd: 2.4, unpriced_machines: 1, is_final: false },
  });

  const doubt = attemptOf(2, { machine: null, createdAt: null, state: 'unknown', endedAt: null });
  provisions = (job) => [leasedProvision({ id: job }, 0, { attempts: [gone, doubt] })];
  const cancelled = await fetch(`${api.url}${path}/cancel`, { method: 'POST' });
  expect(await cancelled.json()).toMatchObject({
    status: 'cancelled',
    cost: { so_far_usd: 2.4, per_hour_usd: 0, is_final: false },
  });
  provisions = (job) => [leasedProvision({ id: job }, 0, { attempts: [gone, never] })];
  expect(await get(api, path)).toMatchObject({ cost: { so_far_usd: 2.4, is_final: true } });
});

test('the states of a leased job and their events are those of the guide', async () => {
  await using api = await start((id) => [leasedProvision({ id }, 0, {})]);
  const id = await makeJob(
    api,
    {},
    'resource_preparing',
    'submitting',
    'in_progress',
    'finalizing',
    'completed',
  );
  const job = await get(api, `${PATH}/${id}`);
  expect(job).toMatchObject({
    status: 'completed',
    batch_id: id.replace('job_', 'batch_'),
    provision_id: expect.stringMatching(/^prov_/),
    model_template_name: TEMPLATE,
    model_template_version: 'v1.0.0',
  });
  const events = v.parse(v.array(v.looseObject({ id: v.string() })), job['events']);
  expect(events.map((event) => event.id)).toEqual([
    'queued',
    'resource_preparing',
    'submitting',
    'batch_created',
    'in_progress',
    'finalizing',
    'completed',
  ]);
});

test('explain says how far the machines of a job are', async () => {
  let provisions: ProvisionRecord[] = [];
  await using api = await start(() => provisions);
  const queues: QueueName[] = ['planning', 'dispatch'];
  await api.store.nodes.beat({ id: 'n', roles: ['worker'], queues, pid: 1, host: 'h' });
  const id = await makeJob(api, {}, 'resource_preparing');
  const at = Date.UTC(2026, 0, 1, 12);
  const fields = { createdAt: at, enteredAt: {}, reason: '' };
  const of = (slot: number, more: Partial<ProvisionRecord>) =>
    leasedProvision({ id }, slot, { ...fields, ...more });
  const none = attemptOf(1, { machine: null });
  const waits = of(0, {
    state: 'creating',
    attempts: [none],
    waitingSince: at,
    reason: 'Sold out.',
  });
  const boots = of(1, { state: 'booting', attempts: [attemptOf(1)] });
  const steps: [ProvisionRecord[], string, RegExp][] = [
    [[of(0, { state: 'intended', attempts: [] })], 'leasing', /^A machine is being leased \(since/],
    [[waits], 'no_capacity', /^It waits for a machine: Sold out \(since 2026-01-01T12:00:00Z\)\.$/],
    [
      [waits, boots],
      'booting',
      /until the machine pod-1 of runpod \(1 × NVIDIA H100 PCIe in US-KS-2\)/,
    ],
    [
      [boots, of(2, { state: 'starting', attempts: [attemptOf(1)], reason: 'It loads weights.' })],
      'engine_starting',
      /engine starts on the machine pod-1 .*: It loads weights \(since/,
    ],
  ];
  for (const [now, code, text] of steps) {
    provisions = now;
    const answer = await (await fetch(`${api.url}${PATH}/${id}/explain`)).json();
    expect(answer).toMatchObject({ code, explanation: expect.stringMatching(text) });
  }
});

test('the last event of a job leaves its machines out, which may be given back after it', async () => {
  await using api = await start((id) => [leasedProvision({ id }, 0, { attempts: [attemptOf(1)] })]);
  const id = await makeJob(api, {});
  await fetch(`${api.url}${PATH}/${id}/cancel`, { method: 'POST' });
  using stream = await openEvents(`${api.url}${PATH}/${id}/events`);
  await stream.until(({ messages }) => messages.some(({ event }) => event === 'done'));
  expect(stream.of('snapshot')[0]?.data).toMatchObject({ cost: { so_far_usd: 2.4 } });
  const [done] = stream.of('done');
  expect(done?.data).toMatchObject({ id, status: 'cancelled' });
  for (const field of ['cost', 'resource_allocation', 'provision']) {
    expect(done?.data).not.toHaveProperty(field);
  }
});
