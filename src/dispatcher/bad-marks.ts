import type { BadLines, ShardPlan } from '../domain/plan.ts';
import { setBit } from '../domain/segment.ts';

const FIRST_BYTES = 1_024;
const PAGE = 200;

/** Remembers which lines of a job are bad, in one bit a line: 2.5 MB for 20 million. */
export interface BadMarks {
  /** Index of the line within the job. */
  add(index: number): void;
  /** Takes the shards as they are cut. */
  cut(shards: readonly ShardPlan[]): void;
  /** The shards that have bad lines, a page at a time, in order; `lines` are those of the job. */
  pages(lines: number): Generator<BadLines[]>;
}

export function createBadMarks(): BadMarks {
  let marks = Buffer.alloc(0);
  const firsts: number[] = [];

  function shardMarks(n: number, lines: number): Buffer | null {
    const [first = 0, end = lines] = [firsts[n], firsts[n + 1]];
    const bad = Buffer.alloc(Math.ceil((end - first) / 8));
    let any = false;
    for (let line = first; line < end; line += 1) {
      if ((((marks[line >>> 3] ?? 0) >> (line & 7)) & 1) === 0) continue;
      setBit(bad, line - first);
      any = true;
    }
    return any ? bad : null;
  }

  return {
    add(index) {
      const byte = index >>> 3;
      if (byte >= marks.length) {
        const grown = Buffer.alloc(Math.max(FIRST_BYTES, byte + 1, marks.length * 2));
        marks.copy(grown);
        marks = grown;
      }
      setBit(marks, index);
    },
    cut(shards) {
      for (const { first } of shards) firsts.push(first);
    },
    *pages(lines) {
      let page: BadLines[] = [];
      for (let n = 0; n < firsts.length; n += 1) {
        const bad = shardMarks(n, lines);
        if (bad !== null) page.push({ n, bad });
        if (page.length < PAGE) continue;
        yield page;
        page = [];
      }
      if (page.length > 0) yield page;
    },
  };
}
