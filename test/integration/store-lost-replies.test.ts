import { createHash } from 'node:crypto';
import { Cluster, Redis } from 'ioredis';
import { expect, test } from 'vitest';
import { EXAMPLE_MODEL, EXAMPLE_TEMPLATE } from '../../src/api/docs/examples.ts';
import type { JobRecord } from '../../src/domain/job.ts';
import { newRemoteBatch } from '../../src/domain/remote.ts';
import { newAttempt } from '../../src/domain/lease.ts';
import { SCRIPTS } from '../../src/store/scripts.ts';
import type { Client } from '../../src/store/scripts.ts';
import { createStore } from '../../src/store/store.ts';
import type { Store } from '../../src/store/store.ts';
import { startCluster, startRedis } from '../support/redis.ts';
import type { ClusterNode } from '../support/redis.ts';
import { newJob, partOf, SEGMENT } from '../support/store-back-ends.ts';
import { startSwallowingProxy } from '../support/swallowing-proxy.ts';
import type { SwallowingProxy } from '../support/swallowing-proxy.ts';
import { until } from '../support/until.ts';
import { JOB_SECRET } from '../support/webhooks.ts';

/** Calls a method and notes its answer, and what it answers when its replies are lost. */
type Call = (name: string, method: () => unknown) => Promise<void>;

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

/** Of a job that nobody has ended yet. */
async function takePastDeadline(jobs: Store['jobs'], shards: Store['shards']): Promise<unknown> {
  const id = 'job_late';
  const { job } = await jobs.create(newJob({ id, windowMs: -1_000 }));
  await shards.write(id, [{ n: 0, first: 0, lines: 4, offset: 0, bytes: 9 }]);
  const at = { id, state: job.state, version: job.version };
  const moved = await jobs.move(at, 'in_progress', { set: { lines: 4, shards: 1 } });
  const waiting = await shards.open(id, 1);
  return [moved, waiting, await shards.take(id, { n: 0, wake: 1 }, 't', 1)];
}

/** A job that a remote service runs: what is known of its batch is written by who has read it last. */
async function runRemotely(jobs: Store['jobs'], shards: Store['shards']): Promise<unknown> {
  const id = 'job_remote';
  const { job } = await jobs.create(newJob({ id }));
  await shards.write(id, [{ n: 0, first: 0, lines: 4, offset: 0, bytes: 9 }]);
  const before = newRemoteBatch('http://service');
  const set = { lines: 4, shards: 1, remote: before };
  await jobs.move({ id, state: job.state, version: job.version }, 'in_progress', { set });
  const now = { ...before, batch: 'b' };
  const usage = { inputTokens: 1, cachedTokens: 2, outputTokens: 3, reasoningTokens: 4 };
  const noted = [
    await jobs.noteRemote(id, { before, now }),
    await jobs.noteRemote(id, { before: now, now }, { completed: 2, failed: 1, usage }),
    await jobs.noteRemote(id, { before, now: { ...before, batch: 'other' } }),
  ];
  const { remote, completed, failed, usage: used } = (await jobs.get(id)) ?? job;
  return [noted, remote, completed, failed, used, await shards.open(id, 2)];
}

const ASKED = {
  provider: 'runpod',
  offer: '1x L40S',
  gpuType: 'L40S',
  gpuCount: 1,
  pricePerHour: 1,
  region: '',
  hostKey: 'ssh-ed25519 AAAA',
} as const;

/** Every method of the store, in an order in which each finds what it needs. */
async function callAll(
  {
    jobs,
    shards,
    provisions,
    files,
    uploads,
    nodes,
    engines,
    sweep,
    webhooks,
    idempotency,
    models,
    templates,
    limits,
    leases,
    collect: collecting,
    claimStorage,
  }: Store,
  call: Call,
) {
  const id = 'job_lost';
  const at = (state: JobRecord['state'], version: number) => ({ id, state, version });
  await call('create', () => jobs.create(newJob({ id })));
  await call('get', () => jobs.get(id));
  const plans = [0, 1, 2].map((n) => ({ n, first: 4 * n, lines: 4, offset: 9 * n, bytes: 9 }));
  await call('write', () => shards.write(id, plans));
  const set = { lines: 12, shards: 3, models: ['m', 'n'] };
  await call('move', () => jobs.move(at('queued', 1), 'resource_preparing', { set, event: 'x' }));
  await call('move', () => jobs.move(at('resource_preparing', 2), 'submitting'));
  await call('move', () => jobs.move(at('submitting', 3), 'in_progress'));
  await call('stale move', () => jobs.move(at('submitting', 3), 'failed'));
  await call('wake', () => jobs.wake(id, 1));
  await call('stale wake', () => jobs.wake(id, 1));
  await call('note', () => jobs.note(id, 'because'));
  await call('give up', () => jobs.giveUp(id, ['m'], 'no engine serves it'));
  await call('give up all', () => jobs.giveUp(id, ['n'], 'the other one, too'));
  await call('open', () => shards.open(id, 2));
  await call('take', () => shards.take(id, { n: 0, wake: 1 }, 't0', 2));
  await call('take', () => shards.take(id, { n: 1, wake: 1 }, 't1', 2));
  await call('mark', () => shards.markAlone(id, 1, 't1', 2));
  await call('stale take', () => shards.take(id, { n: 1, wake: 7 }, 't2', 2));
  await call('commit', () =>
    shards.commit(id, SEGMENT, [
      partOf(0, 't0', 4, [0, 1, 2, 3]),
      partOf(1, 't1', 4, [1], { offset: 10 }),
      partOf(2, 'nobody', 4, [1], { offset: 20 }),
    ]),
  );
  await call('commit of done lines', () => {
    return shards.commit(id, { ...SEGMENT, id: 'seg-2' }, [partOf(1, 't1', 4, [1, 2])]);
  });
  await call('pending', async () =>
    (await shards.pending(id)).map(({ n, wake, held }) => [n, wake, held]),
  );
  await call('held', () => shards.held(id));
  await call('rewake', () => shards.rewake(id, { n: 2, wake: 1 }));
  await call('stale rewake', () => shards.rewake(id, { n: 2, wake: 1 }));
  await call('give', async () => {
    // Two that began to wait in one millisecond are in the order of their numbers, else of their times.
    return (await shards.give(id, 1, 't1', 2)).toSorted((a, b) => a.n - b.n);
  });
  await call('take', () => shards.take(id, { n: 1, wake: 2 }, 't3', 2));
  await call('fall back', () => jobs.move(at('in_progress', 4), 'submitting'));
  await call('take not now', () => shards.take(id, { n: 1, wake: 2 }, 't3', 2));
  await call('pause', () => jobs.pause(id, 'ann'));
  await call('resume', () => jobs.resume(id));
  await call('extend', async () => {
    const job = await jobs.get(id);
    return job !== null && (await jobs.extend(job, '48h', 172_800_000));
  });
  await call('late take', () => takePastDeadline(jobs, shards));
  await call('remote', () => runRemotely(jobs, shards));
  await call('accepted', () => collect(shards.accepted(id, 0, 3)));
  await call('segments', () => shards.segments(id));
  await call('due', () => jobs.due(5));
  await call('page', () => jobs.page({ limit: 5 }));
  await call('active', () => collect(jobs.active()));
  await call('age', async () => (await jobs.age(id)) >= 0);
  await call('cancel', () =>
    jobs.move(at('submitting', 5), 'cancelling', { outcome: 'cancelled' }),
  );
  await call('seal', () => jobs.move(at('cancelling', 6), 'finalizing'));
  await call('sealed commit', () => {
    return shards.commit(id, { ...SEGMENT, id: 'seg-3' }, [partOf(1, 't3', 4, [2])]);
  });
  const lost = [{ segment: SEGMENT.id, offset: 10, length: 10, crc: 7 }];
  const struck = { n: 1, lost, rest: Buffer.from([0]) };
  await call('strike', () => shards.strike(at('finalizing', 7), struck, 'Lost.'));
  await call('stale strike', () => shards.strike(at('finalizing', 7), struck, 'Lost.'));
  await call('forgetSegments', () => shards.forgetSegments(id, ['seg-9']));
  await call('end', () => jobs.move(at('finalizing', 8), 'cancelled', { set: { failed: 7 } }));
  await call('forget', () => jobs.forget(id));
  await call('publishStop', () => jobs.publishStop(id));
  await call('events', () => jobs.events(id));
  await call('get', () => jobs.get(id));

  const provision = { id: 'prov_lost_0_1', job: id, slot: 0, address: 'http://e' };
  const kinds = { provider: 'static', owner: 'caller' } as const;
  const in1 = { id: provision.id, state: 'intended', version: 1 } as const;
  const in2 = { id: provision.id, state: 'releasing', version: 2 } as const;
  await call('provision', () => provisions.create({ ...provision, ...kinds }));
  const attempt = newAttempt({ ...ASKED, n: 1, name: 'sl-1', askedAt: 1 });
  const change = { attempt, provider: 'runpod' } as const;
  const leased = { id: 'prov_lost_0_2', job: id, slot: 0, address: 'lease://prov_lost_0_2' };
  const taker = 'prov_lost_0_3';
  const l1 = { id: leased.id, state: 'intended', version: 1 } as const;
  const l2 = { id: leased.id, state: 'creating', version: 2 } as const;
  await call('leased provision', () => provisions.create({ ...leased, ...kinds }));
  await call('byKey', () => provisions.byKey(provisions.keyOf(leased.id)));
  await call('lease', () => provisions.move(l1, 'creating', change));
  await call('attempt', () => provisions.attempt(leased.id, 1, { state: 'there', machine: 'm' }));
  await call('attempt', () => provisions.attempt(leased.id, 2, { state: 'there' }));
  await call('release', () => provisions.move(l2, 'releasing'));
  await call('hand to', () => provisions.hand(leased.id, 'to', taker));
  await call('hand undo', () => provisions.hand(leased.id, 'undo', taker));
  await call('hand back', () => provisions.hand(leased.id, 'back', taker));
  await call('destroy', () => provisions.decideDestroy(leased.id));
  await call('bump', () => provisions.bump(leased.id));
  await call('sit', () => leases.sit(leased.id, 1));
  await call('sit', () => leases.sit(taker, 1));
  await call('sit', () => leases.sit(taker, 1, leased.id));
  await call('tell', () => jobs.tell(id, 'it loads'));
  await call('provision wake', () => provisions.wake(provision.id, 1));
  await call('provision move', () => provisions.move(in1, 'releasing', { reason: 'x' }));
  await call('provision note', () => provisions.note(provision.id, 'y'));
  await call('provision keep', () => provisions.keep(provision.id, { models: ['m'] }));
  await call('unreleased', () => collect(provisions.unreleased()));
  await call('provision page', () => provisions.page({ limit: 5, matches: () => true }));
  await call('provision move', () => provisions.move(in2, 'released'));
  await call('ofJob', () => provisions.ofJob(id));
  await call('provision forget', () => provisions.forget(provision.id));

  await call('untold', () => webhooks.untold(5));
  await call('told', () => webhooks.told(id));
  await call('putOff', () => webhooks.putOff(id, 60_000));
  await call('isTold', () => webhooks.isTold(id));
  await call('untold', () => webhooks.untold(5));
  const hook = { id: 'we_lost', url: 'http://hook/', events: ['batch.failed' as const] };
  await call('register', () => webhooks.register({ ...hook, secret: JOB_SECRET }));
  await call('list', () => webhooks.list());
  const event = { event: 'evt_lost', type: 'batch.failed', target: hook.id, url: hook.url };
  await call('add', () => webhooks.add({ id: 'd1', ...event, body: '{}' }));
  await call('add', () => webhooks.add({ id: 'd2', ...event, body: '{}' }));
  await call('webhooks due', () => webhooks.due(5));
  const result = { event: 'evt_lost', type: 'batch.failed', durationMs: 5, error: '' };
  const missed = { ...result, status: 'retrying' as const, code: 500, response: 'no' };
  await call('note', () => webhooks.note({ id: 'd1', target: hook.id }, 'hook', missed, 60_000));
  await call('webhooks due', () => webhooks.due(5));
  await call('note', () => webhooks.note({ id: 'd2', target: hook.id }, 'hook', missed, null));
  await call('webhooks due', () => webhooks.due(5));
  await call('late note', () => webhooks.note({ id: 'd2', target: hook.id }, 'hook', missed, 1));
  await call('add', () => webhooks.add({ id: 'd3', ...event, body: '{}' }));
  await call('drop', () => webhooks.drop('d1', 'hook'));
  await call('attempts', () => webhooks.attempts(hook.id));
  await call('delivery', async () => ({ ...(await webhooks.delivery('d3')), ageMs: 0 }));
  await call('delivery that is over', () => webhooks.delivery('d2'));
  await call('add', () => webhooks.add({ id: `evt_lost.${hook.id}`, ...event, body: '{}' }));
  await call('erase', () => webhooks.erase(id, 'evt_lost'));
  await call('erased delivery', () => webhooks.delivery(`evt_lost.${hook.id}`));
  await call('attempts', () => webhooks.attempts(hook.id));
  await call('disable', () => webhooks.disable(hook.id, 'gone'));
  await call('webhook', () => webhooks.get(hook.id));
  await call('webhook remove', () => webhooks.remove(hook.id));
  await call('webhook lease', () => webhooks.lease('me', 60_000));
  await call('webhook yield', () => webhooks.yield('me'));

  const file = { id: 'file_lost', bytes: 1, sha256: 'ab', filename: 'f' };
  await call('file', () => files.create({ ...file, purpose: 'batch' }));
  await call('file amend', () => files.amend(file.id, { sha256: 'cd', location: 's3://b/k' }));
  await call('amended file', async () => {
    const { sha256, location } = (await files.get(file.id)) ?? {};
    return { sha256, location };
  });
  await call('files', () => files.page({ limit: 5, order: 'asc' }));
  await call('file expire', () => files.expire(file.id, 1));
  await call('expired file', async () => (await files.get(file.id))?.expiresAt);
  await call('file delete', () => files.delete(file.id));
  await call('file expire of none', () => files.expire(file.id, 1));
  await call('file delete of none', () => files.delete(file.id));
  await call('file amend of none', () => files.amend(file.id, { sha256: 'cd' }));
  await call('no file', () => files.get(file.id));
  await call('files due', () => files.due(5));

  const wish = { filename: 'f', purpose: 'batch' as const, mimeType: 'text/plain', bytes: 1 };
  const upload = { ...wish, id: 'upload_lost', expiresAfterMs: null, bodyHash: 'b' };
  await call('upload', async () => (await uploads.create(upload)).outcome);
  await call('part', async () => await uploads.addPart(upload.id, { id: 'part_a', bytes: 1 }));
  await call('begin', () => uploads.begin(upload.id, 'file-a', 60_000));
  await call('busy begin', () => uploads.begin(upload.id, 'file-b', 60_000));
  const made = { fileId: 'file-a', sha256: 'a', md5: 'b', list: 'c' };
  await call('complete', () => uploads.complete(upload.id, made));
  await call('late cancel', () => uploads.cancel(upload.id));
  await call('late part', () => uploads.addPart(upload.id, { id: 'part_b', bytes: 1 }));
  await call('uploads due', () => uploads.due(5));

  const { createdAt: _at, id: modelId, ...info } = EXAMPLE_MODEL;
  const template = { ...EXAMPLE_TEMPLATE, modelId, id: 'tpl_lost', revision: 1 };
  await call('model', () => models.create(modelId, info));
  await call('model twice', () => models.create(modelId, info));
  await call('get model', () => models.get(modelId));
  await call('models', () => models.list());
  await call('template of no model', () => templates.create({ ...template, modelId: 'none' }));
  await call('template', () => templates.create(template));
  await call('template taken', () => templates.create({ ...template, id: 'tpl_other' }));
  await call('change', () => templates.change({ ...template, version: 'v2' }));
  await call('stale change', () => templates.change({ ...template, version: 'v3' }));
  await call('get template', () => templates.get(modelId, template.id));
  await call('stale use', () => templates.use(template));
  await call('template twice', () => templates.create({ ...template, id: 'tpl_2' }));
  await call('template delete', () => templates.delete(modelId, 'tpl_2'));
  await call('template delete of none', () => templates.delete(modelId, 'tpl_2'));
  await call('use', () => templates.use({ ...template, revision: 2 }));
  await call('change of used', () => templates.change({ ...template, revision: 2 }));
  await call('template delete of used', () => templates.delete(modelId, template.id));
  await call('templates', () => templates.list(modelId));
  await call('model delete of used', () => models.delete(modelId));
  await call('model', () => models.create('model-free', info));
  await call('model delete', () => models.delete('model-free'));
  await call('model delete of none', () => models.delete('model-free'));

  const node = { id: 'node', roles: ['worker'], queues: ['dispatch'], pid: 1, host: 'h' };
  await call('beat', () => nodes.beat(node));
  const engineBeat = { id: 'node', number: 1, tally: { inFlight: 1 }, limit: 64 };
  await call('engine beat', () => engines.beat('http://engine', engineBeat));
  await call('live', () => nodes.live());
  await call('dispatchers', () => nodes.dispatchers());
  await call('leave', () => nodes.leave(node.id));
  await call('lease', () => sweep.lease('a', 60_000));
  await call('lease of another', () => sweep.lease('b', 60_000));
  await call('yield', () => sweep.yield('a'));
  await call('lease', () => sweep.lease('b', 60_000));
  const draw = async (want: number, back: number) => {
    const units = { want, back, need: 'awaited' as const };
    return (await limits.draw('lost', `op-${want}-${back}`, 0.001, units)).granted;
  };
  await call('draw', () => draw(2, 5));
  await call('draw of what came back', () => draw(9, 0));
  const kept = { print: 'p', status: 200, body: Buffer.from('{}') };
  await call('claim', async () => 'holder' in (await idempotency.claim('k', 'p', 60_000)));
  await call('claim of another', () => idempotency.claim('k', 'q', 60_000));
  await call('renew of another', () => idempotency.renew('k', 'nobody', 60_000));
  await call('answer of another', () => idempotency.answer('k', 'nobody', kept, 60_000));
  const claimed = await idempotency.claim('l', 'p', 60_000);
  const holder = 'holder' in claimed ? claimed.holder : '';
  await call('answer', () => idempotency.answer('l', holder, kept, 60_000));
  await call('claim of an answer', () => idempotency.claim('l', 'p', 60_000));
  await call('free of an answer', () => idempotency.free('l', holder));
  await call('seed', () => idempotency.seed('s', 'one', false, 60_000));
  await call('seed of a retry', () => idempotency.seed('s', 'two', true, 60_000));
  await call('answer about', () => idempotency.answer('l', holder, kept, 60_000, [id]));
  await call('erase about', () => idempotency.eraseAbout(id));

  const kind = { kind: 'segment', job: id } as const;
  await call('keep', () => collecting.keep(id));
  await call('keeping', () => collect(collecting.keeping(9e12)));
  await call('count', () => collecting.countShards(id));
  await call('drop', () => collecting.dropShards(id, 1, 2, true));
  await call('drop', () => collecting.dropShards(id, 0, 3, false));
  await call('drop of unfinished', () => collecting.dropShards('job_late', 0, 1, false));
  await call('forget kept', () => collecting.forgetKept(id));
  await call('named', () => collecting.isNamed(kind, true));
  const going = { at: 1, withFiles: false, input: 'file_1' };
  await call('erase', () => collecting.erase(id, going));
  await call('erase of unfinished', () => collecting.erase('job_late', going));
  await call('erase of none', () => collecting.erase('job_none', going));
  await call('erasure', () => collecting.erasure(id));
  await call('erase with files', () => collecting.erase(id, { ...going, withFiles: true }));
  await call('erasure', () => collecting.erasure(id));
  await call('erasing', () => collect(collecting.erasing(9e12)));
  await call('provisions', () => collecting.eraseProvisions(id, ['prov_lost_0_1']));
  await call('create erased', async () => {
    return jobs.create(newJob({ id })).catch((error: Error) => error.message);
  });
  await call('leave', () => collecting.leaveIndexes(id));
  await call('ended', () => collect(collecting.ended(9e12)));
  await call('forget erasure', () => collecting.forgetErasure(id, 9e12));
  await call('collect lease', () => collecting.lease('me', 60_000));
  await call('collect yield', () => collecting.yield('me'));
  await call('mark', () => collecting.markCollected());
  await call('marked', async () => (await collecting.collectedAt()) !== null);
  await call('set census', () => collecting.setCensus({ id: 'c', round: 2, doubt: null }));
  await call('census', () => collecting.census());
  await call('begin census', () => collecting.beginCensus('d'));
  await call('doubt', () => collecting.setDoubt('why'));
  await call('census', () => collecting.census());
  await call('claimStorage', () => claimStorage('one'));
  await call('claimStorage', () => claimStorage('two'));
}

/** Times differ from run to run; all else may not. */
function withoutTimes(answer: unknown): string {
  return JSON.stringify(answer instanceof Map ? [...answer] : (answer ?? null)).replaceAll(
    /\b1\d{12}(-\d+)?\b/g,
    'T',
  );
}

const NAMES = new Map(
  [...SCRIPTS].map(([name, lua]) => [createHash('sha1').update(lua).digest('hex'), name]),
);

interface Answers {
  plain: [string, string][];
  lossy: [string, string][];
  /** Scripts of which no reply was lost. */
  missed: string[];
}

/** The answers of all methods, and those when the reply of each of their commands is lost once. */
async function answersOf(
  client: Client,
  lossy: Client,
  proxies: SwallowingProxy[],
): Promise<Answers> {
  const answers: Answers = { plain: [], lossy: [], missed: [] };
  await callAll(createStore({ redis: client }), async (name, method) => {
    answers.plain.push([name, withoutTimes(await method())]);
  });
  for (const node of client instanceof Cluster ? client.nodes('master') : [client]) {
    await node.flushall();
  }
  const swallowed = new Set<string>();
  await callAll(createStore({ redis: lossy }), async (name, method) => {
    for (const proxy of proxies) proxy.swallowEach();
    answers.lossy.push([name, withoutTimes(await method())]);
    const seen = proxies.flatMap((proxy) => [...proxy.swallowed]);
    if (seen.length === 0) throw new Error(`${name} lost no reply`);
    for (const command of seen) swallowed.add(NAMES.get(command) ?? command);
  });
  answers.missed = [...SCRIPTS.keys()].filter((name) => !swallowed.has(name));
  return answers;
}

test('a method whose replies are lost answers as it would have at first', async () => {
  await using server = await startRedis();
  const proxy = await startSwallowingProxy(server);
  const client = new Redis(server.url);
  const lossy = new Redis({ host: proxy.host, port: proxy.port, retryStrategy: () => 5 });
  try {
    const answers = await answersOf(client, lossy, [proxy]);
    expect(answers.lossy).toEqual(answers.plain);
    expect(answers.missed).toEqual([]);
  } finally {
    client.disconnect();
    lossy.disconnect();
    await proxy.close();
  }
}, 30_000);

/** Lets the nodes of a cluster send clients to the proxies, and waits until all know. */
async function announce(nodes: ClusterNode[], proxies: SwallowingProxy[]): Promise<void> {
  const clients = nodes.map(({ host, port }) => new Redis({ host, port }));
  for (const [i, client] of clients.entries()) {
    await client.config('SET', 'cluster-announce-port', proxies[i]?.port ?? 0);
  }
  for (const client of clients) {
    await until(async () => {
      const slots = JSON.stringify(await client.cluster('SLOTS'));
      return proxies.every(({ port }) => slots.includes(String(port)));
    });
    client.disconnect();
  }
}

test('so it does on a cluster', async () => {
  await using cluster = await startCluster();
  const proxies = await Promise.all(cluster.nodes.map(startSwallowingProxy));
  await announce(cluster.nodes, proxies);
  const client = new Cluster(cluster.nodes);
  const lossy = new Cluster(proxies, { retryDelayOnFailover: 5, clusterRetryStrategy: () => 5 });
  try {
    const answers = await answersOf(client, lossy, proxies);
    expect(answers.lossy).toEqual(answers.plain);
    expect(answers.missed).toEqual([]);
  } finally {
    client.disconnect();
    lossy.disconnect();
    for (const proxy of proxies) await proxy.close();
  }
}, 60_000);
