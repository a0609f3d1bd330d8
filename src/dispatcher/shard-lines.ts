import type { Readable } from 'node:stream';
import { transient } from '../domain/errors.ts';
import type { Endpoint } from '../domain/job.ts';
import type { ShardPlan } from '../domain/plan.ts';
import { isSet } from '../domain/segment.ts';
import type { Budget } from './budget.ts';
import type { Clock } from './clock.ts';
import { readLines } from './lines.ts';
import type { InputLine } from './lines.ts';
import { orderForCache } from './prefix-order.ts';

/** Lines are read until they are all there, but no longer: an engine that waits costs more than a worse order. */
const GATHER_MS = 25;
/** Of the memory, what lines may take only to be put in order. */
const SHARE_FOR_ORDER = 4;
const LINES_AT_ONCE = 64;

export interface ShardLinesDeps {
  maxLineBytes: number;
  budget: Budget;
  clock: Clock;
  openInput(key: string, range: { start: number; end: number }): Promise<Readable>;
}

interface Wanted {
  plan: ShardPlan;
  done: Buffer;
  inputKey: string;
  endpoint: Endpoint;
  /** They come as they stand in the input. */
  inOrder: boolean;
}

/**
 * The lines of a shard that have no answer, a few at a time: in the order in which a prefix cache serves them best where
 * there is memory for that, else as they are read.
 */
export async function* openLines(
  { plan, done, inputKey, endpoint, inOrder }: Wanted,
  { maxLineBytes, budget, clock, openInput }: ShardLinesDeps,
): AsyncGenerator<readonly InputLine[]> {
  const end = plan.offset + plan.bytes;
  const source = await openInput(inputKey, { start: plan.offset, end });
  const options = { maxLineBytes, startOffset: plan.offset, startIndex: plan.first };
  const batches = openOnly(readLines(whole(source, plan), options), plan, done);
  const hasRoom = (budget.used + plan.bytes) * SHARE_FOR_ORDER <= budget.limit;
  try {
    if (inOrder || !hasRoom || plan.lines <= 2) yield* batches;
    else yield* inBestOrder(batches, endpoint, budget, clock);
  } finally {
    source.destroy();
  }
}

async function* openOnly(
  batches: AsyncIterable<InputLine[]>,
  { first }: ShardPlan,
  done: Buffer,
): AsyncGenerator<readonly InputLine[]> {
  for await (const batch of batches) yield batch.filter(({ index }) => !isSet(done, index - first));
}

async function* inBestOrder(
  batches: AsyncIterable<readonly InputLine[]>,
  endpoint: Endpoint,
  budget: Budget,
  clock: Clock,
): AsyncGenerator<readonly InputLine[]> {
  let held = 0;
  try {
    for await (const lines of gather(batches, clock, (bytes) => {
      held += bytes;
      budget.add(bytes);
    })) {
      const ordered = orderForCache(lines, endpoint);
      for (let at = 0; at < ordered.length; at += LINES_AT_ONCE) {
        const some = ordered.slice(at, at + LINES_AT_ONCE);
        const bytes = bytesOf(some);
        // From here on who sends them counts them.
        held -= bytes;
        budget.remove(bytes);
        yield some;
      }
    }
  } finally {
    budget.remove(held);
  }
}

/** As many lines together as come within the time; those that were read before the source broke, too. */
async function* gather(
  batches: AsyncIterable<readonly InputLine[]>,
  clock: Clock,
  onBytes: (bytes: number) => void,
): AsyncGenerator<readonly InputLine[]> {
  const read = createReader(batches, clock);
  let lines: InputLine[] = [];
  let begun = clock.now();
  try {
    for (;;) {
      const found = await read(lines.length === 0 ? null : begun + GATHER_MS);
      if (found?.done === true) break;
      onBytes(bytesOf(found?.value ?? []));
      lines.push(...(found?.value ?? []));
      if (clock.now() - begun < GATHER_MS) continue;
      yield lines;
      lines = [];
      begun = clock.now();
    }
  } catch (error) {
    yield lines;
    throw error;
  }
  yield lines;
}

/** Reads them one by one. Who stops before the last has nothing to close but the source that they come from. */
function createReader(batches: AsyncIterable<readonly InputLine[]>, clock: Clock) {
  const source = batches[Symbol.asyncIterator]();
  let next: Promise<IteratorResult<readonly InputLine[]>> | null = null;
  /** Null where nothing comes until then (null: waits for it); what comes later is not lost. */
  return async (until: number | null) => {
    next ??= source.next();
    const found = until === null ? await next : await within(next, until, clock);
    if (found !== null) next = null;
    return found;
  };
}

/** Null where it takes longer than until then. */
async function within<T>(promise: Promise<T>, until: number, clock: Clock): Promise<T | null> {
  const late = Promise.withResolvers<null>();
  const cancel = clock.after(until - clock.now(), () => late.resolve(null));
  try {
    return await Promise.race([promise, late.promise]);
  } finally {
    cancel();
  }
}

function bytesOf(lines: readonly InputLine[]): number {
  let bytes = 0;
  for (const line of lines) bytes += line.bytes?.length ?? 0;
  return bytes;
}

/** The source to its planned end: where an input is still being copied back, its last line may be half of one. */
async function* whole(source: Readable, plan: ShardPlan): AsyncGenerator<Buffer> {
  let missing = plan.bytes;
  for await (const chunk of source as AsyncIterable<Buffer>) {
    missing -= chunk.length;
    yield chunk;
  }
  if (missing > 0) {
    throw transient('input.short', 'The input file in storage is shorter than it was.');
  }
}
