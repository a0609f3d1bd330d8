/** Reads CSV by RFC 4180 and nothing else: every record as its fields, quotes undone. */
export function parseCsv(text: string): string[][] {
  const records: string[][] = [];
  let fields: string[] = [];
  const field = /("(?:[^"]|"")*"|[^",\r\n]*)(,|\r\n|$)/gy;
  while (field.lastIndex < text.length) {
    const found = field.exec(text);
    if (found === null) throw new Error(`no CSV from '${text.slice(0, 200)}'`);
    const [, raw = '', end] = found;
    fields.push(raw.startsWith('"') ? raw.slice(1, -1).replaceAll('""', '"') : raw);
    if (end === ',') continue;
    records.push(fields);
    fields = [];
  }
  return records;
}
