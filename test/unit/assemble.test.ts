import { PassThrough, Readable, Writable } from 'node:stream';
import { setImmediate as nextTurn } from 'node:timers/promises';
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { assemble } from '../../src/dispatcher/assemble.ts';
import type { AssemblyOptions } from '../../src/dispatcher/assemble.ts';
import type { AssemblySource } from '../../src/dispatcher/contract.ts';
import type { PartRange } from '../../src/domain/segment.ts';
import { notFound, permanent } from '../../src/domain/errors.ts';
import { collectingSinks, makeJob, sourceOf, UNDONE } from '../support/assembly.ts';
import type { MadeJob, MadeLine } from '../support/assembly.ts';
import { encodeSegment } from '../support/encode-segment.ts';

const OPTIONS = { jobId: 'job_made', maxLineBytes: 10_000, undone: () => UNDONE };

async function run(source: AssemblySource) {
  const { sinks, files } = collectingSinks();
  const counts = await assemble(source, sinks, OPTIONS);
  const [output, error] = await files;
  return { counts, output, error };
}

function idsOf(file: PromiseSettledResult<string>): unknown[] {
  const lines = file.status === 'fulfilled' ? file.value.split('\n').slice(0, -1) : [];
  return lines.map((line) => (JSON.parse(line) as { custom_id: string }).custom_id);
}

/** What an assembly that must fail rejects with. */
async function failure(source: AssemblySource): Promise<unknown> {
  const { sinks } = collectingSinks();
  return assemble(source, sinks, OPTIONS).then(
    () => 'nothing failed',
    (error: unknown) => error,
  );
}

function done(count: number, change: Partial<MadeLine> = {}): MadeLine[] {
  return Array.from({ length: count }, (_, n) => ({
    customId: `c${n}`,
    kind: 'output',
    segment: n % 2,
    size: 10,
    ...change,
  }));
}

/** The job with one of its shard's records changed. */
function changed(job: MadeJob, change: Partial<MadeJob['shards'][number]>): MadeJob {
  const [first, ...rest] = job.shards;
  if (first === undefined) throw new Error('the job has no shard');
  return { ...job, shards: [{ ...first, ...change }, ...rest] };
}

const LINE = fc.record({
  customId: fc.string({ unit: 'grapheme', maxLength: 5 }),
  kind: fc.constantFrom('output', 'error', 'undone'),
  segment: fc.nat(6),
  size: fc.oneof(fc.nat(50), fc.nat(40_000)),
});

describe('assemble', () => {
  test('puts every line in its file once, in input order, the same each time', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array<MadeLine>(LINE, { maxLength: 60 }),
        fc.integer({ min: 1, max: 20 }),
        async (lines, shardLines) => {
          const job = makeJob(lines, shardLines);
          const first = await run(sourceOf(job));
          expect(first).toEqual({
            counts: {
              output: lines.filter(({ kind }) => kind === 'output').length,
              error: lines.filter(({ kind }) => kind === 'error').length,
              undone: lines.filter(({ kind }) => kind === 'undone').length,
            },
            output: { status: 'fulfilled', value: job.output },
            error: { status: 'fulfilled', value: job.error },
          });
          expect(await run(sourceOf(job))).toEqual(first);
        },
      ),
      { numRuns: 150 },
    );
  });

  test('leaves undone lines out of a job that runs, and needs no input for it', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array<MadeLine>(LINE, { maxLength: 60 }),
        fc.integer({ min: 1, max: 20 }),
        async (lines, shardLines) => {
          const job = makeJob(lines, shardLines);
          const whole = makeJob(
            lines.filter(({ kind }) => kind !== 'undone'),
            1,
          );
          const source = sourceOf(job);
          const { sinks, files } = collectingSinks();
          await assemble(source, sinks, { ...OPTIONS, undone: () => null, aheadBytes: 0 });
          const [output, error] = await files;
          expect(idsOf(output)).toEqual(idsOf({ status: 'fulfilled', value: whole.output }));
          expect(output).toEqual({ status: 'fulfilled', value: job.output });
          expect(idsOf(error)).toEqual(idsOf({ status: 'fulfilled', value: whole.error }));
          expect(source.opened.input).toBe(0);
        },
      ),
      { numRuns: 100 },
    );
  });

  test('opens the input only for shards with undone lines', async () => {
    const lines = done(30);
    const answered = sourceOf(makeJob(lines, 10));
    await run(answered);
    expect(answered.opened.input).toBe(0);
    const last = lines.map((line, n) => (n === 29 ? { ...line, kind: 'undone' as const } : line));
    const one = sourceOf(makeJob(last, 10));
    expect((await run(one)).counts.undone).toBe(1);
    expect(one.opened.input).toBe(1);
  });

  test('reads many parts with few streams open, in windows', async () => {
    const lines = done(1_000).map((line, n) => ({ ...line, segment: n % 300, size: 20_000 }));
    const job = makeJob(lines, 1_000);
    const inner = sourceOf(job);
    let [open, most] = [0, 0];
    const source: AssemblySource = {
      ...inner,
      async openPart(part: PartRange) {
        open += 1;
        most = Math.max(most, open);
        const stream = await inner.openPart(part);
        stream.once('close', () => (open -= 1));
        return stream;
      },
    };
    const { output } = await run(source);
    expect(output).toEqual({ status: 'fulfilled', value: job.output });
    expect(most).toBeLessThanOrEqual(16);
    expect(inner.opened.parts).toBeGreaterThan(600);
  });

  test('the part that was accepted first has a line that two have', async () => {
    const job = makeJob(done(6, { segment: 0 }), 6);
    const again = encodeSegment([
      {
        shard: 0,
        answers: [0, 2, 4].map((line) => ({ line, kind: 'error', bytes: Buffer.from('twice\n') })),
      },
    ]);
    job.segments.set('seg_again', Buffer.concat(again.bytes));
    const [part] = again.parts;
    const [first] = job.shards[0]?.parts ?? [];
    if (part === undefined || first === undefined) throw new Error('a part is missing');
    const { offset, length, crc } = part;
    const second = { segment: 'seg_again', offset, length, crc };
    const later = await run(sourceOf(changed(job, { parts: [first, second] })));
    expect(later.counts).toEqual({ output: 6, error: 0, undone: 0 });
    const sooner = await run(sourceOf(changed(job, { parts: [second, first] })));
    expect(sooner.counts).toEqual({ output: 3, error: 3, undone: 0 });
    expect(sooner.error).toEqual({ status: 'fulfilled', value: 'twice\n'.repeat(3) });
  });

  test('fetches a few shards ahead, and nothing more after a failure', async () => {
    const job = makeJob(done(400), 10);
    expect((await run(sourceOf(job))).output).toEqual({ status: 'fulfilled', value: job.output });
    const inner = sourceOf(job);
    const source: AssemblySource = {
      ...inner,
      async openPart(part: PartRange) {
        const stream = await inner.openPart(part);
        await nextTurn();
        if (inner.opened.parts > 4) throw new Error('the store is gone');
        return stream;
      },
    };
    expect(await failure(source)).toMatchObject({ message: 'the store is gone' });
    expect(inner.opened.parts).toBeLessThan(25);
    const opened = inner.opened.parts;
    await nextTurn();
    expect(inner.opened.parts).toBe(opened);
  });

  test('waits for slow readers', async () => {
    const job = makeJob(done(3_000, { size: 1_000 }), 1_000);
    let held = 0;
    let most = 0;
    const slow = new Writable({
      highWaterMark: 1,
      write(chunk: Buffer, _encoding, next) {
        held += chunk.length;
        most = Math.max(most, held, slow.writableLength);
        setImmediate(() => {
          held -= chunk.length;
          next();
        });
      },
    });
    await assemble(sourceOf(job), { output: slow, error: new PassThrough() }, OPTIONS);
    expect(slow.writableFinished).toBe(true);
    expect(most).toBeLessThan(400_000);
  });
});

describe('assemble refuses', () => {
  const job = makeJob(done(10), 10);
  const undone = makeJob(done(10, { kind: 'undone' }), 10);

  test('a line that is recorded as answered and is in no part', async () => {
    const parts = job.shards[0]?.parts.slice(0, 1) ?? [];
    expect(await failure(sourceOf(changed(job, { parts })))).toMatchObject({
      kind: 'Permanent',
      code: 'segment.damaged',
      message: 'line 1 of shard 0 is recorded as answered, but no segment has it',
    });
  });

  test('a line that a part has and that is not recorded as answered', async () => {
    expect(await failure(sourceOf(changed(job, { done: Buffer.of(0xff) })))).toMatchObject({
      code: 'segment.damaged',
      message: expect.stringMatching(/^segment seg_0, bytes 0 to .* has line 8 of shard 0/),
    });
  });

  test('a part with lines that the shard does not have', async () => {
    const plan = { n: 0, first: 0, lines: 5, offset: 0, bytes: 100 };
    expect(await failure(sourceOf(changed(job, { plan })))).toMatchObject({
      code: 'segment.damaged',
      message: expect.stringContaining('has line 5 of 5'),
    });
  });

  test('a part whose segment is gone, and destroys both files', async () => {
    const source = {
      ...sourceOf(job),
      openPart: () => Promise.reject(notFound('storage.not_found', 'gone')),
    };
    const { sinks, files } = collectingSinks();
    await expect(assemble(source, sinks, OPTIONS)).rejects.toMatchObject({
      kind: 'Permanent',
      code: 'segment.damaged',
      message: expect.stringContaining('is missing'),
    });
    expect((await files).map(({ status }) => status)).toEqual(['rejected', 'rejected']);
  });

  test('a segment that is shorter or longer than its parts', async () => {
    const short = new Map(job.segments).set('seg_1', Buffer.alloc(3));
    expect(await failure(sourceOf({ ...job, segments: short }))).toMatchObject({
      code: 'segment.damaged',
    });
    const whole = {
      ...sourceOf(job),
      openPart: () => Promise.resolve(Readable.from([Buffer.alloc(100_000), Buffer.alloc(9)])),
    };
    expect(await failure(whole)).toMatchObject({ code: 'segment.damaged' });
  });

  test.for([
    [
      'has no such line any more',
      (input: Buffer) => input.subarray(0, input.indexOf('\n') + 1),
      'has lost lines',
    ],
    ['has a longer line', (input: Buffer) => Buffer.alloc(input.length, 'x'), 'has changed'],
    [
      'has something else',
      (input: Buffer) => Buffer.concat([Buffer.from('{}\n'), input]),
      'has changed',
    ],
  ] as const)('an input that %s', async ([, change, message]) => {
    const source = sourceOf({ ...undone, input: change(undone.input) });
    const { sinks } = collectingSinks();
    const options = { ...OPTIONS, maxLineBytes: 100 };
    await expect(assemble(source, sinks, options)).rejects.toMatchObject({
      kind: 'Permanent',
      code: 'input.changed',
      message: expect.stringContaining(message),
    });
  });

  test('an input that was deleted', async () => {
    const openInput = () => Promise.reject(notFound('storage.not_found', 'gone'));
    expect(await failure({ ...sourceOf(undone), openInput })).toMatchObject({
      code: 'input.changed',
    });
  });

  test("nothing of the store's and the records' own errors", async () => {
    const openPart = () => Promise.reject(permanent('storage.not_readable', 'no'));
    expect(await failure({ ...sourceOf(job), openPart })).toMatchObject({
      code: 'storage.not_readable',
    });
    const shards = Readable.from(
      (function* () {
        yield* job.shards;
        throw new Error('redis');
      })(),
    );
    expect(await failure({ ...sourceOf(job), shards })).toMatchObject({ message: 'redis' });
  });
});

describe('assemble stops', () => {
  const job = makeJob(done(3_000, { size: 1_000 }), 1_000);

  test('when a file is closed while it waits for it', async () => {
    const output = new PassThrough();
    const assembling = assemble(sourceOf(job), { output, error: new PassThrough() }, OPTIONS);
    output.once('readable', () => output.destroy());
    await expect(assembling).rejects.toMatchObject({
      kind: 'Transient',
      code: 'assembly.sink_closed',
    });
  });

  test('when a file fails, with its error', async () => {
    const full = new Error('disk full');
    const output = new Writable({ write: (_chunk, _encoding, next) => next(full) });
    const sinks = { output, error: new PassThrough() };
    await expect(assemble(sourceOf(job), sinks, OPTIONS)).rejects.toBe(full);
    expect(sinks.error.destroyed).toBe(true);
  });

  test('with what was thrown, whatever that is', async () => {
    const odd: unknown = 'odd';
    const shards = {
      [Symbol.asyncIterator]: () => ({ next: () => Promise.reject(odd) }),
    };
    const { sinks } = collectingSinks();
    await expect(assemble({ ...sourceOf(job), shards }, sinks, OPTIONS)).rejects.toBe('odd');
    expect(sinks.output.errored?.message).toBe('odd');
  });
});

describe('bad lines that nobody answered', () => {
  const good = '{"custom_id":"good","method":"POST","url":"/v1/score","body":{"model":"m"}}';
  const rows = [
    good,
    'nope',
    good,
    '{"custom_id":"x","method":"GET","url":"/v1/score","body":{}}',
    `{"custom_id":"long","x":"${'x'.repeat(10_000)}"}`,
  ];
  const input = Buffer.from(rows.join('\n'));
  const plan = { n: 0, first: 0, lines: rows.length, offset: 0, bytes: input.length };
  const done = Buffer.from([0]);
  const job: MadeJob = {
    jobId: 'job_made',
    input,
    shards: [{ plan, done, bad: Buffer.from([0b11110]), parts: [] }],
    segments: new Map(),
    output: '',
    error: '',
  };

  async function errors(options: Partial<AssemblyOptions>) {
    const { sinks, files } = collectingSinks();
    await assemble(sourceOf(job), sinks, { ...OPTIONS, ...options });
    const [, error] = await files;
    const lines = error.status === 'fulfilled' ? error.value.trimEnd().split('\n') : [];
    return lines.map((line) => {
      const { custom_id: id, error: said } = JSON.parse(line);
      return [id, said.code];
    });
  }

  test('are like the others where the job was stopped, under the custom_id that they have', async () => {
    expect(await errors({})).toEqual([
      ['good', UNDONE.code],
      [null, UNDONE.code],
      ['good', UNDONE.code],
      ['x', UNDONE.code],
      [null, UNDONE.code],
    ]);
  });

  test('say what is wrong with them where rules are given', async () => {
    const rules = { endpoint: '/v1/score', models: ['m'], pinnedModel: null } as const;
    expect(await errors({ undone: () => ({ ...UNDONE, rules }) })).toEqual([
      ['good', UNDONE.code],
      [null, 'invalid_json_line'],
      ['good', 'duplicate_custom_id'],
      ['x', 'invalid_method'],
      [null, 'line_too_long'],
    ]);
  });

  test('an unreadable line that planning did not mark is an input that has changed', async () => {
    const unmarked = changed(job, { bad: null });
    expect(await failure(sourceOf(unmarked))).toMatchObject({ code: 'input.changed' });
  });
});
