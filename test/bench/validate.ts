import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const LINES = 200_000;
const ROUNDS = 3;
const part = fileURLToPath(new URL('validate-part.ts', import.meta.url));

interface Measured {
  count: number;
  seconds: number;
  cpuSeconds: number;
  peakMiB: number;
}

/**
 * The validation of lines of 1 kB, against reading, splitting and parsing alone, in the same run, in turns: the best
 * of three. With `--ids N` the check for duplicates among so many custom_ids instead.
 */
export async function benchValidate({
  json,
  ids,
}: {
  json: boolean;
  ids: number | null;
}): Promise<void> {
  if (ids !== null) {
    const { seconds, peakMiB } = await measure('ids', String(ids));
    const result = { bench: 'ids', ids, seconds: round(seconds, 1), peak_memory_mib: peakMiB };
    if (json) console.log(JSON.stringify(result));
    else console.log(`${ids} custom_ids: ${result.seconds} s, ${peakMiB} MiB at most`);
    return;
  }
  const folder = await mkdtemp(join(tmpdir(), 'sluice-bench-'));
  try {
    const file = join(folder, 'input.jsonl');
    await writeInput(file);
    const { size } = await stat(file);
    const raw: Measured[] = [];
    const validate: Measured[] = [];
    for (let round = 0; round < ROUNDS; round += 1) {
      raw.push(await measure('raw', file));
      validate.push(await measure('validate', file));
    }
    report(best(raw), best(validate), size, json);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

function report(raw: Measured, validate: Measured, bytes: number, json: boolean): void {
  const [ceiling, rate] = [raw, validate].map(({ seconds }) => bytes / 1e6 / seconds);
  const result = {
    bench: 'validate',
    lines: LINES,
    mb: round(bytes / 1e6, 1),
    mb_per_second: round(rate ?? 0, 1),
    lines_per_second: Math.round(LINES / validate.seconds),
    /** Above one, V8 collects and parses on other cores meanwhile. */
    cores: round(validate.cpuSeconds / validate.seconds, 2),
    peak_memory_mib: validate.peakMiB,
    raw_mb_per_second: round(ceiling ?? 0, 1),
    ratio: round((rate ?? 0) / (ceiling ?? 1), 3),
  };
  if (json) {
    console.log(JSON.stringify(result));
    return;
  }
  console.log(`validation      ${result.mb_per_second} MB/s, ${result.lines_per_second} lines/s`);
  console.log(`cores           ${result.cores}`);
  console.log(`memory, peak    ${result.peak_memory_mib} MiB`);
  console.log(`raw             ${result.raw_mb_per_second} MB/s (read, split, parse)`);
  console.log(`ratio           ${result.ratio}`);
}

async function measure(name: string, what: string): Promise<Measured> {
  const { stdout } = await promisify(execFile)(process.execPath, [part, name, what]);
  return JSON.parse(stdout) as Measured; // validate-part.ts wrote it
}

function best(runs: readonly Measured[]): Measured {
  const [first] = runs.toSorted((a, b) => a.seconds - b.seconds);
  if (first === undefined) throw new Error('nothing was measured');
  return first;
}

function round(value: number, digits: number): number {
  return Number(value.toFixed(digits));
}

/** Lines of 1 kB, all different. */
async function writeInput(file: string): Promise<void> {
  const filler = 'lorem ipsum dolor sit amet consectetur '.repeat(24);
  const output = createWriteStream(file);
  for (let n = 0; n < LINES; n += 1) {
    const content = `${n} ${filler}`.slice(0, 820);
    const body = { model: 'sim-model', messages: [{ role: 'user', content }], max_tokens: 16 };
    const head = { custom_id: `line-${n}`, method: 'POST', url: '/v1/chat/completions' };
    if (!output.write(`${JSON.stringify({ ...head, body })}\n`)) await once(output, 'drain');
  }
  output.end();
  await once(output, 'close');
}
