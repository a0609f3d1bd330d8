import { PassThrough, Readable, Writable } from 'node:stream';
import type { Answer, AssemblySinks, AssemblySource } from '../src/dispatcher/contract.ts';
import { transient } from '../src/domain/errors.ts';
import { inputKey, segmentKey } from '../src/domain/file.ts';
import type { JobRecord } from '../src/domain/job.ts';
import { isSet, setBit } from '../src/domain/segment.ts';
import type { AcceptedShard, PartRange } from '../src/domain/segment.ts';
import type { Storage } from '../src/storage/contract.ts';
import type { Shards } from '../src/store/shards.ts';

export interface PartialDeps {
  store: { shards: Pick<Shards, 'accepted'> };
  storage: Pick<Storage, 'get'>;
  assemble(
    source: AssemblySource,
    sinks: AssemblySinks,
    options: { jobId: string; undone: () => null; aheadBytes: number },
  ): Promise<unknown>;
  readEntries(stream: AsyncIterable<Uint8Array>, part: PartRange): AsyncIterable<Answer>;
}

export interface PartialWish {
  kind: 'output' | 'error';
  /** `input`: merged into the order of the input; `committed`: shard by shard, within each as it was committed. */
  order: 'input' | 'committed';
}

const BUFFER_BYTES = 256 * 1024;

/**
 * The finished lines that a job has so far, each as its final file will have it. Every shard is read once, so that a
 * job that runs on meanwhile makes it neither repeat nor change a line. The stream is destroyed with an error, never
 * just ended, when something that was committed cannot be read; destroying it ends all work for it.
 */
export function openPartial(job: JobRecord, wish: PartialWish, deps: PartialDeps): Readable {
  if (wish.order === 'input') return merged(job, wish.kind, deps);
  const options = { objectMode: false, highWaterMark: BUFFER_BYTES };
  return Readable.from(asCommitted(job, wish.kind, deps), options);
}

function merged(job: JobRecord, kind: PartialWish['kind'], deps: PartialDeps): Readable {
  const wanted = new PassThrough({ highWaterMark: BUFFER_BYTES });
  const other = new Writable({ write: (_chunk, _encoding, done) => done() });
  // The assembler looks at a sink only when it has a good deal to write, which may be long after its reader has gone.
  async function* whileRead(): AsyncIterable<AcceptedShard> {
    for await (const shard of answered(job, deps)) {
      if (wanted.destroyed) throw transient('partial.unread', 'nobody reads any more');
      yield shard;
    }
  }
  const source = {
    shards: whileRead(),
    openPart: (part: PartRange) => openPart(job, part, deps),
    openInput: (range: { start: number; end: number }) => deps.storage.get(inputKey(job), range),
  };
  const sinks =
    kind === 'output' ? { output: wanted, error: other } : { output: other, error: wanted };
  // Nothing is fetched ahead: whoever reads half-done output has time, and many may do it at once.
  const options = { jobId: job.id, undone: () => null, aheadBytes: 0 };
  const assembling = deps.assemble(source, sinks, options);
  // It has destroyed its sinks with the same error, where the reader meets it.
  assembling.catch(() => undefined);
  return wanted;
}

async function* asCommitted(
  job: JobRecord,
  kind: PartialWish['kind'],
  deps: PartialDeps,
): AsyncGenerator<Buffer> {
  let batch: Buffer[] = [];
  let bytes = 0;
  for await (const shard of answered(job, deps)) {
    for await (const answer of answersOf(job, shard, deps)) {
      if (answer.kind !== kind) continue;
      batch.push(answer.bytes);
      bytes += answer.bytes.length;
      if (bytes < BUFFER_BYTES) continue;
      yield Buffer.concat(batch, bytes);
      batch = [];
      bytes = 0;
    }
  }
  if (bytes > 0) yield Buffer.concat(batch, bytes);
}

async function* answersOf(
  job: JobRecord,
  shard: AcceptedShard,
  deps: PartialDeps,
): AsyncGenerator<Answer> {
  const seen = Buffer.alloc(shard.done.length);
  for (const part of shard.parts) {
    for await (const answer of deps.readEntries(await openPart(job, part, deps), part)) {
      // Where two parts have a line, the first counts, as in the final file.
      if (isSet(seen, answer.line)) continue;
      setBit(seen, answer.line);
      yield answer;
    }
  }
}

/** Shards of which nothing is answered yet need not be looked at. */
async function* answered(job: JobRecord, { store }: PartialDeps): AsyncGenerator<AcceptedShard> {
  for await (const shard of store.shards.accepted(job.id, 0, job.shards)) {
    if (shard.parts.length > 0) yield shard;
  }
}

function openPart(
  job: JobRecord,
  { segment, offset, length }: PartRange,
  { storage }: PartialDeps,
): Promise<Readable> {
  return storage.get(segmentKey(job.id, segment), { start: offset, end: offset + length });
}
