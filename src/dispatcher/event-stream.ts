const [LF, CR, SPACE] = [0x0a, 0x0d, 0x20] as const;
const DATA = Buffer.from('data:');
const EVENT = Buffer.from('event:');
const NOTHING = Buffer.alloc(0);

/** Reads server-sent events (WHATWG HTML, 9.2.6) from chunks that may be cut anywhere, in a character as well. */
export interface EventReader {
  /** Bytes of an event that is not whole yet. */
  readonly pending: number;
  push(chunk: Buffer): void;
  /** The stream is over: what no blank line ended is an event, too. */
  end(): void;
}

/**
 * Calls back with each event that has data: its lines, joined by newlines as they came, and its type ('' unless named).
 * Lines end in LF or CR LF; comments, ids and retry times are passed over.
 */
export function readEvents(onEvent: (data: Buffer, type: string) => void): EventReader {
  /** The beginning of a line, as it came. */
  let begun: Buffer[] = [];
  let begunBytes = 0;
  let data: Buffer | null = null;
  let type = '';

  function field(line: Buffer): void {
    if (startsWith(line, DATA)) {
      const value = valueOf(line, DATA.length);
      data = data === null ? value : Buffer.concat([data, Buffer.of(LF), value]);
    } else if (startsWith(line, EVENT)) {
      type = valueOf(line, EVENT.length).toString();
    }
  }

  function endLine(line: Buffer): void {
    const text = line.at(-1) === CR ? line.subarray(0, -1) : line;
    if (text.length > 0) {
      field(text);
      return;
    }
    const [event, name] = [data, type];
    data = null;
    type = '';
    if (event !== null) onEvent(event, name);
  }

  function takeBegun(rest: Buffer): Buffer {
    if (begun.length === 0) return rest;
    const line = Buffer.concat([...begun, rest]);
    begun = [];
    begunBytes = 0;
    return line;
  }

  return {
    get pending() {
      return begunBytes + (data?.length ?? 0);
    },
    push(chunk) {
      let from = 0;
      for (;;) {
        const end = chunk.indexOf(LF, from);
        if (end === -1) break;
        endLine(takeBegun(chunk.subarray(from, end)));
        from = end + 1;
      }
      if (from === chunk.length) return;
      begun.push(chunk.subarray(from));
      begunBytes += chunk.length - from;
    },
    end() {
      endLine(takeBegun(NOTHING));
      endLine(NOTHING);
    },
  };
}

function startsWith(line: Buffer, name: Buffer): boolean {
  return line.length >= name.length && line.compare(name, 0, name.length, 0, name.length) === 0;
}

function valueOf(line: Buffer, from: number): Buffer {
  return line.subarray(line[from] === SPACE ? from + 1 : from);
}
