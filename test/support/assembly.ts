import { PassThrough, Readable } from 'node:stream';
import { errorOnlyLine, outputLine, requestId } from '../../src/dispatcher/answer-lines.ts';
import type { Answer, AssemblySource } from '../../src/dispatcher/contract.ts';
import type { AcceptedShard, PartRange } from '../../src/domain/segment.ts';
import { encodeSegment } from './encode-segment.ts';

/** How a made-up job's line went: answered into a file by a segment, or not at all. */
export interface MadeLine {
  customId: string;
  kind: Answer['kind'] | 'undone';
  /** The segment that has it. */
  segment: number;
  size: number;
}

export interface MadeJob {
  jobId: string;
  input: Buffer;
  shards: AcceptedShard[];
  segments: Map<string, Buffer>;
  /** What the two files must hold. */
  output: string;
  error: string;
}

export const UNDONE = { code: 'batch_cancelled', message: 'The batch was cancelled.' };

function answerOf(jobId: string, index: number, line: MadeLine): Buffer {
  const pieces = outputLine({
    id: requestId(jobId, index),
    customId: Buffer.from(JSON.stringify(line.customId)),
    status: line.kind === 'output' ? 200 : 400,
    requestId: `engine-${index}`,
    body: Buffer.from(JSON.stringify({ text: 'x'.repeat(line.size) })),
  });
  return Buffer.from(pieces.join(''));
}

function finishedLine(jobId: string, index: number, line: MadeLine): Buffer {
  if (line.kind !== 'undone') return answerOf(jobId, index, line);
  const customId = Buffer.from(JSON.stringify(line.customId));
  return errorOnlyLine({ id: requestId(jobId, index), customId, ...UNDONE });
}

/** The job's input with blank lines and CRLF here and there, and where each line begins and ends. */
function makeInput(lines: readonly MadeLine[]): { input: Buffer; starts: number[] } {
  const starts: number[] = [0];
  let text = '';
  for (const [index, { customId }] of lines.entries()) {
    text += `${JSON.stringify({ custom_id: customId, body: { n: index } })}${index % 3 === 0 ? '\r\n' : '\n'}`;
    if (index % 4 === 0) text += '  \n';
    starts.push(Buffer.byteLength(text));
  }
  return { input: Buffer.from(text), starts };
}

/** Lays lines out as a run would have: cut into shards, answers stored in the segments that the lines name. */
export function makeJob(lines: readonly MadeLine[], shardLines: number): MadeJob {
  const jobId = 'job_made';
  const { input, starts } = makeInput(lines);
  const shards: AcceptedShard[] = [];
  const parts: PartRange[][] = [];
  for (let first = 0; first < lines.length; first += shardLines) {
    const count = Math.min(shardLines, lines.length - first);
    const [offset = 0, end = 0] = [starts[first], starts[first + count]];
    const plan = { n: shards.length, first, lines: count, offset, bytes: end - offset };
    const done = Buffer.alloc(Math.ceil(count / 8));
    const own: PartRange[] = [];
    shards.push({ plan, done, bad: null, parts: own });
    parts.push(own);
  }
  const segments = new Map<string, Buffer>();
  for (const name of new Set(lines.map(({ segment }) => segment))) {
    const answers: Answer[][] = shards.map(() => []);
    for (const [index, line] of lines.entries()) {
      if (line.segment !== name || line.kind === 'undone') continue;
      const n = Math.floor(index / shardLines);
      const at = index % shardLines;
      answers[n]?.push({ line: at, kind: line.kind, bytes: answerOf(jobId, index, line) });
      const done = shards[n]?.done;
      done?.writeUInt8(done.readUInt8(at >> 3) | (1 << (at & 7)), at >> 3);
    }
    const groups = answers.map((list, shard) => ({
      shard,
      answers: list.toReversed(),
    }));
    const encoded = encodeSegment(groups);
    segments.set(`seg_${name}`, Buffer.concat(encoded.bytes));
    for (const { shard, offset, length, crc } of encoded.parts) {
      parts[shard]?.push({ segment: `seg_${name}`, offset, length, crc });
    }
  }
  const files = { output: '', error: '' };
  for (const [index, line] of lines.entries()) {
    files[line.kind === 'output' ? 'output' : 'error'] += finishedLine(
      jobId,
      index,
      line,
    ).toString();
  }
  return { jobId, input, shards, segments, ...files };
}

/** A source over a made job; `opened` counts streams. */
export function sourceOf(
  job: MadeJob,
): AssemblySource & { opened: { parts: number; input: number } } {
  const opened = { parts: 0, input: 0 };
  return {
    opened,
    shards: Readable.from(job.shards),
    openPart({ segment, offset, length }) {
      opened.parts += 1;
      const bytes = job.segments.get(segment)?.subarray(offset, offset + length);
      return Promise.resolve(Readable.from(bytes === undefined ? [] : [bytes]));
    },
    openInput({ start, end }) {
      opened.input += 1;
      return Promise.resolve(Readable.from([job.input.subarray(start, end)]));
    },
  };
}

/** Two streams and what was written to them. */
export function collectingSinks() {
  const output = new PassThrough();
  const error = new PassThrough();
  async function text(stream: PassThrough): Promise<string> {
    const chunks: Buffer[] = [];
    for await (const chunk of stream as AsyncIterable<Buffer>) chunks.push(chunk);
    return Buffer.concat(chunks).toString();
  }
  const files = Promise.allSettled([text(output), text(error)]);
  return { sinks: { output, error }, files };
}
