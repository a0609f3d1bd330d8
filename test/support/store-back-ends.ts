import { randomUUID } from 'node:crypto';
import { Cluster, Redis } from 'ioredis';
import { inject } from 'vitest';
import type { JobState, Usage } from '../../src/domain/job.ts';
import type { NewJob } from '../../src/store/jobs.ts';
import type { Client } from '../../src/store/scripts.ts';
import type { Part } from '../../src/domain/segment.ts';
import type { Store } from '../../src/store/store.ts';
import { maskOf } from './fuzz/world.ts';
import { DEFAULT_OPTIONS } from '../../src/domain/job.ts';

/** What the store has to run on: a single Redis that writes a log, and a cluster of three. */
export const BACK_ENDS = ['redis', 'cluster'] as const;
export type BackEnd = (typeof BACK_ENDS)[number];

/** A client of the run's own servers, which all tests share: keys are to be random. */
export function connectTo(kind: BackEnd): Client {
  return kind === 'redis' ? new Redis(inject('redisUrl')) : new Cluster(inject('clusterNodes'));
}

export function newJob(change: Partial<NewJob> = {}): NewJob {
  return {
    id: `job_${randomUUID().replaceAll('-', '')}`,
    name: 'nightly',
    endpoint: '/v1/chat/completions',
    input: 'file_1',
    completionWindow: '24h',
    windowMs: 86_400_000,
    metadata: { team: 'search', umlaut: 'ä' },
    maxConcurrency: 16,
    engines: ['http://127.0.0.1:8000'],
    options: DEFAULT_OPTIONS,
    cut: { lines: 1_000, bytes: 8_388_608 },
    bodyHash: 'hash',
    ...change,
  };
}

/** A job in progress whose shards are planned and not opened. */
export async function jobInProgress(
  store: Store,
  { shards = 3, lines = 10 } = {},
): Promise<{ id: string; version: number }> {
  const { job } = await store.jobs.create(newJob());
  const plans = Array.from({ length: shards }, (_, n) => {
    return { n, first: n * lines, lines, offset: n * 100, bytes: 100 };
  });
  await store.shards.write(job.id, plans);
  let version = job.version;
  let state: JobState = 'queued';
  for (const to of ['resource_preparing', 'submitting', 'in_progress'] as const) {
    const set = { lines: lines * shards, shards, models: ['m'] };
    const moved = await store.jobs.move({ id: job.id, state, version }, to, { set });
    if (moved === 'stale') throw new Error('nobody else moves this job');
    ({ version } = moved);
    state = to;
  }
  return { id: job.id, version };
}

const NO_USAGE: Usage = {
  inputTokens: 0,
  cachedTokens: 0,
  outputTokens: 0,
  reasoningTokens: 0,
};

/** A part that answers `answered` of the shard's `lines` lines, all well. */
export function partOf(
  n: number,
  token: string,
  lines: number,
  answered: readonly number[],
  change: Partial<Part> = {},
): Part {
  const mask = maskOf(lines, answered);
  const range = { offset: 0, length: 10, crc: 7 };
  return { n, token, mask, ok: answered.length, failed: 0, usage: NO_USAGE, ...range, ...change };
}

export const SEGMENT = { id: 'seg-1', bytes: 10, sha256: 'ab' };
