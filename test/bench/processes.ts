import { join } from 'node:path';
import { Redis } from 'ioredis';
import { createRunClient } from '../../src/main/run-client.ts';
import { startRedis } from '../support/redis.ts';
import { startSluice } from '../support/server.ts';
import type { Sluice } from '../support/server.ts';
import type { VllmProcess } from '../support/vllm-process.ts';
import { untilWorking, workerPids } from '../support/worker-processes.ts';
import { commandsOf, cpuOfProcess, median, round, runTimedJob } from './timed-job.ts';

const PROCESSES = [1, 2, 4] as const;
const ROUNDS = 3;
const WINDOWS = [1_024, 4_096] as const;
/** What a job takes at best: its start and end cost the same however long it is. */
const SECONDS = 20;

interface Round {
  sendingPerSecond: number;
  perSecond: number;
  cpuMicroseconds: number;
  commands: number;
}

/** What the workers do with lines, with 1, 2 and 4 processes of their own: API and sweeper are another process. */
export async function measureProcesses(
  engine: VllmProcess,
  input: string,
  lines: number,
  folder: string,
) {
  const results = [];
  for (const processes of PROCESSES) {
    await using redis = await startRedis({ appendfsync: 'always' });
    await using server = await startSluice({
      dataDir: join(folder, `processes-${processes}`),
      engines: [engine.url],
      redisUrl: redis.url,
      env: { WORKER_PROCESSES: String(processes) },
    });
    await untilWorking(server, processes);
    const client = new Redis(redis.url);
    const rounds: Round[] = [];
    for (let n = 0; n < ROUNDS; n += 1) rounds.push(await runRound(server, client, input, lines));
    client.disconnect();
    results.push({
      processes,
      lines_per_second_sending: Math.round(median(rounds.map((each) => each.sendingPerSecond))),
      lines_per_second: Math.round(median(rounds.map((each) => each.perSecond))),
      worker_cpu_us_per_line: round(median(rounds.map((each) => each.cpuMicroseconds)), 1),
      redis_commands_per_line: round(median(rounds.map((each) => each.commands)), 4),
    });
  }
  return results;
}

async function runRound(
  server: Sluice,
  redis: Redis,
  input: string,
  lines: number,
): Promise<Round> {
  const fileId = await createRunClient(server.url).upload(input);
  const [cpu, commands] = [await workerCpu(server), await commandsOf(redis)];
  const times = await runTimedJob({ url: server.url, fileId, redis });
  return {
    sendingPerSecond: lines / times.sending,
    perSecond: lines / times.total,
    cpuMicroseconds: (((await workerCpu(server)) - cpu) / lines) * 1e6,
    commands: ((await commandsOf(redis)) - commands) / lines,
  };
}

async function workerCpu(server: Sluice): Promise<number> {
  let sum = 0;
  for (const pid of workerPids(server)) sum += await cpuOfProcess(pid);
  return sum;
}

/** How much of what an engine could do at most is used where each answer takes a second: lines in flight are all. */
export async function measureSlowEngine(
  engine: VllmProcess,
  inputOf: (lines: number) => Promise<string>,
  folder: string,
) {
  await engine.setConfig({ latency_ms: 1_000 });
  const results = [];
  try {
    await using redis = await startRedis({ appendfsync: 'always' });
    await using server = await startSluice({
      dataDir: join(folder, 'slow'),
      engines: [engine.url],
      redisUrl: redis.url,
      env: { MAX_BATCH_LINES: '1000000' },
    });
    const client = new Redis(redis.url);
    for (const window of WINDOWS) {
      const lines = window * SECONDS;
      const fileId = await createRunClient(server.url).upload(await inputOf(lines));
      const times = await runTimedJob({
        url: server.url,
        fileId,
        redis: client,
        client: { max_concurrency: window, adaptive_concurrency: false },
      });
      const perSecond = lines / times.sending;
      results.push({
        in_flight: window,
        lines_per_second: Math.round(perSecond),
        of_ideal: round(perSecond / window, 3),
      });
    }
    client.disconnect();
  } finally {
    await engine.setConfig({ latency_ms: 0 });
  }
  return results;
}
