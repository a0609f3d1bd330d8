import { describe, expect, test } from 'vitest';
import { call, FAST, H100, podBody } from '../simulators/runpod/asking.ts';
import type { PodView } from '../simulators/runpod/asking.ts';
import { startRunPod } from '../simulators/runpod/simulator.ts';
import { until } from '../support/until.ts';

describe('the API without machines', () => {
  test.for([
    [
      'an unknown key',
      podBody('a', { bogus: 1 }),
      422,
      "$: additional properties 'bogus' not allowed",
    ],
    ['no name', { ...podBody('a'), name: undefined }, 422, "$: missing property 'name'"],
    ['no image', { ...podBody('a'), image: undefined }, 422, "$: missing property 'image'"],
    ['a wrong type', podBody('a', { disk: '50' }), 422, '$.disk: got string, want integer'],
    [
      'a wrong word',
      podBody('a', { cloud: 'secure' }),
      422,
      "$.cloud: value must be one of 'SECURE', 'COMMUNITY'",
    ],
    [
      'an old field',
      podBody('a', { gpuTypeIds: [H100] }),
      422,
      "$: additional properties 'gpuTypeIds' not allowed",
    ],
  ] as const)('v2 refuses %s as its document says', async ([, body, status, error]) => {
    await using cloud = await startRunPod({ machines: 'none' });
    const answer = await call<object>(cloud.url, 'POST', '/v2/pods', body);
    expect(answer.headers.get('content-type')).toBe('application/problem+json');
    const title = 'Unprocessable Entity';
    const detail = 'Request validation failed.';
    expect(answer).toMatchObject({ status, body: { title, status, detail } });
    expect(answer.body).toHaveProperty('errors', expect.arrayContaining([error]));
    expect(await cloud.control.inventory()).toEqual([]);
  });

  test('cross-field rules, keys, sizes, agents, methods and paths', async () => {
    await using cloud = await startRunPod({
      machines: 'none',
      knobs: { ...FAST, forbidden_types: ['NVIDIA B200'] },
    });
    const create = async (more: object) =>
      call(cloud.url, 'POST', '/v2/pods', podBody('a', { ...more }));
    const noCapacity = expect.stringContaining('no longer any instances available');
    expect(await create({ gpu: undefined })).toMatchObject({ status: 400 });
    expect(await create({ gpu: { id: H100 } })).toMatchObject({
      status: 400,
      body: { detail: noCapacity },
    });
    expect(await create({ gpu: { id: 'NVIDIA B200', count: 1 } })).toMatchObject({
      status: 403,
      body: { detail: 'access denied' },
    });
    const cuda = { id: H100, count: 1, minCudaVersion: '12.4', allowedCudaVersions: ['12.8'] };
    expect(await create({ gpu: cuda })).toMatchObject({ status: 400 });
    expect(await create({ env: { big: 'x'.repeat(102_400) } })).toMatchObject({ status: 413 });
    const pods = `${cloud.url}/v2/pods`;
    expect(await call(pods, 'GET', '', undefined, { authorization: '' })).toMatchObject({
      status: 401,
      body: { detail: 'missing bearer token' },
    });
    expect(await call(pods, 'GET', '', undefined, { authorization: 'Bearer no' })).toMatchObject({
      status: 401,
    });
    expect(
      await call(pods, 'GET', '', undefined, { 'user-agent': 'Python-urllib/3.11' }),
    ).toMatchObject({ status: 403, body: expect.stringContaining('1010') });
    const put = await call(pods, 'PUT', '');
    expect([put.status, put.headers.get('allow')]).toEqual([405, 'GET, POST']);
    expect((await call(cloud.url, 'GET', '/v2/nothing')).status).toBe(404);
    const { id } = (await create({})).body;
    const wrong = await call(cloud.url, 'POST', `/v2/pods/${id}/action`, { action: 'x' });
    expect(wrong.body).toMatchObject({
      errors: ["$.action: value must be one of 'start', 'stop', 'restart', 'terminate'"],
    });
    await until(
      async () => (await call(cloud.url, 'GET', `/v2/pods/${id}`)).body.ssh.direct !== null,
    );
    expect(
      (await call(cloud.url, 'POST', `/v2/pods/${id}/action`, { action: 'stop' })).body.status,
    ).toBe('EXITED');
    expect(
      (await call(cloud.url, 'POST', `/v2/pods/${id}/action`, { action: 'restart' })).status,
    ).toBe(409);
  });

  test('rates: headers on every answer, 429 with Retry-After', async () => {
    await using cloud = await startRunPod({
      machines: 'none',
      knobs: { rate_limits: { minute: 2, hour: 100, day: null } },
    });
    const first = await call(cloud.url, 'GET', '/v2/pods');
    expect(first.headers.get('ratelimit')).toMatch(/^"minute";r=1;t=\d+, "hour";r=99;t=\d+$/);
    expect(first.headers.get('ratelimit-policy')).toBe('"minute";q=2;w=60, "hour";q=100;w=3600');
    const answers = [
      await call(cloud.url, 'GET', '/v2/pods'),
      await call(cloud.url, 'GET', '/v2/pods'),
    ];
    const last =
      answers.find(({ status }) => status === 429) ?? (await call(cloud.url, 'GET', '/v2/pods'));
    expect(last).toMatchObject({
      status: 429,
      body: { detail: 'rate limit exceeded for the minute window' },
    });
    expect(Number(last.headers.get('retry-after'))).toBeGreaterThan(0);
  });

  test('faults: what was created though it failed, and what lives though it was deleted', async () => {
    await using cloud = await startRunPod({ machines: 'none', knobs: FAST });
    const names = async () => (await cloud.control.inventory()).map(({ name }) => name);
    const create = async (name: string) => call(cloud.url, 'POST', '/v2/pods', podBody(name));
    await cloud.control.setFaults([
      { kind: 'error_after', op: 'create', match: 'ghost' },
      { kind: 'reset_after', op: 'create', match: 'cut' },
      { kind: 'hang_after', op: 'create', match: 'slow', delay_ms: 50 },
      { kind: 'error', op: 'create', match: 'full', error: 'no_capacity' },
      { kind: 'error', op: 'create', match: 'poor', error: 'balance' },
      { kind: 'truncate', op: 'create', match: 'half' },
      { kind: 'html', op: 'create', match: 'page' },
      { kind: 'lost', op: 'terminate', count: 1 },
    ]);
    expect((await create('ghost')).status).toBe(500);
    await expect(create('cut')).rejects.toThrow('fetch failed');
    await expect(create('slow')).rejects.toThrow('fetch failed');
    expect((await create('full')).status).toBe(400);
    expect((await create('poor')).status).toBe(402);
    await expect(create('half')).rejects.toThrow('terminated');
    expect((await create('page')).body).toContain('<html>');
    expect(await names()).toEqual(['ghost', 'cut', 'slow', 'half', 'page']);
    const pods = (await call<{ pods: PodView[] }>(cloud.url, 'GET', '/v2/pods')).body.pods;
    for (const { id } of pods)
      expect((await call(cloud.url, 'DELETE', `/v2/pods/${id}`)).status).toBe(204);
    expect(await names()).toEqual(['page']);
    const [entry] = await cloud.control.inventory();
    expect(entry?.terminate_asked_at).toHaveLength(1);
    await cloud.control.setFaults([{ kind: 'repeat', op: 'list' }]);
    await call(cloud.url, 'DELETE', `/v2/pods/${entry?.id ?? ''}`);
    expect((await call<{ pods: PodView[] }>(cloud.url, 'GET', '/v2/pods')).body.pods).toHaveLength(
      5,
    );
    expect((await cloud.control.requests()).filter(({ fault }) => fault === 'lost')).toHaveLength(
      1,
    );
    await expect(cloud.control.setFaults([{ kind: 'nonsense' as 'lost' }])).rejects.toThrow('kind');
  });

  test('lists lag, a fresh id is 404, capacity and quota end, names may be double', async () => {
    await using cloud = await startRunPod({
      machines: 'none',
      knobs: {
        ...FAST,
        list_lag_ms: 1000,
        get_404_ms: 800,
        capacity: { [H100]: { 'US-KS-2': 2 } },
        status_style: 'spec',
        address_late_ms: 100,
      },
    });
    const { id } = (await call(cloud.url, 'POST', '/v2/pods', podBody('same'))).body;
    const list = async () =>
      (await call<{ pods: PodView[] }>(cloud.url, 'GET', '/v2/pods')).body.pods;
    expect(await list()).toEqual([]);
    expect((await call(cloud.url, 'GET', `/v2/pods/${id}`)).status).toBe(404);
    const shown = await until(async () => (await list())[0]);
    expect(shown.dataCenterId).toBe('US-KS-2');
    await until(async () => (await list())[0]?.status === 'RUNNING');
    expect(
      (await call(cloud.url, 'POST', '/v2/pods', podBody('b', { gpu: { id: H100, count: 2 } })))
        .status,
    ).toBe(400);
    expect((await call(cloud.url, 'POST', '/v2/pods', podBody('same'))).status).toBe(201);
    expect((await cloud.control.ledger()).totals.created_twice).toBe(2);
    interface Gpus {
      gpus: {
        id: string;
        availability: string;
        dataCenters?: object[];
        price: { secure: number };
      }[];
    }
    const catalog = '/v2/catalog/gpus?include=AVAILABILITY&product=POD';
    const { gpus } = (await call<Gpus>(cloud.url, 'GET', catalog)).body;
    expect(gpus.find((gpu) => gpu.id === H100)).toMatchObject({
      availability: 'NONE',
      price: { secure: 3.99 },
    });
    expect(gpus.find((gpu) => gpu.id === 'NVIDIA L4')).toMatchObject({ availability: 'HIGH' });
    expect((await call(cloud.url, 'GET', '/v2/catalog/gpus?include=AVAILABILITY')).status).toBe(
      400,
    );
    await cloud.control.setKnobs({ quota: 2, list_lag_ms: 0 });
    expect(
      (
        await call(
          cloud.url,
          'POST',
          '/v2/pods',
          podBody('c', { gpu: { id: 'NVIDIA L4', count: 1 } }),
        )
      ).status,
    ).toBe(400);
    await expect(cloud.control.setKnobs({ quotas: 2 })).rejects.toThrow('quotas');
  });

  test('stop and start: the old port is shown for a while, and the host may be full', async () => {
    const capacity = { [H100]: 1 };
    await using cloud = await startRunPod({
      machines: 'none',
      knobs: { ...FAST, capacity, stale_port_ms: 1500 },
    });
    const { id } = (await call(cloud.url, 'POST', '/v2/pods', podBody('a'))).body;
    const ready = async () => (await call(cloud.url, 'GET', `/v2/pods/${id}`)).body.ssh.direct;
    await until(ready);
    const act = async (action: string) =>
      call(cloud.url, 'POST', `/v2/pods/${id}/action`, { action });
    expect((await act('stop')).body.status).toBe('EXITED');
    const { id: other } = (await call(cloud.url, 'POST', '/v2/pods', podBody('b'))).body;
    expect(await act('start')).toMatchObject({
      status: 400,
      body: { detail: expect.stringContaining('not enough free GPUs') },
    });
    await call(cloud.url, 'DELETE', `/v2/pods/${other}`);
    expect((await act('start')).body.status).toBe('RUNNING');
    const shown = await until(ready);
    expect(shown.port).toBe(10_022);
    await until(async () => (await ready())?.port === 10_024);
    expect(
      (await call(cloud.url, 'PATCH', `/v2/pods/${id}`, { locked: true, name: 'z' })).body.name,
    ).toBe('z');
    expect((await act('stop')).status).toBe(409);
    expect((await call(cloud.url, 'DELETE', `/v2/pods/${id}`)).status).toBe(409);
  });

  test('interruptible pods are taken away, some vanish, and pages are small', async () => {
    const overrides = [
      { name: '^doomed', vanish_after_ms: 30 },
      { name: '^mute', address_never: true },
    ];
    const knobs = { ...FAST, preempt_after_ms: [20, 40], overrides, page_limit: 2 };
    await using cloud = await startRunPod({ machines: 'none', knobs });
    const spot = { name: 'spot', imageName: 'x', gpuTypeIds: [H100], interruptible: true };
    await call(cloud.url, 'POST', '/v1/pods', spot);
    for (const name of ['doomed', 'mute', 'calm'])
      await call(cloud.url, 'POST', '/v2/pods', podBody(name));
    await until(async () => {
      const { machines } = await cloud.control.ledger();
      const phases = Object.fromEntries(machines.map(({ name, phase }) => [name, phase]));
      return (
        phases['spot'] === 'preempted' && phases['doomed'] === 'gone' && phases['calm'] === 'up'
      );
    });
    interface Page {
      pods: PodView[];
      pagination: { nextCursor: string | null; hasNextPage: boolean };
    }
    const first = (await call<Page>(cloud.url, 'GET', '/v2/pods?limit=1000')).body;
    expect(first.pods.map(({ name }) => name)).toEqual(['calm', 'mute']);
    expect(first.pods[0]?.ssh.direct).not.toBeNull();
    expect(first.pods[1]).toMatchObject({
      status: 'RUNNING',
      runtime: null,
      ssh: { direct: null },
    });
    const rest = (
      await call<Page>(cloud.url, 'GET', `/v2/pods?cursor=${first.pagination.nextCursor}`)
    ).body;
    expect(rest.pods).toMatchObject([{ name: 'spot', status: 'EXITED' }]);
    expect(rest.pagination).toEqual({ nextCursor: null, hasNextPage: false });
  });

  test('v1 on the same server: its fields, its errors, and its end', async () => {
    await using cloud = await startRunPod({ machines: 'none', knobs: FAST });
    const body = {
      name: 'old',
      imageName: 'vllm/vllm-openai',
      gpuTypeIds: ['NVIDIA B200', H100],
      gpuCount: 1,
      interruptible: true,
      unknown: 1,
    };
    await cloud.control.setKnobs({ capacity: { 'NVIDIA B200': 0 } });
    const created = await call(cloud.url, 'POST', '/v1/pods', body);
    expect(created).toMatchObject({
      status: 201,
      body: { desiredStatus: 'RUNNING', publicIp: '', portMappings: null, machine: {} },
    });
    const pods = await until(async () => {
      const { body: found } = await call<PodView[]>(cloud.url, 'GET', '/v1/pods?name=old');
      return found[0]?.portMappings === null ? undefined : found;
    });
    expect(pods[0]).toMatchObject({ portMappings: { 22: 10_022 }, publicIp: '203.0.113.7' });
    expect((await cloud.control.inventory())[0]).toMatchObject({
      type: H100,
      interruptible: true,
      usd_per_hour: 1.995,
    });
    expect(
      (await call(cloud.url, 'POST', '/v1/pods', { ...body, gpuTypeIds: ['H100'] })).status,
    ).toBe(400);
    expect(
      await call(cloud.url, 'POST', '/v1/pods', { ...body, gpuTypeIds: ['NVIDIA B200'] }),
    ).toMatchObject({
      status: 500,
      body: { error: expect.stringContaining('no longer any instances') },
    });
    expect(
      await call(cloud.url, 'GET', '/v1/pods', undefined, { authorization: '' }),
    ).toMatchObject({ status: 401, body: { error: {} } });
    await cloud.control.setKnobs({ v1_gone: true });
    expect((await call(cloud.url, 'GET', '/v1/pods')).status).toBe(410);
    expect((await call(cloud.url, 'GET', '/v2/pods')).status).toBe(200);
  });
});
