import { expect, test } from 'vitest';
import { settle } from '../../processors/settle.ts';
import { startMetadataService } from '../simulators/metadata-service/server.ts';
import type { Fault, MetadataService } from '../simulators/metadata-service/server.ts';
import { resourcesOf } from '../support/leasing-world.ts';
import { openRemoteWorld, requestLines } from '../support/remote-world.ts';

function onlyBatch({ batches }: MetadataService) {
  const [batch] = batches.values();
  if (batch === undefined) throw new Error('there is no batch');
  return batch;
}

function count({ calls }: MetadataService, operation: string): number {
  return calls.filter((call) => call.operation === operation).length;
}

test('a job is asked for as the Console asks a metadata service, and is shown as that runs it', async () => {
  await using service = await startMetadataService();
  const engineUrls = ['http://one:8000', 'http://two:8000'];
  await using world = openRemoteWorld({ url: service.url, engineUrls, apiKey: 'secret' });
  const id = await world.plan(requestLines(5), { options: { owner: 'ann' } });
  await world.steps(id, ({ state }) => state === 'in_progress');

  expect(onlyBatch(service).body).toEqual({
    input_file_id: [...service.files.keys()][0],
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    metadata: {
      'sluice.job_id': id,
      'aibrix.console.display_name': 'a batch',
      display_name: 'a batch',
      'aibrix.console.created_by': 'ann',
    },
    aibrix: {
      job_id: id,
      model: 'm',
      runtime: { target: 'External', options: { base_urls: engineUrls } },
      client: { max_concurrency: 8 },
    },
  });
  expect([...service.files.values()][0]?.content.toString()).toBe(
    requestLines(5)
      .map((line) => `${line}\n`)
      .join(''),
  );
  expect(new Set(service.calls.map(({ authorization }) => authorization))).toEqual(
    new Set(['Bearer secret']),
  );

  service.progress(onlyBatch(service).id, { completed: 2, failed: 1 });
  const running = await world.steps(id, ({ completed }) => completed === 2);
  expect(running).toMatchObject({ failed: 1, usage: { inputTokens: 6, outputTokens: 10 } });
  expect(running.remote).toMatchObject({ url: service.url, batch: onlyBatch(service).id });
  // Nothing of it ever waits for a worker here.
  expect(await world.store.shards.open(id, 5)).toEqual([]);

  service.run(onlyBatch(service).id, { answers: (n) => (n === 3 ? 'error' : 'output') });
  const ended = await world.toEnd(id);
  expect(ended).toMatchObject({ state: 'completed', lines: 5, completed: 4, failed: 1 });
  const line = (n: number) => `"id":"batch_req_${id.slice(4)}_${n}","custom_id":"line-${n}"`;
  expect(world.written(id, 'output')).toEqual(
    [0, 1, 2, 4].map((n) => expect.stringContaining(`${line(n)},"response":{"status_code":200`)),
  );
  expect(world.written(id, 'error')).toEqual([
    expect.stringContaining(`${line(3)},"response":null,"error":{"code":"inference_failed"`),
  ]);
});

const AFTER_IT_IS_DONE: [string, Fault][] = [
  ['is answered 500', { kind: 'status', status: 500, done: true }],
  ['is answered 408', { kind: 'status', status: 408, done: true }],
  ['is never answered', { kind: 'silence' }],
  ['is cut off', { kind: 'reset' }],
  ['is answered by half', { kind: 'cut' }],
];
test.for(AFTER_IT_IS_DONE)(
  'a create that %s is found again by its metadata: there is one batch',
  async ([, fault]) => {
    await using service = await startMetadataService({ auto: { afterMs: 0 } });
    await using world = openRemoteWorld({ url: service.url });
    service.fail('create', fault);
    const id = await world.plan(requestLines(3));
    expect(await world.toEnd(id)).toMatchObject({ state: 'completed', completed: 3 });
    expect(service.batches.size).toBe(1);
    expect(count(service, 'create')).toBe(1);
  },
);

test('a create that came to nothing is repeated, but not before it could still turn up', async () => {
  await using service = await startMetadataService({ auto: { afterMs: 0 } });
  await using world = openRemoteWorld({ url: service.url, unclearMs: 60_000 });
  service.fail('create', { kind: 'status', status: 502 });
  const id = await world.plan(requestLines(3));
  const { reason } = await world.steps(id, (job) => job.reason !== '');
  expect(reason).toContain('answers 502');
  for (let looks = 1; looks <= 3; looks += 1) {
    await world.step(id);
    expect(count(service, 'batches')).toBe(looks);
  }
  expect((await world.job(id)).reason).toContain('it is looked for before it is asked again');
  expect(count(service, 'create')).toBe(1);
  world.ahead = 61_000;
  await world.steps(id, ({ state }) => state === 'in_progress');
  expect(count(service, 'create')).toBe(2);
  expect(service.batches.size).toBe(1);
});

test('who has not asked for anything asks again at once: refused by a limit, or without a connection', async () => {
  await using service = await startMetadataService({ auto: { afterMs: 0 } });
  await using world = openRemoteWorld({ url: service.url, unclearMs: 3_600_000 });
  service.fail('create', { kind: 'status', status: 429, retryAfter: '7' });
  const id = await world.plan(requestLines(3));
  await world.steps(id, ({ remote }) => remote?.file != null);
  const { id: provision } = await world.provision(id);
  expect(await world.deliver('submission', provision)).toEqual({ againInMs: 7_000 });
  expect((await world.job(id)).reason).toContain('answers 429');
  await world.steps(id, ({ state }) => state === 'in_progress');
  expect((await world.job(id)).reason).toBe('');
  expect(count(service, 'create')).toBe(2);

  await using nobody = openRemoteWorld({ url: 'http://127.0.0.1:9', unclearMs: 3_600_000 });
  const waiting = await nobody.plan(requestLines(3));
  const why = await nobody.steps(waiting, ({ reason }) => reason !== '');
  expect(why).toMatchObject({ state: 'submitting' });
  expect(why.reason).toContain('ECONNREFUSED');
});

test('who dies between the answer of a create and its record has made one batch', async () => {
  await using service = await startMetadataService({ auto: { afterMs: 0 } });
  await using world = openRemoteWorld({ url: service.url, unclearMs: 3_600_000 });
  const id = await world.plan(requestLines(3));
  const { noteRemote } = world.store.jobs;
  world.deps.store.jobs.noteRemote = async (job, change, counts) => {
    if (change.now.batch !== null) throw new Error('killed');
    return noteRemote(job, change, counts);
  };
  await expect(world.steps(id, ({ state }) => state === 'in_progress')).rejects.toThrow('killed');
  world.deps.store.jobs.noteRemote = noteRemote;
  expect(await world.toEnd(id)).toMatchObject({ state: 'completed', completed: 3 });
  expect(service.batches.size).toBe(1);
  expect(count(service, 'create')).toBe(1);
});

test('an input that may have been sent is found again by its name and length', async () => {
  await using service = await startMetadataService({ auto: { afterMs: 0 } });
  await using world = openRemoteWorld({ url: service.url });
  service.fail('upload', { kind: 'reset' });
  const id = await world.plan(requestLines(3));
  expect(await world.toEnd(id)).toMatchObject({ state: 'completed' });
  expect(count(service, 'upload')).toBe(1);
});

test('a batch that the service refuses ends the job with what it said', async () => {
  await using service = await startMetadataService();
  await using world = openRemoteWorld({ url: service.url });
  // More than this service allows.
  const id = await world.plan(requestLines(3), { maxConcurrency: 2_000 });
  const { state, errors } = await world.toEnd(id);
  expect(state).toBe('submit_failed');
  expect(errors[0]).toMatchObject({ code: 'remote.refused' });
  expect(errors[0]?.message).toContain('422: body.aibrix.client.max_concurrency');
  expect(world.written(id, 'error')).toHaveLength(3);
  expect(service.batches.size).toBe(0);
});

test('lenient: bad lines are not sent, and stand in the error file where they stood in the input', async () => {
  await using service = await startMetadataService({ auto: { afterMs: 0 } });
  await using world = openRemoteWorld({ url: service.url });
  const [first = '', second = ''] = requestLines(2);
  const bad = ['{"custom_id":"bad"}', first];
  const options = { validation: 'lenient' } as const;
  const id = await world.plan([first, ...bad, '', second], { options });
  expect(await world.toEnd(id)).toMatchObject({ lines: 4, completed: 2, failed: 2 });
  const sent = [...service.files.values()].find(({ purpose }) => purpose === 'batch');
  expect(sent?.content.toString()).toBe(`${first}\n${second}\n`);
  expect(world.written(id, 'error').map((line) => JSON.parse(line) as object)).toMatchObject([
    { id: expect.stringMatching(/_1$/), error: { code: 'missing_required_parameter' } },
    { id: expect.stringMatching(/_2$/), error: { code: 'duplicate_custom_id' } },
  ]);
});

test('a remote batch that fails ends the job with its errors, and keeps what it answered', async () => {
  await using service = await startMetadataService();
  await using world = openRemoteWorld({ url: service.url });
  const id = await world.plan(requestLines(4));
  await world.steps(id, ({ state }) => state === 'in_progress');
  const errors = [{ code: 'inference_failed', message: 'The engine died.' }];
  const answers = (n: number) => (n === 2 ? ('output' as const) : null);
  service.run(onlyBatch(service).id, { status: 'failed', errors, answers });
  const job = await world.toEnd(id);
  expect(job).toMatchObject({ state: 'failed', completed: 1, failed: 3, errors });
  expect(world.written(id, 'output')).toEqual([expect.stringContaining('"line-2"')]);
  expect(world.written(id, 'error')).toHaveLength(3);
  expect(world.written(id, 'error')[0]).toContain('batch_failed');
});

test.for(['cancelled', 'expired'] as const)(
  'a job that is %s stops its batch, and keeps what that answered',
  async (outcome) => {
    await using service = await startMetadataService();
    await using world = openRemoteWorld({ url: service.url });
    const id = await world.plan(requestLines(4));
    await world.steps(id, ({ state }) => state === 'in_progress');
    service.progress(onlyBatch(service).id, { completed: 1, failed: 0 });
    await world.stop(id, outcome);
    await world.step(id);
    expect(onlyBatch(service).status).toBe('cancelling');
    await world.step(id);
    expect(await world.job(id)).toMatchObject({ state: 'cancelling' });
    service.run(onlyBatch(service).id, { answers: (n) => (n < 2 ? 'output' : null) });
    expect(await world.toEnd(id)).toMatchObject({ state: outcome, completed: 2, failed: 2 });
    const code = outcome === 'cancelled' ? 'batch_cancelled' : 'batch_expired';
    expect(world.written(id, 'error')).toEqual([
      expect.stringContaining(code),
      expect.stringContaining(code),
    ]);
  },
);

test('a job that is stopped while its batch is asked for stops that batch', async () => {
  await using service = await startMetadataService();
  await using world = openRemoteWorld({ url: service.url, unclearMs: 3_600_000 });
  service.fail('create', { kind: 'reset' });
  const id = await world.plan(requestLines(3));
  await world.steps(id, ({ reason }) => reason !== '');
  await world.stop(id, 'cancelled');
  expect(await world.toEnd(id)).toMatchObject({ state: 'cancelled', completed: 0, failed: 3 });
  expect(onlyBatch(service).status).toBe('cancelled');
});

test('a job that is over before its batch is on record leaves no batch behind', async () => {
  await using service = await startMetadataService();
  await using world = openRemoteWorld({ url: service.url });
  const id = await world.plan(requestLines(3));
  await world.steps(id, ({ remote }) => remote?.file != null);
  const { remote } = world.deps;
  if (remote === null) throw new Error('there is no service');
  const { create } = remote;
  remote.create = async (...args) => {
    const made = await create(...args);
    await world.store.jobs.move(await world.job(id), 'cancelling', { outcome: 'cancelled' });
    await world.store.jobs.move(await world.job(id), 'finalizing');
    return made;
  };
  await world.step(id);
  expect(onlyBatch(service).status).toBe('cancelled');
});

test('a service that was set otherwise since is not asked for what another one has', async () => {
  await using service = await startMetadataService({ auto: { afterMs: 0 } });
  await using world = openRemoteWorld({ url: service.url });
  const id = await world.plan(requestLines(3));
  await world.steps(id, ({ state }) => state === 'in_progress');
  const { remote } = world.deps;
  world.deps.remote = null;
  const { reason } = await world.steps(id, (job) => job.reason !== '');
  expect(reason).toBe(
    `The batch of this job runs at ${service.url}: set METADATA_SERVICE_URL to that.`,
  );
  world.deps.remote = remote;
  expect(await world.toEnd(id)).toMatchObject({ state: 'completed', completed: 3 });
});

test('a batch that the service has lost ends the job after a while', async () => {
  await using service = await startMetadataService();
  await using world = openRemoteWorld({ url: service.url });
  const id = await world.plan(requestLines(3));
  await world.steps(id, ({ state }) => state === 'in_progress');
  service.batches.clear();
  const { reason } = await world.steps(id, (job) => job.reason !== '');
  expect(reason).toContain('knows no batch');
  world.ahead = 61_000;
  const { state, errors } = await world.toEnd(id);
  expect({ state, code: errors[0]?.code }).toEqual({ state: 'failed', code: 'remote.batch_lost' });
});

test('of several who want to make the batch at once, one does', async () => {
  await using service = await startMetadataService();
  await using world = openRemoteWorld({ url: service.url, unclearMs: 3_600_000 });
  for (let round = 1; round <= 10; round += 1) {
    const id = await world.plan(requestLines(1));
    await world.steps(id, ({ remote }) => remote?.file != null);
    await Promise.all(Array.from({ length: 5 }, () => world.step(id).catch(() => undefined)));
    await world.steps(id, ({ state }) => state === 'in_progress');
    expect(count(service, 'create')).toBe(round);
  }
});

test('what the service runs goes on while its job is paused; what it was not asked for waits', async () => {
  await using service = await startMetadataService({ auto: { afterMs: 0 } });
  await using world = openRemoteWorld({ url: service.url });
  const waiting = await world.plan(requestLines(2));
  await world.step(waiting);
  await world.store.jobs.pause(waiting, 'ann');
  for (let n = 0; n < 5; n += 1) await world.step(waiting);
  expect(service.calls).toEqual([]);
  await world.store.jobs.resume(waiting);
  await world.steps(waiting, ({ state }) => state === 'in_progress');
  await world.store.jobs.pause(waiting, 'ann');
  expect(await world.toEnd(waiting)).toMatchObject({ state: 'completed', completed: 2 });
});

test('several replicas are refused before anything is leased: a batch uses one machine', async () => {
  await using service = await startMetadataService();
  await using world = openRemoteWorld({ url: service.url });
  const resources = resourcesOf({ replicas: 2 });
  const id = await world.plan(requestLines(2), { options: { resources } });
  const { state, reason } = await world.job(id);
  expect(state).toBe('resource_failed');
  expect(reason).toContain('uses one machine, not 2: ask for 1 replica');
  expect(await world.store.provisions.ofJob(id)).toEqual([]);
});

test('a machine of the caller is refused: no batch service is given it', async () => {
  await using service = await startMetadataService();
  await using world = openRemoteWorld({ url: service.url });
  const login = { host: '192.0.2.9', port: 22, user: 'root' };
  const resources = resourcesOf({ machine: { login, hostKey: null } });
  const id = await world.plan(requestLines(2), { options: { resources } });
  const { state, reason } = await world.job(id);
  expect(state).toBe('resource_failed');
  expect(reason).toContain('unset METADATA_SERVICE_URL');
  expect(service.calls).toEqual([]);
});

test('a job that is stopped as its batch is about to be asked for has none', async () => {
  await using service = await startMetadataService();
  await using world = openRemoteWorld({ url: service.url });
  const id = await world.plan(requestLines(3));
  await world.steps(id, ({ remote }) => remote?.file != null);
  const { noteRemote } = world.store.jobs;
  world.deps.store.jobs.noteRemote = async (...args) => {
    const isNoted = await noteRemote(...args);
    world.deps.store.jobs.noteRemote = noteRemote;
    await world.stop(id, 'cancelled');
    return isNoted;
  };
  const { id: provision } = await world.provision(id);
  await world.deliver('submission', provision);
  expect(await world.toEnd(id)).toMatchObject({ state: 'cancelled', failed: 3 });
  expect(count(service, 'create')).toBe(0);
});

test('a pause gives no machine back that a service works on, and any other one', async () => {
  await using service = await startMetadataService();
  await using world = openRemoteWorld({ url: service.url });
  const states: string[] = [];
  for (const batch of ['b', null]) {
    const id = await world.plan(requestLines(1), { options: { resources: resourcesOf() } });
    const { remote } = await world.job(id);
    if (remote === null) throw new Error('it is no remote job');
    await world.store.jobs.noteRemote(id, { before: remote, now: { ...remote, batch } });
    await world.store.jobs.pause(id, 'ann');
    world.ahead = 3_600_000;
    await settle(id, world.deps);
    states.push((await world.provision(id)).state);
    world.ahead = 0;
  }
  expect(states).toEqual(['intended', 'releasing']);
});
