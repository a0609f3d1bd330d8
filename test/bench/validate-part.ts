import { createReadStream } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname } from 'node:path';
import { readLines } from '../../src/dispatcher/lines.ts';
import { createUniqueIds } from '../../src/dispatcher/unique-ids.ts';
import { planInput } from '../../src/main/plan-input.ts';

/** What storage reads at once. */
const CHUNK_BYTES = 256 * 1024;
const MAX_LINE_BYTES = 10 * 1024 * 1024;

/** `node validate-part.ts raw|validate FILE` or `ids COUNT`: one measurement in a process of its own, as JSON. */
const PARTS: Record<string, (what: string) => Promise<number>> = {
  raw: readRaw,
  validate,
  ids: checkIds,
};

const [part = '', what = ''] = process.argv.slice(2);
const before = process.cpuUsage();
const begun = performance.now();
const count = await PARTS[part]?.(what);
const seconds = (performance.now() - begun) / 1_000;
const { user, system } = process.cpuUsage(before);
const cpuSeconds = (user + system) / 1_000_000;
const peakMiB = Math.round(process.resourceUsage().maxRSS / 1_024);
console.log(JSON.stringify({ count, seconds, cpuSeconds, peakMiB }));

/** The ceiling: no validation that parses can be faster. */
async function readRaw(file: string): Promise<number> {
  const source = createReadStream(file, { highWaterMark: CHUNK_BYTES });
  let lines = 0;
  for await (const batch of readLines(source, { maxLineBytes: MAX_LINE_BYTES })) {
    for (const { bytes } of batch) {
      JSON.parse(bytes?.toString('latin1') ?? 'null');
      lines += 1;
    }
  }
  return lines;
}

async function validate(file: string): Promise<number> {
  const limits = { dataDir: dirname(file), maxBatchLines: 1e9, maxLineBytes: MAX_LINE_BYTES };
  const source = createReadStream(file, { highWaterMark: CHUNK_BYTES });
  const { lines, total } = await planInput(limits, source, {
    endpoint: '/v1/chat/completions',
    pinnedModel: null,
    cut: { lines: 1_000, bytes: 8 * 1024 * 1024 },
    onShards: () => Promise.resolve(),
    onBadLines: null,
    signal: new AbortController().signal,
  });
  if (total > 0) throw new Error(`the bench's input has ${total} problems`);
  return lines;
}

/** So many distinct custom_ids and one that is there twice. */
async function checkIds(text: string): Promise<number> {
  const ids = createUniqueIds({ directory: tmpdir() });
  const last = Number(text);
  try {
    for (let n = 1; n <= last; n += 1) {
      const spilling = ids.add(`request-${n}`, n);
      if (spilling !== undefined) await spilling;
    }
    await ids.add('request-7', last + 1);
    const { lines, total } = await ids.duplicates(100);
    const isFound = total === 1 && lines[0]?.first === 7 && lines[0].number === last + 1;
    if (!isFound) throw new Error(`found ${JSON.stringify({ lines, total })}`);
    return last;
  } finally {
    await ids.close();
  }
}
