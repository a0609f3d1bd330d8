import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { createRunClient } from '../../src/main/run-client.ts';
import { startRedis } from '../support/redis.ts';
import { startSluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

const REQUESTS_PER_SECOND = 200;
const TOKENS_PER_MINUTE = 240_000;
const LINES = 40_000;
/** The time that is measured, after one in which both processes begin. */
const WINDOW_MS = 60_000;
const WARM_UP_MS = 3_000;

interface Measured {
  limit: number;
  /** Of the same unit as the limit, over the whole window. */
  measured: number;
  offByPercent: number;
  /** The most that a second of it saw, as a share of what the limit lets through in a second. */
  busiestSecond: number;
}

/**
 * Two worker processes under one limit of their job over a minute, of requests and of tokens, as the engine's own log
 * counts them.
 */
export async function benchLimits({ json }: { json: boolean }): Promise<void> {
  const requests = await measure({ requests_per_second: REQUESTS_PER_SECOND }, (at) => {
    return judge(at, 1, REQUESTS_PER_SECOND, WINDOW_MS / 1_000);
  });
  const tokens = await measure({ tokens_per_minute: TOKENS_PER_MINUTE }, (at, each) => {
    return judge(at, each, TOKENS_PER_MINUTE, WINDOW_MS / 60_000);
  });
  if (json) {
    console.log(JSON.stringify({ bench: 'limits', processes: 2, seconds: 60, requests, tokens }));
    return;
  }
  say('requests per second', requests);
  say('tokens per minute', tokens);
}

function say(name: string, { limit, measured, offByPercent, busiestSecond }: Measured): void {
  const off = `${offByPercent > 0 ? '+' : ''}${offByPercent} %`;
  const peak = `busiest second ${busiestSecond} of the limit`;
  console.log(`${name.padEnd(20)} ${measured} under a limit of ${limit} (${off}), ${peak}`);
}

/** `units` is what each request counts, `spans` how often the limit fits in the window. */
function judge(times: readonly number[], units: number, limit: number, spans: number): Measured {
  const from = (times[0] ?? 0) + WARM_UP_MS;
  const bySecond = new Map<number, number>();
  let count = 0;
  for (const at of times) {
    if (at < from || at >= from + WINDOW_MS) continue;
    count += 1;
    const second = Math.floor((at - from) / 1_000);
    bySecond.set(second, (bySecond.get(second) ?? 0) + 1);
  }
  const measured = (count * units) / spans;
  const aSecond = (limit * spans * 1_000) / WINDOW_MS;
  return {
    limit,
    measured: Math.round(measured * 10) / 10,
    offByPercent: Math.round((measured / limit - 1) * 10_000) / 100,
    busiestSecond: Math.round((Math.max(0, ...bySecond.values()) * units * 100) / aSecond) / 100,
  };
}

async function measure(
  client: Record<string, number>,
  judgeTimes: (times: readonly number[], tokensEach: number) => Measured,
): Promise<Measured> {
  const folder = await mkdtemp(join(tmpdir(), 'sluice-bench-'));
  await using redis = await startRedis();
  await using engine = await startVllmProcess({
    flags: ['--profile', 'zero', '--set', 'log=full'],
  });
  const shared = { dataDir: join(folder, 'data'), redisUrl: redis.url, engines: [engine.url] };
  try {
    await using server = await startSluice(shared);
    await using other = await startSluice({ ...shared, roles: ['worker'], queues: ['dispatch'] });
    const input = join(folder, 'input.jsonl');
    await writeInput(input);
    const run = createRunClient(server.url);
    const batch = { endpoint: '/v1/chat/completions', completion_window: '24h' };
    const file = await run.upload(input);
    await run.submit({ ...batch, input_file_id: file, aibrix: { client } });
    while ((await engine.counts()).requests === 0) await sleep(20);
    await sleep(WARM_UP_MS + WINDOW_MS + 500);
    const times = (await engine.requests()).map(({ at }) => at).toSorted((a, b) => a - b);
    const each = await tokensEach(engine);
    await Promise.all([other.kill(), server.kill()]);
    return judgeTimes(times, each);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Every line takes as many as the others: the bodies are of one length. */
async function tokensEach({ url }: VllmProcess): Promise<number> {
  const answer = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: bodyOf(0),
  });
  const { usage } = (await answer.json()) as { usage: { total_tokens: number } };
  return usage.total_tokens;
}

function bodyOf(n: number): string {
  const content = `Question ${String(n).padStart(6, '0')}`;
  return JSON.stringify({
    model: 'sim-model',
    messages: [{ role: 'user', content }],
    max_tokens: 16,
  });
}

async function writeInput(path: string): Promise<void> {
  const head = '"method":"POST","url":"/v1/chat/completions"';
  const lines = Array.from({ length: LINES }, (_, n) => {
    return `{"custom_id":"line-${n}",${head},"body":${bodyOf(n)}}\n`;
  });
  await writeFile(path, lines.join(''));
}
