const NEWLINE = 0x0a;
const RETURN = 0x0d;
const BLANK = /^[ \t\r]*$/;
const MARK = Buffer.from([0xef, 0xbb, 0xbf]);

/** The lines that each chunk completes, without their newlines; one that has none at the end of the source counts. */
export async function* lineBatches(source: AsyncIterable<Uint8Array>): AsyncGenerator<Buffer[]> {
  let open: Buffer[] = [];
  for await (const chunk of source) {
    const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    const lines: Buffer[] = [];
    let from = 0;
    for (let to = bytes.indexOf(NEWLINE); to !== -1; to = bytes.indexOf(NEWLINE, from)) {
      const last = bytes.subarray(from, to);
      lines.push(open.length === 0 ? last : Buffer.concat([...open, last]));
      open = [];
      from = to + 1;
    }
    if (from < bytes.length) open.push(bytes.subarray(from));
    if (lines.length > 0) yield lines;
  }
  if (open.length > 0) yield [Buffer.concat(open)];
}

/** The requests of an input in order: as planning reads it, without blank lines, byte order mark and line ends. */
export async function* requestLines(source: AsyncIterable<Uint8Array>): AsyncGenerator<Buffer> {
  let isFirst = true;
  for await (const lines of lineBatches(source)) {
    for (const raw of lines) {
      const isMarked = isFirst && raw.subarray(0, MARK.length).equals(MARK);
      isFirst = false;
      const line = raw.subarray(isMarked ? MARK.length : 0, raw.at(-1) === RETURN ? -1 : undefined);
      if (!isBlank(line)) yield line;
    }
  }
}

function isBlank(line: Buffer): boolean {
  // The first byte decides for nearly all.
  const [first] = line;
  return (first === undefined || first <= 0x20) && BLANK.test(line.toString('latin1'));
}
