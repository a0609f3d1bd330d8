import { tmpdir } from 'node:os';
import { Readable, Writable } from 'node:stream';
import { expect, test } from 'vitest';
import { setBit } from '../../src/domain/segment.ts';
import { assembleRemotely } from '../../src/main/remote.ts';
import { collectingSinks } from '../support/assembly.ts';

const UNDONE = { code: 'batch_failed', message: 'This request was not answered.' };
const LIMITS = { dataDir: tmpdir(), maxLineBytes: 100_000, maxResponseBytes: 100_000 };
const SHARD_LINES = 3;
const assemble = assembleRemotely(LIMITS);

/** Files by the custom_ids of their lines. */
interface Made {
  input: readonly string[];
  output?: readonly string[];
  error?: readonly string[];
  /** Indexes of lines that were not sent. */
  bad?: readonly number[];
}

function requestLine(id: string): string {
  return `{"custom_id":${JSON.stringify(id)},"method":"POST","url":"/v1/x","body":{}}\n`;
}

/** As a service writes it that puts spaces, escapes and an order of its own into a line. */
function answered(id: string): string {
  const customId = JSON.stringify(id).replaceAll('ü', '\\u00fc');
  const body = '{"n": 12345678901234567890, "model": "m"}';
  const response = `{"status_code": 201, "request_id": "r-1", "body": ${body}}`;
  return `{"id": "c3a1f", "error": null, "response": ${response}, "custom_id": ${customId}}\n`;
}

function failed(id: string): string {
  const error = '{"code": "inference_failed", "message": "no"}';
  return `{"custom_id": ${JSON.stringify(id)}, "response": null, "error": ${error}}\n`;
}

async function* shardsOf(count: number, bad: readonly number[]) {
  for (let first = 0; first < count; first += SHARD_LINES) {
    const lines = Math.min(SHARD_LINES, count - first);
    const plan = { n: first / SHARD_LINES, first, lines, offset: 0, bytes: 0 };
    const own = bad.filter((index) => index >= first && index < first + lines);
    const marks = Buffer.alloc(1);
    for (const index of own) setBit(marks, index - first);
    yield { plan, bad: own.length === 0 ? null : marks };
  }
}

/** What comes of it: the numbers of lines, and both files. */
async function run({ input, output = [], error = [], bad = [] }: Made, { inOrder = true } = {}) {
  const { sinks, files } = collectingSinks();
  async function open(lines: readonly string[]) {
    return Readable.from([Buffer.from(lines.join(''))]);
  }
  const counts = await assemble(
    {
      shards: shardsOf(input.length, bad),
      openInput: () => open(input.map(requestLine)),
      openOutput: () => open(output.map(answered)),
      openError: () => open(error.map(failed)),
    },
    sinks,
    { jobId: 'job_x', undone: UNDONE, inOrder },
  );
  const [out, err] = await files;
  const text = (file: typeof out) => (file.status === 'fulfilled' ? file.value : 'broken');
  return { counts, output: text(out), error: text(err) };
}

function outputLine(index: number, id: string): string {
  const body = '{"n": 12345678901234567890, "model": "m"}';
  const response = `{"status_code":201,"request_id":"r-1","body":${body}}`;
  return `{"id":"batch_req_x_${index}","custom_id":${JSON.stringify(id)},"response":${response},"error":null}\n`;
}

function errorLine(index: number, id: string, code = 'inference_failed', message = 'no'): string {
  return `{"id":"batch_req_x_${index}","custom_id":${JSON.stringify(id)},"response":null,"error":${JSON.stringify({ code, message })}}\n`;
}

const IDS = ['a', 'b', 'zwölf "und" ü', 'd', 'e', 'f', 'g'];
const undone = (index: number) => errorLine(index, IDS[index] ?? '', UNDONE.code, UNDONE.message);

test('lines are laid out as ours, byte by byte in what the engine said, in the order of the input', async () => {
  const [a = '', b = '', c = '', d = '', e = '', f = '', g = ''] = IDS;
  const made = { input: IDS, output: [a, c, d, g], error: [b, e, f] };
  expect(await run(made)).toEqual({
    counts: { output: 4, error: 3, undone: 0 },
    output: [outputLine(0, a), outputLine(2, c), outputLine(3, d), outputLine(6, g)].join(''),
    error: [errorLine(1, b), errorLine(4, e), errorLine(5, f)].join(''),
  });
});

test('what the service has not answered, and what was not sent, stands in the error file', async () => {
  const [, b = '', c = ''] = IDS;
  const { counts, error } = await run({ input: IDS, output: [c], error: [b], bad: [3] });
  expect(counts).toEqual({ output: 1, error: 1, undone: 5 });
  expect(error).toBe([undone(0), errorLine(1, b), ...[3, 4, 5, 6].map(undone)].join(''));
});

test.for<[string, string[], string[]]>([
  ['another order', ['c', 'a', 'b'], []],
  ['a line twice in a file', ['a', 'a', 'b', 'c'], []],
  ['a line in both files', ['a', 'b', 'c'], ['b']],
])('%s is not in order; put in order, each line is there once', async ([, output, error]) => {
  const input = ['a', 'b', 'c'];
  await expect(run({ input, output, error })).rejects.toMatchObject({ code: 'remote.unordered' });
  const sorted = await run({ input, output, error }, { inOrder: false });
  expect(sorted.counts).toEqual({ output: 3, error: 0, undone: 0 });
  expect(sorted.output).toBe(input.map((id, index) => outputLine(index, id)).join(''));
});

test('put in order, lines that were not sent and such that are missing keep their place', async () => {
  const made = { input: ['a', 'b', 'c', 'd', 'e'], output: ['e', 'a'], error: ['c'], bad: [1] };
  const { output, error } = await run(made, { inOrder: false });
  expect(output).toBe([outputLine(0, 'a'), outputLine(4, 'e')].join(''));
  expect(error.split('\n').map((line) => /_(\d)"/.exec(line)?.[1])).toEqual([
    '1',
    '2',
    '3',
    undefined,
  ]);
});

test('results of another input are refused', async () => {
  const made = { input: ['a', 'b'], output: ['a', 'x'] };
  await expect(run(made)).rejects.toMatchObject({ code: 'remote.unordered' });
  await expect(run(made, { inOrder: false })).rejects.toMatchObject({ code: 'remote.foreign' });
});

test.for([
  ['no JSON', 'nonsense\n'],
  ['no custom_id', '{"response": null}\n'],
  ['neither response nor error', '{"custom_id": "a", "response": null, "error": null}\n'],
  ['no status', '{"custom_id": "a", "response": {"body": {}}, "error": null}\n'],
] as const)('a line with %s is refused', async ([, line]) => {
  const { sinks } = collectingSinks();
  const assembling = assemble(
    {
      shards: shardsOf(1, []),
      openInput: async () => Readable.from([Buffer.from(requestLine('a'))]),
      openOutput: async () => Readable.from([Buffer.from(line)]),
      openError: async () => null,
    },
    sinks,
    { jobId: 'job_x', undone: UNDONE, inOrder: true },
  );
  await expect(assembling).rejects.toMatchObject({ code: 'remote.bad_line', kind: 'Permanent' });
});

test('an input that is shorter than it was planned is waited for', async () => {
  const { sinks } = collectingSinks();
  const assembling = assemble(
    {
      shards: shardsOf(2, []),
      openInput: async () => Readable.from([Buffer.from(requestLine('a'))]),
      openOutput: async () => Readable.from([Buffer.from(answered('a'))]),
      openError: async () => null,
    },
    sinks,
    { jobId: 'job_x', undone: UNDONE, inOrder: true },
  );
  await expect(assembling).rejects.toMatchObject({ code: 'input.short', kind: 'Transient' });
});

test('results of any size go through a few MiB', async () => {
  const count = 60_000;
  let [read, written, most] = [0, 0, 0];
  async function* lines(make: (id: string) => string) {
    for (let first = 0; first < count; first += 100) {
      const some = Array.from({ length: 100 }, (_, n) =>
        make(`line-${first + n}`.padEnd(400, 'x')),
      );
      const bytes = Buffer.from(some.join(''));
      if (make === answered) read += bytes.length;
      most = Math.max(most, read - written);
      yield bytes;
    }
  }
  const sink = new Writable({
    highWaterMark: 64 * 1024,
    write(chunk: Buffer, _encoding, done) {
      written += chunk.length;
      setImmediate(done);
    },
  });
  const { sinks } = collectingSinks();
  const counts = await assemble(
    {
      shards: shardsOf(count, []),
      openInput: async () => Readable.from(lines(requestLine)),
      openOutput: async () => Readable.from(lines(answered)),
      openError: async () => null,
    },
    { output: sink, error: sinks.error },
    { jobId: 'job_x', undone: UNDONE, inOrder: true },
  );
  expect(counts.output).toBe(count);
  expect(written).toBeGreaterThan(30 * 2 ** 20);
  expect(most).toBeLessThan(6 * 2 ** 20);
});
