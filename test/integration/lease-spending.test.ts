import { randomUUID } from 'node:crypto';
import { expect, test } from 'vitest';
import { guardSpending } from '../../processors/spending.ts';
import { finishJob } from '../../processors/settle.ts';
import { createSweeper } from '../../processors/sweep.ts';
import { currentAttempt } from '../../src/domain/provision.ts';
import { openLeasingWorld } from '../support/leasing-world.ts';
import type { LeasingWorld } from '../support/leasing-world.ts';
import { partOf, SEGMENT } from '../support/store-back-ends.ts';

const HOUR = 3_600_000;
const USAGE = { inputTokens: 100, cachedTokens: 0, outputTokens: 900, reasoningTokens: 0 };

async function sweep({ world }: LeasingWorld): Promise<void> {
  const { store, deps } = world;
  const sweeper = createSweeper(randomUUID(), { ...deps, store, isLive: async () => true });
  await sweeper.sweep(new AbortController().signal);
  await sweeper.close();
}

test('max_cost_usd: a job that has cost so much is stopped by the sweeper, and its machine given back', async () => {
  await using leasing = await openLeasingWorld();
  const { jobId, provisions } = await leasing.plan({ maxCostUsd: 3 });
  const id = provisions[0] ?? '';
  await leasing.until(id, 'serving');
  await sweep(leasing);
  expect((await leasing.world.job(jobId)).outcome).toBeNull();
  leasing.world.ahead += 10 * HOUR;
  await sweep(leasing);
  const job = await leasing.world.job(jobId);
  expect(job).toMatchObject({ state: 'cancelling', outcome: 'failed' });
  expect(job.errors).toMatchObject([{ code: 'max_cost_usd' }]);
  expect((await leasing.provision(id)).state).toBe('releasing');
});

test('max_cost_usd: no machine is leased that the job cannot pay for', async () => {
  await using leasing = await openLeasingWorld();
  const { jobId, provisions } = await leasing.plan({ maxCostUsd: 0.01 });
  await leasing.step(provisions[0] ?? '');
  expect(await leasing.machines()).toEqual([]);
  const job = await leasing.world.job(jobId);
  expect(job).toMatchObject({ outcome: 'resource_failed' });
  expect(job.errors).toMatchObject([{ code: 'lease.too_dear' }]);
});

test('max_idle_minutes: a job that pays for machines without a line to answer is stopped', async () => {
  await using leasing = await openLeasingWorld();
  const { jobId, provisions } = await leasing.plan({ maxIdleMinutes: 10 });
  await leasing.until(provisions[0] ?? '', 'serving');
  await leasing.world.store.jobs.pause(jobId, 'me');
  leasing.world.ahead += 5 * 60_000;
  await guardSpending(await leasing.world.job(jobId), leasing.world.deps);
  expect((await leasing.world.job(jobId)).outcome).toBeNull();
  leasing.world.ahead += 6 * 60_000;
  await guardSpending(await leasing.world.job(jobId), leasing.world.deps);
  const job = await leasing.world.job(jobId);
  expect(job.errors).toMatchObject([{ code: 'max_idle_minutes' }]);
});

test('PLANNING_POLICY=fastest: what jobs did on a GPU decides for the next one of their template', async () => {
  await using leasing = await openLeasingWorld({ policy: 'fastest' });
  const gpuTypes = ['NVIDIA A40', 'NVIDIA L40S'];
  const { jobId, provisions } = await leasing.plan({ gpuTypes: ['NVIDIA L40S'] });
  const id = provisions[0] ?? '';
  await leasing.until(id, 'serving');
  const { store, deps } = leasing.world;
  const { lines } = await leasing.world.job(jobId);
  await store.shards.write(jobId, [{ n: 0, first: 0, lines, offset: 0, bytes: 9 }]);
  const [shard] = await store.shards.open(jobId, 1);
  if (shard === undefined) throw new Error('the job has a shard');
  await store.shards.take(jobId, shard, 'token', 1);
  const all = Array.from({ length: lines }, (_, line) => line);
  await store.shards.commit(jobId, SEGMENT, [partOf(0, 'token', lines, all, { usage: USAGE })]);
  leasing.world.ahead += 60_000;
  await finishJob(jobId, deps);
  const speeds = await store.leases.speeds('tpl_1');
  expect([...speeds.keys()]).toEqual(['NVIDIA L40S']);
  const next = await leasing.plan({ gpuTypes });
  await leasing.step(next.provisions[0] ?? '');
  const attempt = currentAttempt(await leasing.provision(next.provisions[0] ?? ''));
  expect(attempt?.gpuType).toBe('NVIDIA L40S');
});

test('what a loading engine says is told in the job’s history', async () => {
  await using leasing = await openLeasingWorld();
  leasing.inside.healthy = false;
  leasing.leasing.machines.readLog = async (_site, offset) => ({
    text: offset === 0 ? 'Starting vLLM\nLoading weights: 40 %\n' : '',
    next: offset + 10,
  });
  const { jobId, provisions } = await leasing.plan();
  const id = provisions[0] ?? '';
  await leasing.until(id, 'starting');
  await leasing.step(id);
  leasing.world.ahead += 11_000;
  await leasing.step(id);
  const events = await leasing.world.store.jobs.events(jobId);
  const told = events.filter(({ kind }) => kind === 'engine').map(({ message }) => message);
  expect(told).toEqual(['Starting vLLM\nLoading weights: 40 %']);
  expect((await leasing.world.job(jobId)).reason).toContain('Loading weights: 40 %');
});
