import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { setTimeout as sleep } from 'node:timers/promises';
import { measureFsync } from '../../src/main/redis-report.ts';
import { createRunClient } from '../../src/main/run-client.ts';
import { startSluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';
import { chatInput } from './chat-input.ts';
import { measureProcesses, measureSlowEngine } from './processes.ts';
import { median, round } from './timed-job.ts';

const LINES = 50_000;
const ROUNDS = 3;
const WINDOWS = [64, 256, 1_024] as const;
/** With more connections undici's pool, which looks through them all, is slower. */
const POOL_WINDOW = 64;
const SMALL_RUNS = 15;
/** Often enough to time a small batch, and not so often that a large one pays for it. */
const POLL_SMALL_MS = 5;
const POLL_MS = 50;
/** Above this share of a core the simulator is what is measured. */
const SATURATED = 0.95;

const rawClient = fileURLToPath(new URL('raw-client.ts', import.meta.url));

interface Sample {
  perSecond: number;
  /** Cores that the simulator used meanwhile. */
  simulatorCores: number;
}

interface Run extends Sample {
  /** The most that the server had resident from POST to completed, and before that, while it took the upload. */
  peakMiB: number;
  uploadMiB: number;
}

/**
 * 50,000 lines of 1 kB through the whole pipeline, from POST to completed, against the raw speed of the same HTTP client
 * with the same bodies, in the same run, in turns. Then 20 lines, again and again. Medians are printed.
 */
export async function benchDispatch({ json }: { json: boolean }): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'sluice-bench-'));
  try {
    await using simulator = await startVllmProcess({ flags: ['--profile', 'zero'] });
    const input = join(folder, 'input.jsonl');
    await writeFile(input, chatInput(LINES));
    const small = join(folder, 'small.jsonl');
    await writeFile(small, chatInput(20));
    await using server = await startSluice({
      dataDir: join(folder, 'data'),
      engines: [simulator.url],
    });
    const raw = new Map(WINDOWS.map((window) => [window, [] as Sample[]]));
    const pool: Sample[] = [];
    const pipeline: Run[] = [];
    for (let round = 0; round < ROUNDS; round += 1) {
      for (const window of WINDOWS) {
        raw.get(window)?.push(await runRaw(simulator, input, window));
        if (!json) console.log(`raw, ${window} in flight: ${show(raw.get(window)?.at(-1))}`);
      }
      pool.push(await runRaw(simulator, input, POOL_WINDOW, 'pool'));
      if (!json) console.log(`undici's pool, ${POOL_WINDOW} in flight: ${show(pool.at(-1))}`);
      pipeline.push(await runPipeline(simulator, server, input));
      if (!json) console.log(`pipeline: ${show(pipeline.at(-1))}`);
    }
    const latencies: number[] = [];
    for (let n = 0; n < SMALL_RUNS; n += 1) {
      const file = await createRunClient(server.url).upload(small);
      latencies.push((await submitAndWait(server.url, file, POLL_SMALL_MS)) * 1_000);
    }
    const fsyncMs = await measureFsync(folder);
    await server.stop();
    const processes = await measureProcesses(simulator, input, LINES, folder);
    const slow = await measureSlowEngine(
      simulator,
      async (lines) => {
        const path = join(folder, 'slow.jsonl');
        await writeFile(path, chatInput(lines, 100));
        return path;
      },
      folder,
    );
    report({ raw, pool, pipeline, latencies, fsyncMs, processes, slow }, json);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function runRaw(
  simulator: VllmProcess,
  input: string,
  window: number,
  kind: 'own' | 'pool' = 'own',
): Promise<Sample> {
  const before = await cpuOf(simulator);
  const begun = performance.now();
  const args = [rawClient, simulator.url, input, String(window), kind];
  const { stdout } = await promisify(execFile)(process.execPath, args);
  const { perSecond } = JSON.parse(stdout) as { perSecond: number }; // raw-client.ts wrote it
  const busy = LINES / perSecond;
  const elapsed = (performance.now() - begun) / 1_000;
  return {
    perSecond,
    simulatorCores: ((await cpuOf(simulator)) - before) / Math.min(busy, elapsed),
  };
}

async function runPipeline(
  simulator: VllmProcess,
  { url, pid }: { url: string; pid: number },
  input: string,
): Promise<Run> {
  const file = await createRunClient(url).upload(input);
  const uploadMiB = await peakMemory(pid);
  await forgetPeak(pid);
  const before = await cpuOf(simulator);
  const seconds = await submitAndWait(url, file, POLL_MS);
  const simulatorCores = ((await cpuOf(simulator)) - before) / seconds;
  return { perSecond: LINES / seconds, simulatorCores, peakMiB: await peakMemory(pid), uploadMiB };
}

/** Seconds from POST /v1/batches to completed. */
async function submitAndWait(url: string, file: string, everyMs: number): Promise<number> {
  const client = createRunClient(url);
  const begun = performance.now();
  const id = await client.submit({
    input_file_id: file,
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
  });
  for (;;) {
    const job = await client.job(id);
    if (job?.status === 'completed') return (performance.now() - begun) / 1_000;
    if (job?.status.endsWith('failed')) throw new Error(`the batch ended as ${job.status}`);
    await sleep(everyMs);
  }
}

function report(
  found: {
    raw: ReadonlyMap<number, Sample[]>;
    pool: readonly Sample[];
    pipeline: readonly Run[];
    latencies: readonly number[];
    fsyncMs: number;
    processes: Awaited<ReturnType<typeof measureProcesses>>;
    slow: Awaited<ReturnType<typeof measureSlowEngine>>;
  },
  json: boolean,
): void {
  const raw = [...found.raw].map(([inFlight, samples]) => ({
    in_flight: inFlight,
    ...summary(samples),
  }));
  const best = raw.toSorted((a, b) => b.lines_per_second - a.lines_per_second)[0];
  const pool = summary(found.pool);
  const pipeline = summary(found.pipeline);
  const result = {
    bench: 'dispatch',
    lines: LINES,
    rounds: ROUNDS,
    pipeline,
    raw,
    raw_best: best?.lines_per_second ?? 0,
    raw_pool: pool,
    ratio: round(pipeline.lines_per_second / (best?.lines_per_second ?? 1), 3),
    ratio_to_pool: round(pipeline.lines_per_second / pool.lines_per_second, 3),
    peak_memory_mib: Math.max(...found.pipeline.map(({ peakMiB }) => peakMiB)),
    peak_upload_mib: Math.max(...found.pipeline.map(({ uploadMiB }) => uploadMiB)),
    small_batch_ms: round(median(found.latencies), 1),
    small_batch_worst_ms: round(Math.max(...found.latencies), 1),
    fsync_ms: round(found.fsyncMs, 2),
    processes: found.processes.map((each) => ({
      ...each,
      ratio_sending: round(each.lines_per_second_sending / (best?.lines_per_second ?? 1), 3),
      ratio_sending_to_pool: round(each.lines_per_second_sending / pool.lines_per_second, 3),
    })),
    slow_engine: found.slow,
  };
  if (json) {
    console.log(JSON.stringify(result));
    return;
  }
  console.log(`\npipeline        ${pipeline.lines_per_second} lines/s${note(pipeline)}`);
  for (const each of raw) {
    console.log(
      `raw, ${String(each.in_flight).padEnd(10)} ${each.lines_per_second} lines/s${note(each)}`,
    );
  }
  console.log(`undici's pool   ${pool.lines_per_second} lines/s${note(pool)}`);
  console.log(
    `ratio           ${result.ratio} of the best raw run, ${result.ratio_to_pool} of undici's pool`,
  );
  console.log(
    `memory, peak    ${result.peak_memory_mib} MiB (${result.peak_upload_mib} MiB while it took the uploads)`,
  );
  console.log(
    `20 lines        ${result.small_batch_ms} ms median, ${result.small_batch_worst_ms} ms worst`,
  );
  console.log(`fsync           ${result.fsync_ms} ms`);
  for (const each of result.processes) {
    console.log(
      `${each.processes} worker(s)     ${each.lines_per_second_sending} lines/s while sending ` +
        `(${each.ratio_sending} of raw, ${each.ratio_sending_to_pool} of undici's pool), ${each.lines_per_second} in all, ` +
        `${each.worker_cpu_us_per_line} µs CPU and ${each.redis_commands_per_line} Redis commands a line`,
    );
  }
  for (const each of result.slow_engine) {
    console.log(`1 s, ${each.in_flight} in flight   ${each.of_ideal} of ideal`);
  }
}

function summary(samples: readonly Sample[]) {
  const cores = round(median(samples.map(({ simulatorCores }) => simulatorCores)), 2);
  return {
    lines_per_second: Math.round(median(samples.map(({ perSecond }) => perSecond))),
    simulator_cores: cores,
    simulator_saturated: cores >= SATURATED,
  };
}

function note({
  simulator_cores: cores,
  simulator_saturated: saturated,
}: ReturnType<typeof summary>): string {
  return ` (simulator ${cores} cores${saturated ? ': SATURATED, the simulator is the limit' : ''})`;
}

function show(sample: Sample | undefined): string {
  return sample === undefined ? '-' : `${Math.round(sample.perSecond)} lines/s`;
}

async function cpuOf(simulator: VllmProcess): Promise<number> {
  const { cpu_seconds: cpu } = await simulator.counts();
  return cpu.user + cpu.system;
}

/** VmHWM of Linux: the most that a process had resident. 0 where there is no /proc. */
async function peakMemory(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
  return Math.round(Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1] ?? 0) / 1_024);
}

/** Has Linux measure VmHWM anew. */
async function forgetPeak(pid: number): Promise<void> {
  await writeFile(`/proc/${pid}/clear_refs`, '5').catch(() => undefined);
}
