import { afterAll, afterEach, beforeEach, expect, inject, test } from 'vitest';
import { surveyMachines } from '../../processors/inventory-survey.ts';
import { leaseAddress, provisionId } from '../../src/domain/provision.ts';
import { newAttempt } from '../../src/domain/lease.ts';
import type { LeaseAttempt } from '../../src/domain/lease.ts';
import { recordKey } from '../../src/store/keys.ts';
import { startApi } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';
import { openInventoryWorld, startClouds } from '../support/inventory-world.ts';
import type { InventoryWorld } from '../support/inventory-world.ts';
import { requireNothingLeft, runCli, spawnCli } from '../support/server.ts';
import { connectTo, newJob } from '../support/store-back-ends.ts';
import { until } from '../support/until.ts';

let api: TestApi;
/** Of the machines; the API's records are others. */
let world: InventoryWorld | null = null;
beforeEach(async () => {
  api = await startApi(inject('redisUrl'), () => ({
    surveyMachines: async () =>
      world === null ? { machines: [], failures: [] } : surveyMachines(0, world.deps),
  }));
});
afterEach(() => api.stop());
afterAll(requireNothingLeft);

const ATTEMPT = newAttempt({
  n: 1,
  name: 'sl-0123abcd-0123456789abcdef-1-t8wq9c',
  provider: 'runpod',
  offer: '2x NVIDIA L40S',
  gpuType: 'NVIDIA L40S',
  gpuCount: 2,
  pricePerHour: 1.72,
  region: 'EU-SE-1',
  hostKey: '',
  askedAt: 1,
});

/** A leased provision of a job that nobody works on. */
async function lease(change: Partial<LeaseAttempt> = {}): Promise<string> {
  const { job } = await api.store.jobs.create(newJob());
  const id = provisionId(job.id, 0, 0);
  const { provisions } = api.store;
  const kinds = { provider: 'runpod', owner: 'sluice', address: leaseAddress(id) } as const;
  await provisions.create({ id, job: job.id, slot: 0, ...kinds });
  const intended = await provisions.get(id);
  if (intended === null) throw new Error(`no ${id}`);
  const attempt = { ...ATTEMPT, ...change };
  await provisions.move(intended, 'creating', { attempt, provider: attempt.provider });
  return id;
}

async function release(id: string): Promise<void> {
  const provision = await api.store.provisions.get(id);
  if (provision !== null) await api.store.provisions.move(provision, 'released');
}

function command(...args: string[]): ['provisions', ...string[]] {
  return ['provisions', ...args, '--url', api.url];
}

test('a leased provision is listed with its machine, its price and why it stands where it stands', async () => {
  const id = await lease({ machine: 'pod1', state: 'there' });
  await api.store.provisions.note(id, 'no sshd\nanswers \u001b[31myet');
  const { code, stdout } = await runCli(command());
  expect(code).toBe(0);
  const cells = stdout.split('\n').map((line) => line.split(/ {2,}/));
  expect(cells).toEqual([
    ['ID', 'JOB', 'STATE', 'PROVIDER', 'MACHINE', 'GPU', 'REGION', 'USD/H', 'AGE', 'REASON'],
    [
      id,
      expect.stringMatching(/^job_/),
      'creating',
      'runpod',
      'pod1',
      '2x NVIDIA L40S',
      'EU-SE-1',
      '1.72',
      expect.stringMatching(/^\d+s$/),
      'no sshd answers [31myet',
    ],
    [''],
  ]);
});

test('more than a page of them is listed whole', async () => {
  const { job } = await api.store.jobs.create(newJob());
  const kinds = { provider: 'static', owner: 'sluice', address: 'http://engine' } as const;
  const ids = Array.from({ length: 230 }, (_, n) => provisionId(job.id, 0, n));
  for (const id of ids) await api.store.provisions.create({ id, job: job.id, slot: 0, ...kinds });
  for (const which of [[], ['--all'], ['--job', job.id]]) {
    const { stdout } = await runCli(command(...which, '--json'));
    const { provisions } = JSON.parse(stdout) as { provisions: { id: string }[] };
    const found = provisions.map(({ id }) => id);
    expect(found.filter((id) => ids.includes(id)).toSorted()).toEqual(ids.toSorted());
    expect(new Set(found).size).toBe(found.length);
  }
});

test('a release is waited for, and what changes is said', async () => {
  const id = await lease();
  const cli = spawnCli(command('release', id, '--rehome'));
  await until(() => cli.stderr().includes(`${id} is releasing`));
  await api.store.provisions.note(id, 'RunPod shows it as EXITED.');
  await until(() => cli.stderr().includes(`${id} is releasing: RunPod shows it as EXITED.`));
  expect(cli.child.exitCode).toBeNull();
  await release(id);
  expect(await cli.exited).toMatchObject({ code: 0 });
  expect(cli.stderr()).toContain(`${id} is released`);
  // Once more is no mistake.
  expect(await runCli(command('release', id))).toMatchObject({ code: 0 });
});

test('Ctrl-C ends the waiting, not the release', async () => {
  const id = await lease();
  const cli = spawnCli(command('release', id, '--rehome'));
  await until(() => cli.stderr().includes(`${id} is releasing`));
  expect(await cli.kill('SIGINT')).toMatchObject({ code: 130 });
  expect(cli.stderr()).toContain('the server goes on with it');
  expect((await api.store.provisions.get(id))?.state).toBe('releasing');
});

test('what is erased while it is waited for is released', async () => {
  const id = await lease();
  const cli = spawnCli(command('release', id, '--rehome'));
  await until(() => cli.stderr().includes(`${id} is releasing`));
  const redis = connectTo('redis');
  await redis.del(recordKey(id));
  redis.disconnect();
  expect(await cli.exited).toMatchObject({ code: 0 });
  expect(cli.stderr()).toContain(`${id} is released`);
});

test('a server that is away for a moment does not end the waiting', async () => {
  const id = await lease();
  const cli = spawnCli(command('release', id, '--rehome'));
  await until(() => cli.stderr().includes(`${id} is releasing`));
  const { url } = api;
  await api.stop();
  await until(() => cli.stderr().includes(`The server at ${url} cannot be reached`));
  expect(cli.child.exitCode).toBeNull();
  expect(await cli.kill('SIGINT')).toMatchObject({ code: 130 });
});

test('machines are listed with what has them, and what nobody wants with the reason', async () => {
  await using clouds = await startClouds();
  await using opened = await openInventoryWorld(clouds);
  world = opened;
  try {
    const kept = await opened.create('runpod', 'a');
    const left = await opened.create('lambdaCloud', 'b');
    const lost = await opened.create('runpod', 'c');
    await opened.record('a', [{ machine: kept }]);
    await opened.record('b', [{ machine: left, provider: 'lambdaCloud' }], { state: 'released' });
    const { code, stdout } = await runCli(command('machines', '--json'));
    expect(code).toBe(0);
    const { machines } = JSON.parse(stdout) as { machines: { id: string }[] };
    const owner = (provision: string) => ({
      provision_id: opened.id(provision),
      job_id: expect.stringMatching(/^job_/),
    });
    expect(machines).toHaveLength(3);
    expect(machines).toEqual(
      expect.arrayContaining([
        expect.objectContaining({ id: kept, use: 'wanted', reason: '', ...owner('a') }),
        expect.objectContaining({
          id: left,
          provider: 'lambdaCloud',
          use: 'unwanted',
          reason: 'its provision is released',
          price_per_hour: expect.any(Number),
          ...owner('b'),
        }),
        expect.objectContaining({ id: lost, use: 'orphan', provision_id: '', job_id: '' }),
      ]),
    );
    const { stdout: text } = await runCli(command('machines'));
    expect(text).toContain(opened.id('a'));
    expect(text).toContain('its provision is released');
    // Nothing of it is done by looking.
    expect((await opened.there()).toSorted()).toEqual([kept, left, lost].toSorted());
  } finally {
    world = null;
  }
});
