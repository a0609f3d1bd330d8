import { permanent } from '../../domain/errors.ts';
import { partsOfLine } from '../../domain/answer-line.ts';
import type { AnswerParts } from '../../domain/answer-line.ts';
import { lineBatches, requestLines } from './lines.ts';

/** One finished line on its way into another form. */
export interface Item {
  answer: AnswerParts;
  /** Its line of the input; null: that one is no JSON, or nobody asked for it. */
  request: Buffer | null;
}

/**
 * The lines of an output or error file, each with its line of the input where one is given. Both are read once, side by
 * side: they are in the order of the input, so that memory does not grow with either.
 * Ends with `input.changed` (Permanent) where the two do not belong together.
 */
export async function* itemsOf(
  answers: AsyncIterable<Uint8Array>,
  input: AsyncIterable<Uint8Array> | null,
): AsyncGenerator<Item[]> {
  const requests = input === null ? null : new Requests(input);
  try {
    for await (const lines of lineBatches(answers)) {
      const items: Item[] = [];
      for (const line of lines) {
        const answer = partsOfLine(line);
        items.push({ answer, request: (await requests?.of(answer)) ?? null });
      }
      yield items;
    }
  } finally {
    await requests?.close();
  }
}

/** Finds requests by their index, which only ever grows. */
class Requests {
  readonly #lines: AsyncGenerator<Buffer>;
  #next = 0;

  constructor(input: AsyncIterable<Uint8Array>) {
    this.#lines = requestLines(input);
  }

  /** The line of the input that an answer is of; null where it is no JSON, as in a lenient batch. */
  async of({ index, customId }: AnswerParts): Promise<Buffer | null> {
    for (;;) {
      const found = await this.#lines.next();
      if (found.done === true) throw changed();
      this.#next += 1;
      if (this.#next <= index) continue;
      if (this.#next > index + 1) throw changed();
      const parsed = parsedOrUndefined(found.value);
      // What bears another id is not the request that was answered.
      if (idOf(parsed) !== parsedOrUndefined(customId)) throw changed();
      return parsed === undefined ? null : found.value;
    }
  }

  async close(): Promise<void> {
    await this.#lines.return(undefined);
  }
}

function idOf(parsed: unknown): unknown {
  const isObject = typeof parsed === 'object' && parsed !== null && 'custom_id' in parsed;
  return isObject && typeof parsed.custom_id === 'string' ? parsed.custom_id : null;
}

function parsedOrUndefined(line: Buffer): unknown {
  try {
    return JSON.parse(line.toString());
  } catch {
    return undefined; // a bad line of a lenient batch is no exception here
  }
}

function changed() {
  return permanent('input.changed', 'the input file is not the one that was answered');
}
