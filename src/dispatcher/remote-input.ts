import type { AcceptedShard } from '../domain/segment.ts';
import { readLines } from './lines.ts';
import type { InputLine } from './lines.ts';
import { badLines } from './select-lines.ts';

const NEWLINE = Buffer.from('\n');

/** The lines of an input that are requests, as they stand in it: those that shards have marked as bad are left out. */
export async function* goodLines(
  input: AsyncIterable<Uint8Array>,
  shards: AsyncIterable<Pick<AcceptedShard, 'plan' | 'bad'>>,
  maxLineBytes: number,
): AsyncGenerator<Uint8Array> {
  const marks = badLines(shards);
  async function piecesOf({ index, bytes }: InputLine): Promise<Uint8Array[]> {
    return bytes === null || (await marks.has(index)) ? [] : [bytes, NEWLINE];
  }
  try {
    for await (const lines of readLines(input, { maxLineBytes })) {
      const pieces: Uint8Array[] = [];
      for (const line of lines) pieces.push(...(await piecesOf(line)));
      if (pieces.length > 0) yield Buffer.concat(pieces);
    }
  } finally {
    await marks.close();
  }
}
