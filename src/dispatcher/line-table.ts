import type { Usage } from '../domain/job.ts';
import { countBits, isSet, setBit } from '../domain/segment.ts';
import type { EngineTally } from '../domain/segment.ts';

/**
 * What a row has in whole numbers; `CHUNK`, `START` and `LENGTH` say where the entry lies while its segment is open,
 * `ENGINE` is 0 where none answered, else the engine's place in the list, from 1.
 */
const [LINE, OK, CHUNK, START, LENGTH, ENGINE] = [0, 1, 2, 3, 4, 5] as const;
const COLUMNS = 6;
/** What it has in tokens, which an engine may count beyond 32 bits. */
const [INPUT, CACHED, OUTPUT, REASONING] = [0, 1, 2, 3] as const;
const TOKENS = 4;
const FIRST_ROWS = 64;

/** Where an entry lies in the open segment's chunks. */
export interface Place {
  chunk: number;
  start: number;
  length: number;
}

export interface TableLine {
  line: number;
  ok: boolean;
  usage: Usage;
  /** Address of the engine that answered; null: none did. */
  engine: string | null;
}

/** What a commit says of its lines. */
export interface Tally {
  mask: Buffer;
  ok: number;
  failed: number;
  usage: Usage;
  engines: EngineTally[];
}

/**
 * The answered lines of one part as bare numbers: they live for seconds, and an object for each would be most of what
 * the garbage collector has to carry around.
 */
export class LineTable {
  #cells = new Uint32Array(FIRST_ROWS * COLUMNS);
  #tokens = new Float64Array(FIRST_ROWS * TOKENS);
  #rows = 0;
  /** A handful: a search through them costs nothing. */
  readonly #engines: string[] = [];

  get rows(): number {
    return this.#rows;
  }

  add({ line, ok, usage, engine }: TableLine, { chunk, start, length }: Place): void {
    const row = this.#rows;
    if (row * COLUMNS === this.#cells.length) this.#grow();
    const cells = [line, ok ? 1 : 0, chunk, start, length, this.#placeOf(engine)];
    this.#cells.set(cells, row * COLUMNS);
    const { inputTokens, cachedTokens, outputTokens, reasoningTokens } = usage;
    this.#tokens.set([inputTokens, cachedTokens, outputTokens, reasoningTokens], row * TOKENS);
    this.#rows = row + 1;
  }

  /** The rows' places sorted by line; throws when a line is there twice. */
  sortedPlaces(): Place[] {
    const order = Uint32Array.from({ length: this.#rows }, (_, row) => row);
    order.sort((a, b) => this.#cell(a, LINE) - this.#cell(b, LINE));
    const places: Place[] = [];
    let last = -1;
    for (const row of order) {
      const line = this.#cell(row, LINE);
      if (line === last) throw new Error(`line ${line} is twice in one segment`);
      last = line;
      places.push({
        chunk: this.#cell(row, CHUNK),
        start: this.#cell(row, START),
        length: this.#cell(row, LENGTH),
      });
    }
    return places;
  }

  /** Counts the lines that `done` does not have yet; `lines` is the length of the whole shard. */
  tally(lines: number, done: Buffer | null): Tally {
    const mask = Buffer.alloc(Math.ceil(lines / 8));
    const usage = { inputTokens: 0, cachedTokens: 0, outputTokens: 0, reasoningTokens: 0 };
    const engines = this.#engines.map((engine) => ({ engine, ok: 0, failed: 0 }));
    let ok = 0;
    for (let row = 0; row < this.#rows; row += 1) {
      const line = this.#cell(row, LINE);
      if (done !== null && isSet(done, line)) continue;
      setBit(mask, line);
      ok += this.#cell(row, OK);
      const engine = engines[this.#cell(row, ENGINE) - 1];
      if (engine !== undefined) engine[this.#cell(row, OK) === 1 ? 'ok' : 'failed'] += 1;
      usage.inputTokens += this.#token(row, INPUT);
      usage.cachedTokens += this.#token(row, CACHED);
      usage.outputTokens += this.#token(row, OUTPUT);
      usage.reasoningTokens += this.#token(row, REASONING);
    }
    const failed = countBits(mask) - ok;
    return {
      mask,
      ok,
      failed,
      usage,
      engines: engines.filter((each) => each.ok + each.failed > 0),
    };
  }

  #placeOf(engine: string | null): number {
    if (engine === null) return 0;
    const known = this.#engines.indexOf(engine);
    return known === -1 ? this.#engines.push(engine) : known + 1;
  }

  #cell(row: number, column: number): number {
    return this.#cells[row * COLUMNS + column] ?? 0;
  }

  #token(row: number, column: number): number {
    return this.#tokens[row * TOKENS + column] ?? 0;
  }

  #grow(): void {
    const [cells, tokens] = [this.#cells, this.#tokens];
    this.#cells = new Uint32Array(cells.length * 2);
    this.#cells.set(cells);
    this.#tokens = new Float64Array(tokens.length * 2);
    this.#tokens.set(tokens);
  }
}
