import { hash } from 'node:crypto';
import { createDigestSpill } from './digest-spill.ts';
import { createDigestTable, lineNumber, RECORD_WORDS } from './digest-table.ts';
import type { DigestTable } from './digest-table.ts';

/** 6 MiB of records, a spill of which takes about 20 ms. */
const MEMORY_ENTRIES = 262_144;
const FIRST_ENTRIES = 256;

/** A line whose custom_id an earlier one has. Both are numbers as they were added. */
export interface Duplicate {
  number: number;
  /** The first line that has it. */
  first: number;
}

export interface Duplicates {
  /** All lines whose custom_id an earlier one has. */
  total: number;
  /** The first `limit` of them, sorted by line. */
  lines: Duplicate[];
}

/** Checks that custom_ids are unique in memory that does not grow with their number. */
export interface UniqueIds {
  /**
   * Remembers the id of line `number`, from 1; lines come in order. Returns a promise only when it spills,
   * and wants it awaited before the next call. Rejects with `storage.scratch` (Transient) when it cannot.
   */
  add(id: string, number: number): Promise<void> | void;
  /** Called once, after the last `add`. `onEach` hears of every duplicate, in no order. */
  duplicates(limit: number, onEach?: (duplicate: Duplicate) => void): Promise<Duplicates>;
  /** Gives the scratch file's space back; may be called at any time and again. */
  close(): Promise<void>;
}

/** A digest of 128 bits as latin1 text, which costs a third of what a Buffer does. */
function digestOf(id: string): string {
  if (id.isWellFormed()) return hash('sha256', id, 'binary');
  // UTF-8 would make all lone surrogates one; 0xff occurs in no UTF-8, so the two kinds cannot meet
  return hash('sha256', Buffer.concat([Buffer.of(0xff), Buffer.from(id, 'utf16le')]), 'binary');
}

function writeRecord(records: Uint32Array, at: number, id: string, number: number): void {
  const digest = digestOf(id);
  for (let word = 0; word < 4; word += 1) {
    const byte = word * 4;
    records[at + word] =
      digest.charCodeAt(byte) |
      (digest.charCodeAt(byte + 1) << 8) |
      (digest.charCodeAt(byte + 2) << 16) |
      (digest.charCodeAt(byte + 3) << 24);
  }
  records[at + 4] = number;
  records[at + 5] = Math.floor(number / 2 ** 32);
}

/** Keeps the `limit` earliest duplicates, which partitions bring in no order. */
function createCollector(limit: number): { add(duplicate: Duplicate): void; done(): Duplicates } {
  let lines: Duplicate[] = [];
  let total = 0;
  function trim(): void {
    lines = lines.toSorted((a, b) => a.number - b.number).slice(0, limit);
  }
  return {
    add(duplicate) {
      total += 1;
      lines.push(duplicate);
      if (lines.length > 2 * limit + 1_000) trim();
    },
    done() {
      trim();
      return { total, lines };
    },
  };
}

/** Adds the duplicates among records that come after those which the table has seen. */
function checkRecords(
  records: Uint32Array,
  table: DigestTable,
  add: (duplicate: Duplicate) => void,
): void {
  for (let at = 0; at < records.length; at += RECORD_WORDS) {
    const first = table.seen(records, at);
    if (first !== null) add({ number: lineNumber(records, at), first });
  }
}

/**
 * A check for custom_ids that occur twice. Ids are known by 128 bits of their SHA-256: a false report would need about
 * 2^64 of them. Up to `memoryEntries` are held (24 bytes each); more go to a scratch file without a name in
 * `directory`, 24 bytes each.
 */
export function createUniqueIds({
  directory,
  memoryEntries = MEMORY_ENTRIES,
}: {
  directory: string;
  memoryEntries?: number;
}): UniqueIds {
  let records = new Uint32Array(Math.min(FIRST_ENTRIES, memoryEntries) * RECORD_WORDS);
  let used = 0;
  let hasSpilled = false;
  const scratch = createDigestSpill(directory);

  async function spill(): Promise<void> {
    await scratch.write(records.subarray(0, used));
    hasSpilled = true;
    used = 0;
  }

  return {
    add(id, number) {
      if (used === records.length) {
        const grown = new Uint32Array(Math.min(used * 2, memoryEntries * RECORD_WORDS));
        grown.set(records);
        records = grown;
      }
      writeRecord(records, used, id, number);
      used += RECORD_WORDS;
      return used === memoryEntries * RECORD_WORDS ? spill() : undefined;
    },
    async duplicates(limit, onEach) {
      const collector = createCollector(limit);
      function add(duplicate: Duplicate): void {
        collector.add(duplicate);
        onEach?.(duplicate);
      }
      const table = createDigestTable();
      if (hasSpilled) await spill();
      else checkRecords(records.subarray(0, used), table, add);
      for (const group of scratch.groups(memoryEntries)) {
        table.clear();
        for await (const some of group) checkRecords(some, table, add);
      }
      return collector.done();
    },
    close: () => scratch.close(),
  };
}
