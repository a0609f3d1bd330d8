import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { createRunClient } from '../../src/main/run-client.ts';
import { loadProfile } from '../simulators/vllm/profile.ts';
import { makeFolder, startSluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

const PROFILES = ['knee', 'decades', 'no-metrics'] as const;
const FIXED = [16, 32, 64, 128, 256, 512] as const;
/** The most that the window may take; a job may ask for more, but no profile here is better for it. */
const MOST = 1_024;
/** Until a limit that stands still shows what it does. */
const WARM_MS = 8_000;
const FIXED_MS = 15_000;
/** What the window has to find its limit in, and how long it is then compared. */
const START_MS = 60_000;
const ADAPTIVE_MS = 30_000;
/** An engine this much slower, for so long; and after that, so long to get back. */
const SLOWER = 4;
const SLOW_MS = 20_000;
const BACK_MS = 10_000;
/** More than any run here can take: the job is cut off with its server. */
const LINES = 150_000;

interface Counted {
  tokens: number;
  answers: number;
  refused: number;
  at: number;
}

interface Span {
  tokens_per_second: number;
  answers_per_second: number;
  /** Share of the requests that got 429 or 5xx. */
  refused: number;
}

interface Result {
  profile: string;
  fixed: (Span & { window: number })[];
  best_window: number;
  adaptive: Span & { in_flight: number };
  /** From the first request on. */
  start: Span;
  /** After the engine was slower for a while and then as quick as before. */
  recovered: Span;
  ratio: number;
  start_ratio: number;
  recovered_ratio: number;
  refused: number;
}

/**
 * The adaptive window against windows that stand still, each in a server of its own before a simulated engine of its
 * own: what the engine generates per second is read from the engine, not from the server.
 */
export async function benchWindow({
  json,
  profiles,
}: {
  json: boolean;
  profiles: readonly string[];
}): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'sluice-bench-'));
  try {
    const input = join(folder, 'input.jsonl');
    await writeInput(input);
    const results: Result[] = [];
    for (const profile of profiles.length > 0 ? profiles : PROFILES) {
      results.push(await compare(profile, input, json));
    }
    if (json) console.log(JSON.stringify({ bench: 'window', results }));
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function compare(profile: string, input: string, json: boolean): Promise<Result> {
  function say(text: string): void {
    if (!json) console.log(`${profile}: ${text}`);
  }
  const fixed: Result['fixed'] = [];
  for (const window of FIXED) {
    const client = { adaptive_concurrency: false, max_concurrency: window };
    await withJob({ profile, input, client }, async (engine) => {
      await sleep(WARM_MS);
      fixed.push({ window, ...(await measure(engine, FIXED_MS)) });
    });
    say(`${window} in flight: ${show(fixed.at(-1))}`);
  }
  const best = fixed.toSorted((a, b) => b.tokens_per_second - a.tokens_per_second)[0];
  const top = best?.tokens_per_second ?? 1;
  const { adaptive, start, recovered, refused } = await runAdaptive(profile, input);
  const result = {
    profile,
    fixed,
    best_window: best?.window ?? 0,
    adaptive,
    start,
    recovered,
    ratio: round(adaptive.tokens_per_second / top),
    start_ratio: round(start.tokens_per_second / top),
    recovered_ratio: round(recovered.tokens_per_second / top),
    refused,
  };
  say(`adaptive, after ${START_MS / 1_000} s: ${show(adaptive)}, ${adaptive.in_flight} in flight`);
  say(
    `${result.ratio} of the best (${result.best_window} in flight); ${result.start_ratio} over the first ` +
      `${START_MS / 1_000} s; ${result.recovered_ratio} after ${SLOW_MS / 1_000} s at a quarter of the ` +
      `speed; ${(100 * refused).toFixed(2)} % refused`,
  );
  return result;
}

async function runAdaptive(
  profile: string,
  input: string,
): Promise<Pick<Result, 'adaptive' | 'start' | 'recovered' | 'refused'>> {
  const { speed } = await loadProfile(profile);
  const client = { max_concurrency: MOST };
  return withJob({ profile, input, client }, async (engine) => {
    const begun = await count(engine);
    const start = await measure(engine, START_MS);
    const adaptive = await measure(engine, ADAPTIVE_MS);
    const { in_flight: inFlight } = await engine.counts();
    await engine.setConfig({ speed: speed / SLOWER });
    await sleep(SLOW_MS);
    await engine.setConfig({ speed });
    await sleep(BACK_MS);
    const recovered = await measure(engine, ADAPTIVE_MS);
    const { refused } = between(begun, await count(engine));
    return { start, adaptive: { ...adaptive, in_flight: inFlight }, recovered, refused };
  });
}

interface Job {
  profile: string;
  input: string;
  client: Record<string, unknown>;
}

/** Runs `work` while the lines of a job of its own are sent; then all of it is stopped. */
async function withJob<T>(job: Job, work: (engine: VllmProcess) => Promise<T>): Promise<T> {
  await using data = await makeFolder();
  await using engine = await startVllmProcess({
    flags: ['--profile', job.profile, '--set', 'log=counts'],
  });
  await using server = await startSluice({
    dataDir: data.path,
    engines: [engine.url],
    env: { MAX_BATCH_LINES: String(LINES) },
  });
  const client = createRunClient(server.url);
  const id = await client.submit({
    input_file_id: await client.upload(job.input),
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    aibrix: { client: job.client },
  });
  while ((await engine.counts()).requests === 0) {
    const state = (await client.job(id))?.status;
    if (state === 'failed') throw new Error('the job of the bench failed before its first line');
    await sleep(20);
  }
  const result = await work(engine);
  await server.kill();
  return result;
}

async function count(engine: VllmProcess): Promise<Counted> {
  const { generated_tokens: tokens, by_status: byStatus } = await engine.counts();
  let refused = 0;
  for (const [status, times] of Object.entries(byStatus)) {
    if (status === '429' || status.startsWith('5')) refused += times;
  }
  return { tokens, answers: byStatus['200'] ?? 0, refused, at: performance.now() };
}

async function measure(engine: VllmProcess, ms: number): Promise<Span> {
  const before = await count(engine);
  await sleep(ms);
  return between(before, await count(engine));
}

function between(before: Counted, after: Counted): Span {
  const seconds = (after.at - before.at) / 1_000;
  const answers = after.answers - before.answers;
  const refused = after.refused - before.refused;
  return {
    tokens_per_second: Math.round((after.tokens - before.tokens) / seconds),
    answers_per_second: Math.round(answers / seconds),
    refused: refused === 0 ? 0 : refused / (refused + answers),
  };
}

function show(span: Span | undefined): string {
  return span === undefined
    ? '-'
    : `${span.tokens_per_second} tokens/s, ${span.answers_per_second} answers/s`;
}

function round(value: number): number {
  return Number(value.toFixed(3));
}

/** Lines that name no length: the profile says how long answers are. */
async function writeInput(path: string): Promise<void> {
  const file = createWriteStream(path);
  const filler = 'lorem ipsum dolor sit amet '.repeat(6);
  for (let n = 0; n < LINES; n += 1) {
    const messages = [{ role: 'user', content: `${n} ${filler}` }];
    const body = { model: 'sim-model', messages };
    const line = { custom_id: `line-${n}`, method: 'POST', url: '/v1/chat/completions', body };
    if (!file.write(`${JSON.stringify(line)}\n`)) await once(file, 'drain');
  }
  file.end();
  await once(file, 'close');
}
