import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { mkdtemp, readFile, rm, stat, statfs, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import * as v from 'valibot';
import { createRunClient } from '../../src/main/run-client.ts';
import { jobIdOf } from '../../src/domain/job.ts';
import { jobKey, recordKey } from '../../src/store/keys.ts';
import { startRedis } from '../support/redis.ts';
import { startSluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

/** What a line takes on the disk at most: input, segment and output lie side by side. */
const DISK_PER_LINE = 1_600;
const POLL_MS = 100;
/** Shares of the lines at which memory is looked at. */
const MARKS = [0.1, 0.25, 0.5, 0.75, 1] as const;
const MIB = 1024 ** 2;

interface Sample {
  /** Share of the lines that are answered. */
  answered: number;
  serverMiB: number;
  redisMiB: number;
}

interface Measured {
  lines: number;
  inputBytes: number;
  outputBytes: number;
  uploadSeconds: number;
  planningSeconds: number;
  sendingSeconds: number;
  assemblySeconds: number;
  /** From POST to completed. */
  seconds: number;
  /** Before the job; then as it goes on. */
  idle: Sample;
  samples: Sample[];
  /** The most that the server had resident while it planned, sent, and wrote the output. */
  peaks: { planning: number; sending: number; assembly: number };
}

/**
 * One job of very many tiny lines through a server of its own, engine and Redis each in a process of theirs: how fast
 * it is planned, sent and written, and whether memory grows with it. Times are those of the job's own history.
 */
export async function benchScale({ json, lines }: { json: boolean; lines: number }): Promise<void> {
  if (!Number.isSafeInteger(lines) || lines < 1) throw new Error('--lines takes a whole number');
  const folder = await mkdtemp(join(tmpdir(), 'sluice-bench-'));
  try {
    const { bavail, bsize } = await statfs(folder);
    const [free, need] = [bavail * bsize, lines * DISK_PER_LINE];
    if (free < need) {
      const said = `${lines} lines do not fit: ${folder} has ${gb(free)} GB free, ${gb(need)} are needed.`;
      console.log(json ? JSON.stringify({ skipped: said }) : said);
      return;
    }
    const input = join(folder, 'input.jsonl');
    await writeInput(input, lines);
    report(await measure(folder, input, lines, json), json);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function measure(
  folder: string,
  input: string,
  lines: number,
  json: boolean,
): Promise<Measured> {
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero', '--set', 'log=off'] });
  await using redis = await startRedis({ appendfsync: 'always' });
  const { size: inputBytes } = await stat(input);
  const most = String(Math.max(inputBytes, MIB));
  await using server = await startSluice({
    dataDir: join(folder, 'data'),
    engines: [engine.url],
    redisUrl: redis.url,
    env: { MAX_FILE_BYTES: most, MAX_BATCH_FILE_BYTES: most, MAX_BATCH_LINES: String(lines) },
  });
  const client = new Redis(redis.url);
  try {
    const run = createRunClient(server.url);
    const begun = performance.now();
    const file = await run.upload(input);
    const uploadSeconds = (performance.now() - begun) / 1_000;
    const look = (answered: number) => takeSample(answered, server.pid, client);
    const idle = await look(0);
    await forgetPeak(server.pid);
    const endpoint = '/v1/chat/completions';
    const batch = await run.submit({ input_file_id: file, endpoint, completion_window: '24h' });
    const id = jobIdOf(batch) ?? '';
    await untilPlanned(client, id);
    const planning = await takePeak(server.pid);
    const samples = await follow(client, id, lines, look, json);
    const sending = await takePeak(server.pid);
    await untilCompleted(client, id);
    const peaks = { planning, sending, assembly: await takePeak(server.pid) };
    const times = await timesOf(client, id);
    const job = await run.job(batch);
    const outputBytes = await bytesOf(server.url, job?.output_dataset ?? '');
    const found = { lines, inputBytes, outputBytes, uploadSeconds, ...times };
    return { ...found, idle, samples, peaks };
  } finally {
    client.disconnect();
  }
}

async function untilPlanned(client: Redis, id: string): Promise<void> {
  while ((await stateOf(client, id)).state === 'queued') await sleep(POLL_MS / 4);
}

async function stateOf(client: Redis, id: string) {
  const fields = await client.hmget(recordKey(id), 'state', 'completed', 'failed', 'reason');
  const [state, completed, failed, reason] = fields;
  if (/^(failed|expired|cancelled)/.test(state ?? '')) throw new Error(`it ${state}: ${reason}`);
  return { state: state ?? '', answered: Number(completed ?? 0) + Number(failed ?? 0) };
}

/** Looks at memory at each mark; resolves when the last line is answered. */
async function follow(
  client: Redis,
  id: string,
  lines: number,
  look: (answered: number) => Promise<Sample>,
  json: boolean,
): Promise<Sample[]> {
  const marks: number[] = [...MARKS];
  const samples: Sample[] = [];
  for (;;) {
    const { answered } = await stateOf(client, id);
    if (answered / lines >= (marks[0] ?? Infinity)) {
      while (answered / lines >= (marks[0] ?? Infinity)) marks.shift();
      samples.push(await look(answered / lines));
      if (!json) console.log(show(samples.at(-1)));
    }
    if (marks.length === 0) return samples;
    await sleep(POLL_MS);
  }
}

async function untilCompleted(client: Redis, id: string): Promise<void> {
  while ((await stateOf(client, id)).state !== 'completed') await sleep(POLL_MS / 4);
}

/** From the job's history, which has the moment of every move. */
async function timesOf(client: Redis, id: string) {
  const entries = await client.xrange(jobKey(id, 'EVENTS'), '-', '+');
  const at = new Map(entries.map(([entry, [, state]]) => [state, Number(entry.split('-')[0])]));
  function seconds(from: string, to: string): number {
    return ((at.get(to) ?? Number.NaN) - (at.get(from) ?? Number.NaN)) / 1_000;
  }
  return {
    planningSeconds: seconds('queued', 'resource_preparing'),
    sendingSeconds: seconds('in_progress', 'finalizing'),
    assemblySeconds: seconds('finalizing', 'completed'),
    seconds: seconds('queued', 'completed'),
  };
}

async function takeSample(answered: number, pid: number, client: Redis): Promise<Sample> {
  const info = await client.info('memory');
  const used = Number(/used_memory:(\d+)/.exec(info)?.[1] ?? 0);
  return { answered, serverMiB: await memory(pid, 'VmRSS'), redisMiB: used / MIB };
}

/** What Linux says that a process has, or had at most, resident; 0 where there is no /proc. */
async function memory(pid: number, field: 'VmRSS' | 'VmHWM'): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
  return Number(new RegExp(`${field}:\\s+(\\d+) kB`).exec(status)?.[1] ?? 0) / 1_024;
}

/** The most that a process had since it was asked last. */
async function takePeak(pid: number): Promise<number> {
  const peak = await memory(pid, 'VmHWM');
  await forgetPeak(pid);
  return peak;
}

/** Has Linux measure VmHWM anew. */
async function forgetPeak(pid: number): Promise<void> {
  await writeFile(`/proc/${pid}/clear_refs`, '5').catch(() => undefined);
}

async function bytesOf(url: string, fileId: string): Promise<number> {
  const answer = await fetch(`${url}/v1/files/${fileId}`);
  return v.parse(v.object({ bytes: v.number() }), await answer.json()).bytes;
}

/** Lines as small as a request may be, all different. */
async function writeInput(path: string, lines: number): Promise<void> {
  const out = createWriteStream(path);
  let text = '';
  for (let n = 0; n < lines; n += 1) {
    text +=
      `{"custom_id":"l${n}","method":"POST","url":"/v1/chat/completions","body":` +
      `{"model":"sim-model","messages":[{"role":"user","content":"${n}"}],"max_tokens":1}}\n`;
    if (text.length < MIB && n < lines - 1) continue;
    if (!out.write(text)) await once(out, 'drain');
    text = '';
  }
  out.end();
  await once(out, 'close');
}

function report(found: Measured, json: boolean): void {
  const perSecond = (seconds: number) => Math.round(found.lines / seconds);
  const last = found.samples.at(-1);
  const redisMiB = (last?.redisMiB ?? 0) - found.idle.redisMiB;
  const result = {
    bench: 'scale',
    lines: found.lines,
    input_bytes: found.inputBytes,
    output_bytes: found.outputBytes,
    upload_seconds: round(found.uploadSeconds),
    planning_seconds: round(found.planningSeconds),
    sending_seconds: round(found.sendingSeconds),
    assembly_seconds: round(found.assemblySeconds),
    seconds: round(found.seconds),
    lines_per_second: perSecond(found.seconds),
    lines_per_second_sending: perSecond(found.sendingSeconds),
    assembly_mb_per_second: round(found.outputBytes / 1e6 / found.assemblySeconds),
    memory_idle_mib: Math.round(found.idle.serverMiB),
    memory: found.samples.map(({ answered, serverMiB, redisMiB: used }) => ({
      answered: round(answered),
      server_mib: Math.round(serverMiB),
      redis_mib: round(used),
    })),
    peak_planning_mib: Math.round(found.peaks.planning),
    peak_sending_mib: Math.round(found.peaks.sending),
    peak_assembly_mib: Math.round(found.peaks.assembly),
    redis_bytes_per_line: round((redisMiB * MIB) / found.lines),
  };
  if (json) {
    console.log(JSON.stringify(result));
    return;
  }
  console.log(`\n${found.lines} lines: ${result.lines_per_second} lines/s from POST to completed`);
  console.log(`upload          ${result.upload_seconds} s, ${gb(found.inputBytes)} GB`);
  console.log(
    `planning        ${result.planning_seconds} s, at most ${result.peak_planning_mib} MiB`,
  );
  console.log(
    `sending         ${result.sending_seconds} s, ${result.lines_per_second_sending} lines/s, ` +
      `at most ${result.peak_sending_mib} MiB`,
  );
  console.log(
    `last to output  ${result.assembly_seconds} s for ${gb(found.outputBytes)} GB, ` +
      `${result.assembly_mb_per_second} MB/s, at most ${result.peak_assembly_mib} MiB`,
  );
  console.log(`memory before   ${result.memory_idle_mib} MiB`);
  console.log(`Redis           ${result.redis_bytes_per_line} bytes a line`);
}

function show(sample: Sample | undefined): string {
  if (sample === undefined) return '-';
  const share = `${Math.round(sample.answered * 100)} %`.padEnd(6);
  return `${share} server ${Math.round(sample.serverMiB)} MiB, Redis ${round(sample.redisMiB)} MiB`;
}

function gb(bytes: number): string {
  return (bytes / 1e9).toFixed(2);
}

function round(value: number): number {
  return Number(value.toFixed(2));
}
