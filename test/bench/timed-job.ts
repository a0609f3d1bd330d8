import { readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Redis } from 'ioredis';
import { createRunClient } from '../../src/main/run-client.ts';
import { jobIdOf } from '../../src/domain/job.ts';
import { jobKey, recordKey } from '../../src/store/keys.ts';

/** How long the parts of a job took by its own history, seconds. */
export interface JobTimes {
  /** From POST until its lines may be sent. */
  planning: number;
  /** While its lines were sent: the dispatch phase. */
  sending: number;
  /** From the last answer until its files were there. */
  assembly: number;
  /** From POST to completed. */
  total: number;
}

export interface JobWish {
  url: string;
  fileId: string;
  redis: Redis;
  /** `aibrix.client` of the batch. */
  client?: Record<string, unknown>;
}

/** Runs a batch over an uploaded file to its end. */
export async function runTimedJob({ url, fileId, redis, client }: JobWish): Promise<JobTimes> {
  const id = await startJob({ url, fileId, redis, ...(client === undefined ? {} : { client }) });
  for (;;) {
    const [state, reason] = await redis.hmget(recordKey(id), 'state', 'reason');
    if (state === 'completed') return timesOf(redis, id);
    if (/^(failed|expired|cancelled|submit_failed|resource_failed)$/.test(state ?? ''))
      throw new Error(`${state}: ${reason}`);
    await sleep(20);
  }
}

/** Starts a batch over an uploaded file, and returns its job's id. */
export async function startJob({ url, fileId, client }: JobWish): Promise<string> {
  const batch = await createRunClient(url).submit({
    input_file_id: fileId,
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    ...(client === undefined ? {} : { aibrix: { client } }),
  });
  return jobIdOf(batch) ?? '';
}

async function timesOf(redis: Redis, id: string): Promise<JobTimes> {
  const entries = await redis.xrange(jobKey(id, 'EVENTS'), '-', '+');
  const at = new Map(entries.map(([entry, [, state]]) => [state, Number(entry.split('-')[0])]));
  function seconds(from: string, to: string): number {
    return ((at.get(to) ?? Number.NaN) - (at.get(from) ?? Number.NaN)) / 1_000;
  }
  return {
    planning: seconds('queued', 'in_progress'),
    sending: seconds('in_progress', 'finalizing'),
    assembly: seconds('finalizing', 'completed'),
    total: seconds('queued', 'completed'),
  };
}

/** CPU time that a process has used, seconds; 0 where there is no /proc. */
export async function cpuOfProcess(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  // proc(5): utime and stime are the 14th and 15th field, in ticks of 10 ms.
  return (Number(fields[11] ?? 0) + Number(fields[12] ?? 0)) / 100;
}

/** What clients send while a job runs; Redis counts what scripts call in the same numbers, so these are told by name. */
const SENT = ['evalsha', 'eval', 'bzpopmin', 'hgetall', 'publish', 'get', 'ping'];

/** Commands that clients have sent to Redis. */
export async function commandsOf(redis: Redis): Promise<number> {
  const info = await redis.info('commandstats');
  let sum = 0;
  for (const name of SENT)
    sum += Number(new RegExp(`cmdstat_${name}:calls=(\\d+)`).exec(info)?.[1] ?? 0);
  return sum;
}

export function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
}

export function percentile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0;
}

export function round(value: number, digits: number): number {
  return Number(value.toFixed(digits));
}
