import { permanent, transient } from '../domain/errors.ts';
import { isSet } from '../domain/segment.ts';
import type { AcceptedShard } from '../domain/segment.ts';
import { errorOnlyLine, requestId } from './answer-lines.ts';
import { badLine } from './assemble.ts';
import type { AssemblyCounts, AssemblyOptions, Undone } from './assemble.ts';
import type { Answer, AssemblySinks } from './contract.ts';
import { scanRequest } from './json-scan.ts';
import { createLineWriter } from './line-writer.ts';
import { readLines } from './lines.ts';
import type { InputLine } from './lines.ts';
import { finishedLine, readRemoteAnswers } from './remote-answers.ts';
import type { RemoteAnswer } from './remote-answers.ts';

/** What another service has made of a job; each is opened once, and closed by whoever gave it. */
export interface RemoteResults {
  /** Which lines of the input are bad, and so were not sent there. */
  shards: AsyncIterable<Pick<AcceptedShard, 'plan' | 'bad'>>;
  /** The whole input. */
  openInput(): Promise<AsyncIterable<Uint8Array>>;
  /** Its two files; null: there is none. */
  openOutput(): Promise<AsyncIterable<Uint8Array> | null>;
  openError(): Promise<AsyncIterable<Uint8Array> | null>;
}

export interface RemoteAssemblyOptions extends Pick<
  AssemblyOptions,
  'jobId' | 'maxLineBytes' | 'onLine'
> {
  maxResponseBytes: number;
  /** What is to be said of lines that the service did not answer. */
  undone: Undone;
}

/** The answers are not in the order of the input, or not of this input, or there is one twice. */
const UNORDERED = 'remote.unordered';

/** A stream's items one at a time, with the next one in sight. */
interface Sight<T> {
  head: T | null;
  /** Goes on to the next one. */
  advance(): Promise<void>;
}

/**
 * Writes a job's two files of what another service has answered: every line of the input once, in its order, answered
 * ones as the service's files have them, the rest into the error file. Holds one line of each stream.
 * Both sinks must be read at the same time; they are ended on success and destroyed on failure.
 * Rejects with `remote.unordered` (Permanent) where the service's files have other lines than the input, or in another
 * order, `remote.bad_line` (Permanent) for a line that is no answer, `input.short` (Transient) for an input that ends
 * before its last planned line, and with the streams' own errors.
 */
export async function assembleRemote(
  results: RemoteResults,
  sinks: AssemblySinks,
  options: RemoteAssemblyOptions,
): Promise<AssemblyCounts> {
  const writers = { output: createLineWriter(sinks.output), error: createLineWriter(sinks.error) };
  const counts = { output: 0, error: 0, undone: 0 };
  const opened: AsyncGenerator[] = [];
  function see<T>(batches: AsyncGenerator<T[]>): Promise<Sight<T>> {
    opened.push(batches);
    return firstSight(batches);
  }
  async function write(kind: Answer['kind'], bytes: Buffer): Promise<void> {
    options.onLine?.(kind, bytes);
    const pause = writers[kind].write(bytes);
    if (pause !== undefined) await pause;
  }
  try {
    const { maxLineBytes, maxResponseBytes } = options;
    const lines = await see(readLines(await results.openInput(), { maxLineBytes }));
    const answers = {
      output: await see(
        readRemoteAnswers((await results.openOutput()) ?? nothing(), maxResponseBytes),
      ),
      error: await see(
        readRemoteAnswers((await results.openError()) ?? nothing(), maxResponseBytes),
      ),
    };
    for await (const isBad of linesOf(results.shards)) {
      if (lines.head === null) throw tooShort();
      const { kind, bytes } = await finish(lines.head, isBad, answers, options);
      counts[kind] += 1;
      await write(kind === 'undone' ? 'error' : kind, bytes);
      await lines.advance();
    }
    for (const [kind, { head }] of Object.entries(answers))
      if (head !== null) throw unordered(kind);
    await Promise.all([writers.output.end(), writers.error.end()]);
    return counts;
  } catch (failure) {
    writers.output.destroy(failure);
    writers.error.destroy(failure);
    throw failure;
  } finally {
    // Whoever waits for bytes that never come must not hold up the end.
    await Promise.allSettled(opened.map((each) => each.return(undefined)));
  }
}

/** The finished line for one of the input's, and where it goes. */
async function finish(
  line: InputLine,
  isBad: boolean,
  answers: Record<Answer['kind'], Sight<RemoteAnswer>>,
  { jobId, undone, maxLineBytes }: RemoteAssemblyOptions,
): Promise<{ kind: Answer['kind'] | 'undone'; bytes: Buffer }> {
  const id = requestId(jobId, line.index);
  if (isBad) {
    return { kind: 'undone', bytes: errorOnlyLine({ id, ...badLine(line, undone, maxLineBytes) }) };
  }
  const customId = line.bytes === null ? null : (scanRequest(line.bytes)?.customId ?? null);
  if (customId === null) {
    throw permanent('input.changed', `line ${line.number} of the input file has changed`);
  }
  const text = String(JSON.parse(customId.toString('utf8')));
  for (const kind of ['output', 'error'] as const) {
    const { head } = answers[kind];
    if (head === null || head.customId !== text) continue;
    const bytes = finishedLine(head, id, customId);
    await answers[kind].advance();
    return { kind, bytes };
  }
  const { code, message } = undone;
  return { kind: 'undone', bytes: errorOnlyLine({ id, customId, code, message }) };
}

/** Of each line of the job in turn, whether it is bad. */
async function* linesOf(shards: RemoteResults['shards']): AsyncGenerator<boolean> {
  for await (const { plan, bad } of shards) {
    for (let line = 0; line < plan.lines; line += 1) yield bad !== null && isSet(bad, line);
  }
}

async function firstSight<T>(batches: AsyncGenerator<T[]>): Promise<Sight<T>> {
  let batch: readonly T[] = [];
  let at = 0;
  const sight: Sight<T> = {
    head: null,
    async advance() {
      at += 1;
      while (at >= batch.length) {
        const next = await batches.next();
        if (next.done === true) {
          sight.head = null;
          return;
        }
        batch = next.value;
        at = 0;
      }
      sight.head = batch[at] ?? null;
    },
  };
  await sight.advance();
  return sight;
}

async function* nothing(): AsyncGenerator<Uint8Array> {}

function tooShort() {
  return transient('input.short', 'The input file in storage is shorter than it was.');
}

function unordered(kind: string) {
  return permanent(
    UNORDERED,
    `the remote ${kind} file has lines that the input does not have, or not there, or not twice`,
  );
}
