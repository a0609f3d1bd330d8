import * as v from 'valibot';
import { expect, inject, test } from 'vitest';
import { postJson, rawRequest, startApi, uploadInput } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';

const PATH = '/api/v1/jobs';
const listSchema = v.object({
  jobs: v.array(v.object({ id: v.string(), created_at: v.number() })),
  first_id: v.string(),
  last_id: v.string(),
  has_more: v.boolean(),
});

function start(): Promise<TestApi> {
  return startApi(inject('redisUrl'));
}

interface Asked {
  headers?: Record<string, string>;
  more?: object;
}

async function create(api: TestApi, input: string, { headers = {}, more = {} }: Asked = {}) {
  const body = { input_dataset: input, endpoint: '/v1/embeddings', ...more };
  const answer = await postJson(api, PATH, body, headers);
  expect(answer).toMatchObject({ status: 200 });
  return v.parse(v.object({ id: v.string(), created_by: v.string() }), answer.body);
}

async function page(api: TestApi, query: string) {
  const answer = await fetch(`${api.url}${PATH}?${query}`);
  expect([query, answer.status]).toEqual([query, 200]);
  return v.parse(listSchema, await answer.json());
}

async function idsOf(api: TestApi, query: string): Promise<string[]> {
  return (await page(api, query)).jobs.map(({ id }) => id);
}

test('a list takes only jobs that match every filter', async () => {
  await using api = await start();
  const input = await uploadInput(api);
  const { id: named } = await create(api, input, {
    more: { name: 'Nightly Questions', metadata: { team: 'Search' } },
  });
  const anns = await create(api, input, { headers: { 'x-user-id': 'ann@example.com' } });
  const bobs = await create(api, input, { more: { createdBy: 'bob' } });
  expect([anns.created_by, bobs.created_by]).toEqual(['ann@example.com', 'bob']);
  const record = await api.store.jobs.get(bobs.id);
  if (record !== null) {
    const set = { models: ['m1', 'm2'] };
    await api.store.jobs.move(record, 'resource_preparing', { set });
  }
  await postJson(api, `${PATH}/${anns.id}/pause`, {});

  const expected: [string, string[]][] = [
    ['status=queued', [anns.id, named]],
    ['status=resource_preparing', [bobs.id]],
    ['status=queued,resource_preparing', [bobs.id, anns.id, named]],
    ['status=queued&status=resource_preparing', [bobs.id, anns.id, named]],
    ['status=paused', [anns.id]],
    ['status=completed', []],
    ['model=m2', [bobs.id]],
    ['model=m', []],
    ['owner=ANN@example.com', [anns.id]],
    ['owner=bob&status=queued', []],
    ['owner=bob&model=m1', [bobs.id]],
    ['q=nightly', [named]],
    ['q=search', [named]],
    [`q=${bobs.id.slice(4, 20)}`, [bobs.id]],
    [`q=${bobs.id.replace('job_', 'batch_')}`, [bobs.id]],
    ['q=nothing', []],
  ];
  for (const [query, ids] of expected) {
    // Those of one millisecond have no order of their own.
    expect([query, (await idsOf(api, query)).toSorted()]).toEqual([query, ids.toSorted()]);
  }
});

test('a list takes only jobs of a span of time, in seconds or as a date', async () => {
  await using api = await start();
  const input = await uploadInput(api);
  const first = await create(api, input);
  const { createdAt } = (await api.store.jobs.get(first.id)) ?? { createdAt: 0 };
  const second = Math.floor(createdAt / 1_000);
  const date = new Date(second * 1_000).toISOString();
  for (const [query, count] of [
    [`created_after=${second}`, 1],
    [`createdAfter=${second}`, 1],
    [`created_after=${date}`, 1],
    [`created_after=${second + 1}`, 0],
    [`created_before=${second + 1}`, 1],
    [`created_before=${second}`, 0],
    [`created_after=${second}&created_before=${second + 1}`, 1],
    [`created_after=${second}&after=${first.id}`, 0],
  ] as const) {
    expect([query, (await idsOf(api, query)).length]).toEqual([query, count]);
  }
});

test('a timestamp means its zone', async () => {
  await using api = await start();
  const input = await uploadInput(api);
  const { id } = await create(api, input);
  const { createdAt } = (await api.store.jobs.get(id)) ?? { createdAt: 0 };
  // On the clocks of a place two hours east.
  const there = new Date(createdAt + 2 * 3_600_000).toISOString().replace('Z', '%2B02:00');
  expect(await idsOf(api, `created_after=${there}`)).toEqual([id]);
  expect(await idsOf(api, `created_before=${there}`)).toEqual([]);
});

test('a filter or limit that is empty is one that was not given', async () => {
  await using api = await start();
  const { id } = await create(api, await uploadInput(api));
  const names = ['limit', 'after', 'status', 'model', 'owner', 'q', 'created_after'];
  for (const name of [...names, 'created_before']) {
    expect([name, await idsOf(api, `${name}=`)]).toEqual([name, [id]]);
  }
  for (const path of ['/api/v1/provisions?limit=', '/api/v1/provisions?status=&job_id=']) {
    expect([path, (await fetch(`${api.url}${path}`)).status]).toEqual([path, 200]);
  }
});

test('wrong filters are refused with what is allowed', async () => {
  await using api = await start();
  for (const [query, message] of [
    ['status=running', /queued/],
    ['created_after=soon', /unix seconds/],
    ['created_after=nonsense%201', /unix seconds/],
    ['created_after=2026-01-31T12:00:00', /with its zone/],
    ['created_after=2026-01-31', /with its zone/],
    [`q=${'x'.repeat(513)}`, /512/],
  ] as const) {
    const answer = await rawRequest(`${api.url}${PATH}?${query}`);
    expect([query, answer.status]).toEqual([query, 400]);
    expect(answer.text).toMatch(message);
  }
});

test('a filter that matches few walks all jobs in bounded steps and skips none', async () => {
  await using api = await start();
  const input = await uploadInput(api);
  const wanted = [(await create(api, input, { more: { name: 'needle' } })).id];
  // One record copied under other ids: a thousand creations would take a minute.
  const template = await api.store.jobs.get(wanted[0] ?? '');
  if (template === null) throw new Error('it was created');
  for (let n = 0; n < 2_100; n += 1) {
    const id = `${template.id}x${n}`;
    const name = n % 1_000 === 999 ? 'needle' : 'hay';
    if (name === 'needle') wanted.push(id);
    await api.store.jobs.create({
      ...template,
      id,
      name,
      windowMs: 60_000,
      bodyHash: '',
    });
  }
  const found: string[] = [];
  let pages = 0;
  for (let after = ''; ;) {
    const {
      jobs,
      last_id: last,
      has_more: more,
    } = await page(api, `q=needle&limit=2&after=${after}`);
    found.push(...jobs.map(({ id }) => id));
    pages += 1;
    if (!more) break;
    expect(last, 'there is always a place to go on from').not.toBe('');
    after = last;
  }
  expect(found.toSorted()).toEqual(wanted.toSorted());
  expect(pages, 'one page looks at no more than a bounded number').toBeGreaterThan(2);
});
