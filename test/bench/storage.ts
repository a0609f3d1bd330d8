import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { createRunClient } from '../../src/main/run-client.ts';
import { startRedis } from '../support/redis.ts';
import { startSluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import { logged, untilWorking } from '../support/worker-processes.ts';
import { chatInput } from './chat-input.ts';
import { openBenchStore, startCountingProxy, storeEnvironment } from './storage-world.ts';
import type { BenchStore, CountedPut, CountingProxy } from './storage-world.ts';
import { cpuOfProcess, round, runTimedJob } from './timed-job.ts';
import type { JobTimes } from './timed-job.ts';
import { peakMemory, pieces, sendForm } from './uploads.ts';

/** With what is around it, an answer has 12 kB. */
const ANSWER_TOKENS = 1_380;
const ANSWER_BYTES = 12_200;
/** Segments and output lie side by side. */
const STORE_FACTOR = 2.1;
const PROMPT_CHARACTERS = 40;
const SLOW_LINES = 3_000;
const SLOW_PER_SECOND = 100;
const SAMPLE_MS = 250;
const SHOWN_SAMPLES = 12;
const MIB = 1024 ** 2;

const BARS = { puts: 200, readySeconds: 2, leastGapMs: 2_000, uploadMiB: 250 } as const;

interface Options {
  json: boolean;
  lines: number;
  /** Such as `5GiB`; 0 for none. */
  upload: string;
}

interface MemorySample {
  seconds: number;
  mib: number;
  /** That it has used until then, seconds. */
  cpu: number;
}

interface JobRun {
  times: JobTimes;
  puts: CountedPut[];
  gets: number;
  memory: MemorySample[];
}

interface World {
  url: string;
  workerPid: number;
  redis: Redis;
  proxy: CountingProxy;
  folder: string;
}

/**
 * Jobs whose files lie in a bucket, behind a proxy that counts: 50,000 lines with answers of 12 kB as fast as they go,
 * then 3,000 at 100 a second; and one file of `upload` bytes through the API into the bucket, past the proxy.
 */
export async function benchStorage({ json, lines, upload }: Options): Promise<void> {
  const bytes = sizeOf(upload);
  const folder = await mkdtemp(join(tmpdir(), 'sluice-bench-'));
  try {
    await using store = await openBenchStore();
    const refusal = store.refusal(bytes) ?? store.refusal(lines * ANSWER_BYTES * STORE_FACTOR);
    if (refusal !== null) {
      console.log(json ? JSON.stringify({ skipped: refusal }) : refusal);
      return;
    }
    const jobs = await measureJobs(store, lines, folder);
    const uploaded = bytes === 0 ? null : await measureUpload(store, bytes, folder);
    const result = { bench: 'storage', store: store.name, ...jobs, upload: uploaded };
    if (json) console.log(JSON.stringify(result));
    else show(result);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

const UNITS: Record<string, number> = { '': 1, KiB: 1024, MiB: MIB, GiB: 1024 * MIB };

function sizeOf(text: string): number {
  const [, count, unit = ''] = /^(\d+)([KMG]iB)?$/.exec(text) ?? [];
  if (count === undefined) throw new Error('--upload takes a size such as 512MiB or 5GiB');
  return Number(count) * (UNITS[unit] ?? 1);
}

async function measureJobs(store: BenchStore, lines: number, folder: string) {
  const flags = [
    '--profile',
    'zero',
    '--set',
    'log=off',
    '--set',
    `answer_tokens=${ANSWER_TOKENS}`,
  ];
  await using engine = await startVllmProcess({ flags });
  await using server = await startRedis({ appendfsync: 'always' });
  await using proxy = await startCountingProxy(store.endpoint);
  await using sluice = await startSluice({
    dataDir: join(folder, 'jobs'),
    engines: [engine.url],
    redisUrl: server.url,
    env: { ...storeEnvironment(store, proxy.url), WORKER_PROCESSES: '1' },
  });
  await untilWorking(sluice, 1);
  const workerPid = Number(logged(sluice, 'worker process is up')[0]?.['pid']);
  const redis = new Redis(server.url);
  try {
    const world = { url: sluice.url, workerPid, redis, proxy, folder };
    const fast = await runJob(world, lines, {});
    const slowLines = Math.min(lines, SLOW_LINES);
    const slow = await runJob(world, slowLines, { requests_per_second: SLOW_PER_SECOND });
    return { fast: describeFast(fast, lines), slow: describeSlow(slow, slowLines) };
  } finally {
    redis.disconnect();
  }
}

async function runJob(world: World, lines: number, client: Record<string, unknown>) {
  const { url, workerPid, redis, proxy, folder } = world;
  const path = join(folder, 'input.jsonl');
  await writeFile(path, chatInput(lines, PROMPT_CHARACTERS).replaceAll(',"max_tokens":16', ''));
  const fileId = await createRunClient(url).upload(path);
  proxy.takePuts();
  proxy.takeGets();
  const memory: MemorySample[] = [];
  const begun = performance.now();
  const sampling = setInterval(() => {
    const seconds = (performance.now() - begun) / 1_000;
    void sampleOf(workerPid, seconds).then((sample) => memory.push(sample));
  }, SAMPLE_MS);
  try {
    const times = await runTimedJob({ url, fileId, redis, client });
    return { times, puts: proxy.takePuts(), gets: proxy.takeGets(), memory };
  } finally {
    clearInterval(sampling);
  }
}

async function sampleOf(pid: number, seconds: number): Promise<MemorySample> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
  const mib = Math.round(Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1] ?? 0) / 1_024);
  return { seconds, mib, cpu: await cpuOfProcess(pid) };
}

function describeFast({ times, puts, gets, memory }: JobRun, lines: number) {
  const operations: Record<string, number> = {};
  for (const { operation, isSegment } of puts) {
    const name = `${isSegment ? 'segments' : 'files'}.${operation}`;
    operations[name] = (operations[name] ?? 0) + 1;
  }
  const sent = times.planning + times.sending;
  const half = memory.filter(({ seconds }) => seconds < times.planning + times.sending / 2);
  const rest = memory.filter(({ seconds }) => seconds >= times.planning + times.sending / 2);
  const assembly = rest.filter(({ seconds }) => seconds >= sent);
  const cpu = (assembly.at(-1)?.cpu ?? 0) - (assembly[0]?.cpu ?? 0);
  return {
    lines,
    puts: puts.length,
    operations,
    gets,
    lines_per_second_sending: Math.round(lines / times.sending),
    lines_per_second: Math.round(lines / times.total),
    ready_seconds_after_last_line: round(times.assembly, 2),
    worker_peak_first_half_mib: peakOf(half),
    worker_peak_second_half_mib: peakOf(rest.filter(({ seconds }) => seconds < sent)),
    worker_peak_assembly_mib: peakOf(assembly),
    worker_cpu_seconds_assembly: round(cpu, 1),
    worker_memory: thinned(memory),
    within_bars: puts.length <= BARS.puts && times.assembly <= BARS.readySeconds,
  };
}

function peakOf(memory: readonly MemorySample[]): number {
  return Math.max(0, ...memory.map(({ mib }) => mib));
}

function thinned(memory: readonly MemorySample[]) {
  const step = Math.max(1, Math.ceil(memory.length / SHOWN_SAMPLES));
  const shown = memory.filter((_sample, n) => n % step === 0);
  return shown.map(({ seconds, mib }) => ({ seconds: round(seconds, 1), mib }));
}

/** Of the segments, since the output is written once. */
function describeSlow({ times, puts }: JobRun, lines: number) {
  const at = puts.filter(({ isSegment }) => isSegment).map((put) => put.at);
  // The last segment is written at once, since nothing more comes.
  const gaps = at.slice(1, -1).map((time, n) => time - (at[n] ?? 0));
  return {
    lines,
    lines_per_second: Math.round(lines / times.sending),
    puts: puts.length,
    segment_puts: at.length,
    least_gap_seconds: gaps.length === 0 ? null : round(Math.min(...gaps) / 1_000, 2),
    within_bar: gaps.every((ms) => ms >= BARS.leastGapMs),
  };
}

async function measureUpload(store: BenchStore, bytes: number, folder: string) {
  await using redis = await startRedis();
  await using sluice = await startSluice({
    dataDir: join(folder, 'upload'),
    redisUrl: redis.url,
    roles: ['api'],
    env: {
      ...storeEnvironment({ ...store, prefix: `${store.prefix}upload/` }, store.endpoint),
      MAX_FILE_BYTES: String(bytes),
      MAX_BATCH_FILE_BYTES: String(bytes),
    },
  });
  const idle = await peakMemory(sluice.pid);
  const begun = performance.now();
  const id = await sendForm(`${sluice.url}/v1/files`, 'file', pieces(0, bytes));
  const seconds = (performance.now() - begun) / 1_000;
  const peak = await peakMemory(sluice.pid);
  await fetch(`${sluice.url}/v1/files/${id}`, { method: 'DELETE' });
  return {
    mib: Math.round(bytes / MIB),
    seconds: round(seconds, 1),
    mib_per_second: round(bytes / MIB / seconds, 1),
    api_memory_before_mib: idle,
    api_peak_memory_mib: peak,
    within_bar: peak > 0 && peak <= BARS.uploadMiB,
  };
}

interface Result {
  store: string;
  fast: ReturnType<typeof describeFast>;
  slow: ReturnType<typeof describeSlow>;
  upload: Awaited<ReturnType<typeof measureUpload>> | null;
}

function show({ store, fast, slow, upload }: Result): void {
  console.log(`store           ${store}`);
  console.log(
    `PUTs            ${fast.puts} for ${fast.lines} lines (bar: ${BARS.puts} for 50,000)`,
  );
  for (const [name, count] of Object.entries(fast.operations)) console.log(`  ${name} ${count}`);
  console.log(`GETs            ${fast.gets}`);
  console.log(
    `lines/s         ${fast.lines_per_second_sending} while sending, ${fast.lines_per_second} from POST to completed`,
  );
  console.log(
    `output ready    ${fast.ready_seconds_after_last_line} s after the last line (bar: ${BARS.readySeconds}), ${fast.worker_cpu_seconds_assembly} s of them computing`,
  );
  console.log(
    `worker memory   at most ${fast.worker_peak_first_half_mib} MiB in the first half, ${fast.worker_peak_second_half_mib} in the second, ${fast.worker_peak_assembly_mib} while the output was written`,
  );
  for (const { seconds, mib } of fast.worker_memory) console.log(`  ${seconds} s: ${mib} MiB`);
  console.log(
    `at ${slow.lines_per_second} lines/s   ${slow.segment_puts} PUTs of segments, never two within ${slow.least_gap_seconds ?? '-'} s (bar: ${BARS.leastGapMs / 1_000}); ${slow.puts} PUTs in all`,
  );
  if (upload === null) return;
  console.log(
    `upload          ${upload.mib} MiB at ${upload.mib_per_second} MiB/s; API memory at most ${upload.api_peak_memory_mib} MiB (bar: ${BARS.uploadMiB}), ${upload.api_memory_before_mib} before`,
  );
}
