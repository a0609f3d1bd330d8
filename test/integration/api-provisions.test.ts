import { afterEach, beforeEach, describe, expect, inject, test } from 'vitest';
import type { JobState } from '../../src/domain/job.ts';
import { provisionId } from '../../src/domain/provision.ts';
import type { ProvisionState } from '../../src/domain/provision.ts';
import { postJson, startApi, uploadInput } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';
import { tick } from '../support/tick.ts';

const PATH = '/api/v1/provisions';
const ENGINE = 'http://engine:8000';

let api: TestApi;
beforeEach(async () => {
  api = await startApi(inject('redisUrl'));
});
afterEach(() => api.stop());

interface Provision {
  id: string;
  job_id: string;
  status: string;
}
interface Page {
  provisions: Provision[];
  first_id: string;
  last_id: string;
  has_more: boolean;
}

async function get(path: string): Promise<{ status: number; body: Page }> {
  const response = await fetch(`${api.url}${path}`);
  return { status: response.status, body: (await response.json()) as Page };
}

async function ids(query: string): Promise<string[]> {
  const { body } = await get(`${PATH}${query}`);
  return body.provisions.map(({ id }) => id);
}

/** A job that stands in a state, moved there as a worker would. */
async function makeJob(...path: JobState[]): Promise<string> {
  const { body } = await postJson(api, '/api/v1/jobs', {
    input_dataset: await uploadInput(api),
    endpoint: '/v1/chat/completions',
  });
  const { id } = body as { id: string };
  for (const to of path) {
    const job = await api.store.jobs.get(id);
    if (job === null) throw new Error(`no job ${id}`);
    await api.store.jobs.move(job, to);
  }
  return id;
}

async function makeProvision(
  job: string,
  { slot = 0, attempt = 0, path = [] as ProvisionState[] } = {},
): Promise<string> {
  const id = provisionId(job, slot, attempt);
  const kinds = { provider: 'static', owner: 'sluice' } as const;
  await api.store.provisions.create({ id, job, slot, address: ENGINE, ...kinds });
  await tick();
  for (const to of path) {
    const provision = await api.store.provisions.get(id);
    if (provision === null) throw new Error(`no provision ${id}`);
    await api.store.provisions.move(provision, to);
  }
  return id;
}

async function release(id: string, body?: object) {
  const response = await fetch(`${api.url}${PATH}/${id}/release`, {
    method: 'POST',
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  return { status: response.status, body: await response.json() };
}

async function states(job: string): Promise<string[]> {
  return (await api.store.provisions.ofJob(job)).map(({ id, state }) => `${id.slice(-3)} ${state}`);
}

describe('the list', () => {
  test('shows each provision with its job, newest first, the released ones too', async () => {
    const job = await makeJob('resource_preparing');
    const first = await makeProvision(job, { path: ['starting', 'releasing', 'released'] });
    const second = await makeProvision(job, { attempt: 1, path: ['starting', 'serving'] });
    const { body } = await get(PATH);
    expect(body).toMatchObject({ first_id: second, last_id: first, has_more: false });
    expect(body.provisions[0]).toEqual({
      id: second,
      provision_id: second,
      provider: 'static',
      idempotency_key: second,
      status: 'serving',
      region: '',
      error_message: '',
      created_at: expect.any(Number),
      updated_at: expect.any(Number),
      raw_json: expect.stringContaining(ENGINE),
      job_id: job,
      slot: 0,
      owner: 'sluice',
      address: ENGINE,
      machine: null,
      starting_at: expect.any(Number),
      serving_at: expect.any(Number),
      releasing_at: 0,
      released_at: 0,
    });
    expect(body.provisions[1]).toMatchObject({ id: first, status: 'released' });
    expect((await get(`${PATH}/${second}`)).body).toEqual(body.provisions[0]);
  });

  test('is filtered by job, status and provider', async () => {
    const [one, other] = [await makeJob(), await makeJob()];
    const a = await makeProvision(one);
    const b = await makeProvision(one, { slot: 1, path: ['starting'] });
    const c = await makeProvision(other, { path: ['starting'] });
    expect(await ids('')).toEqual([c, b, a]);
    expect(await ids(`?job_id=${one}`)).toEqual([b, a]);
    expect(await ids('?status=starting')).toEqual([c, b]);
    expect(await ids(`?job_id=${one}&status=starting`)).toEqual([b]);
    expect(await ids('?provider=static')).toEqual([c, b, a]);
    expect(await ids('?job_id=none')).toEqual([]);
    expect(await get(`${PATH}?status=running`)).toMatchObject({
      status: 400,
      body: { error: { param: 'status', message: expect.stringContaining('intended, creating') } },
    });
    expect(await get(`${PATH}?provider=aws`)).toMatchObject({ status: 400 });
  });

  test('is walked page by page, of all and of one job', async () => {
    const job = await makeJob();
    const made: string[] = [];
    for (let slot = 0; slot < 7; slot += 1) made.unshift(await makeProvision(job, { slot }));
    for (const filter of ['', `&job_id=${job}`]) {
      const seen: string[] = [];
      let after = '';
      for (;;) {
        const { body } = await get(`${PATH}?limit=3&after=${after}${filter}`);
        seen.push(...body.provisions.map(({ id }) => id));
        if (!body.has_more) break;
        after = body.last_id;
      }
      expect(seen).toEqual(made);
      expect(await get(`${PATH}?after=prov_none_0_0${filter}`)).toMatchObject({
        status: 400,
        body: { error: { code: 'invalid_cursor', param: 'after' } },
      });
    }
  });

  test('a filter that matches few looks at a bounded number at once and skips none', async () => {
    const job = await makeJob();
    const wanted = await makeProvision(job, { path: ['starting', 'releasing', 'released'] });
    const kinds = { provider: 'static', owner: 'sluice', address: ENGINE } as const;
    await Promise.all(
      Array.from({ length: 2_100 }, (_, n) =>
        api.store.provisions.create({ id: provisionId(job, 1, n), job, slot: 1, ...kinds }),
      ),
    );
    const first = await get(`${PATH}?status=released&limit=2`);
    expect(first.body).toMatchObject({ provisions: [], has_more: true });
    const seen: string[] = [];
    let pages = 1;
    for (let { body } = first; body.has_more; pages += 1) {
      expect(body.last_id, 'there is always a place to go on from').not.toBe('');
      ({ body } = await get(`${PATH}?status=released&limit=2&after=${body.last_id}`));
      seen.push(...body.provisions.map(({ id }) => id));
    }
    expect(seen).toEqual([wanted]);
    expect(pages).toBeGreaterThan(2);
  });

  test('of what is not released is whole at once, whatever there ever was', async () => {
    const job = await makeJob();
    const made = [await makeProvision(job, { path: ['starting'] })];
    const gone = await makeProvision(job, { slot: 1, path: ['starting', 'releasing', 'released'] });
    for (let slot = 2; slot < 5; slot += 1) made.unshift(await makeProvision(job, { slot }));
    const live = '?status=intended,starting';
    expect(await ids(live)).toEqual(made);
    expect(await ids('?status=starting')).toEqual(made.slice(-1));
    const { body } = await get(`${PATH}${live}&limit=2`);
    expect(body).toMatchObject({ last_id: made[1], has_more: true });
    // What a page goes on after may be released by then.
    const last = await api.store.provisions.get(made[1] ?? '');
    if (last !== null) await api.store.provisions.move(last, 'releasing');
    expect(await ids(`${live}&after=${made[1]}`)).toEqual(made.slice(2));
    expect(await ids('?status=starting,released')).toEqual([gone, made.at(-1)]);
    expect(await get(`${PATH}?status=starting&after=prov_none_0_0`)).toMatchObject({ status: 400 });
  });

  test('one that is not there is 404', async () => {
    for (const id of ['prov_none_0_0', 'x', 'a%7Db']) {
      const missing = { status: 404, body: { error: { code: 'provision_not_found' } } };
      expect(await get(`${PATH}/${id}`)).toMatchObject(missing);
      expect(await release(id)).toMatchObject(missing);
    }
  });
});

describe('releasing', () => {
  test('asks what becomes of an unfinished job, and does nothing until it is said', async () => {
    const job = await makeJob('resource_preparing', 'submitting', 'in_progress');
    const id = await makeProvision(job, { path: ['starting', 'serving'] });
    for (const body of [undefined, {}, { job: '' }, { job: null }]) {
      expect(await release(id, body)).toEqual({
        status: 400,
        body: {
          error: expect.objectContaining({
            code: 'release_choice_required',
            param: 'job',
            message: expect.stringMatching(/'rehome' \(.*\) or 'end' \(/),
          }),
        },
      });
    }
    expect(await release(id, { job: 'kill' })).toMatchObject({
      status: 400,
      body: { error: { param: 'job', message: expect.stringMatching(/'rehome'.*'end'/) } },
    });
    expect(await release(id, { jobs: 'end' })).toMatchObject({
      status: 400,
      body: { error: { code: 'unknown_parameter' } },
    });
    expect(await states(job)).toEqual(['0_0 serving']);
    expect((await api.store.jobs.get(job))?.state).toBe('in_progress');
  });

  test("'rehome' records the next one in the same place, once, and the job waits for it", async () => {
    const job = await makeJob('resource_preparing', 'submitting', 'in_progress');
    const id = await makeProvision(job, { path: ['starting', 'serving'] });
    expect(await release(id, { job: 'rehome' })).toMatchObject({
      status: 200,
      body: { id, status: 'releasing', job_id: job },
    });
    expect(await states(job)).toEqual(['0_0 releasing', '0_1 intended']);
    expect(await api.store.jobs.get(job)).toMatchObject({
      state: 'resource_preparing',
      outcome: null,
    });
    const events = await api.store.jobs.events(job);
    expect(events.at(-1)?.message).toMatch(/released on request/);

    // Again is the same: it is on its way, and nothing more happens.
    expect(await release(id, { job: 'rehome' })).toMatchObject({ status: 200 });
    expect(await release(id)).toMatchObject({ status: 200, body: { status: 'releasing' } });
    expect(await states(job)).toEqual(['0_0 releasing', '0_1 intended']);
  });

  test('two at once rehome a job once', async () => {
    const job = await makeJob('resource_preparing', 'submitting', 'in_progress');
    const id = await makeProvision(job, { path: ['starting', 'serving'] });
    const answers = await Promise.all(
      Array.from({ length: 8 }, () => release(id, { job: 'rehome' })),
    );
    expect(answers.map(({ status }) => status)).toEqual(Array.from({ length: 8 }, () => 200));
    expect(await states(job)).toEqual(['0_0 releasing', '0_1 intended']);
  });

  test('a job with another engine that serves goes on meanwhile', async () => {
    const job = await makeJob('resource_preparing', 'submitting', 'in_progress');
    const id = await makeProvision(job, { path: ['starting', 'serving'] });
    await makeProvision(job, { slot: 1, path: ['starting', 'serving'] });
    await release(id, { job: 'rehome' });
    expect(await states(job)).toEqual(['0_0 releasing', '0_1 intended', '1_0 serving']);
    expect((await api.store.jobs.get(job))?.state).toBe('in_progress');
  });

  test("'end' cancels the job, which gives back all that it has", async () => {
    const job = await makeJob('resource_preparing', 'submitting', 'in_progress');
    const id = await makeProvision(job, { path: ['starting', 'serving'] });
    await makeProvision(job, { slot: 1, path: ['starting'] });
    expect(await release(id, { job: 'end' })).toMatchObject({
      status: 200,
      body: { id, status: 'releasing' },
    });
    expect(await states(job)).toEqual(['0_0 releasing', '1_0 releasing']);
    expect(await api.store.jobs.get(job)).toMatchObject({
      state: 'cancelling',
      outcome: 'cancelled',
    });
  });

  test.each([
    ['queued', [], 'cancelled'],
    ['resource_preparing', ['resource_preparing'], 'cancelling'],
  ] as const)("'end' of a job that is %s", async (_state, path, after) => {
    const job = await makeJob(...path);
    const id = await makeProvision(job);
    expect(await release(id, { job: 'end' })).toMatchObject({ body: { status: 'releasing' } });
    expect((await api.store.jobs.get(job))?.state).toBe(after);
  });

  test('of what no unfinished job uses needs no words', async () => {
    const job = await makeJob('cancelled');
    const id = await makeProvision(job, { path: ['starting'] });
    expect(await release(id)).toMatchObject({ status: 200, body: { status: 'releasing' } });
    expect((await api.store.jobs.get(job))?.state).toBe('cancelled');
  });
});
