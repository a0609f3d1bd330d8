import { ByteWriter, ParquetWriter } from 'hyparquet-writer';
import type { ColumnSource, SchemaElement } from 'hyparquet-writer';
import type { Item } from './items.ts';
import { columnsOf, rowOf } from './rows.ts';
import type { Column, Row } from './rows.ts';

/** Of a row group: it is held whole, and written in one go that nothing else of the process interrupts. */
const GROUP_CHARACTERS = 4 * 1024 * 1024;
const GROUP_ROWS = 10_000;

const NUMBERS: Partial<Record<Column, 'INT32' | 'INT64'>> = {
  status_code: 'INT32',
  prompt_tokens: 'INT64',
  completion_tokens: 'INT64',
  total_tokens: 'INT64',
};
/** Few values, many times: a dictionary of them pays, of the others it would only take time and memory. */
const REPEATED: ReadonlySet<Column> = new Set([
  'status_code',
  'model',
  'finish_reason',
  'error_code',
]);

/** Parquet of bounded row groups, compressed with Snappy; every column may be null. */
export async function* parquetOf(
  items: AsyncIterable<Item[]>,
  { isMerged }: { isMerged: boolean },
): AsyncGenerator<Buffer> {
  const columns = columnsOf(isMerged);
  const bytes = new ByteWriter();
  const writer = new ParquetWriter({ writer: bytes, schema: schemaOf(columns), statistics: false });
  let group: Row[] = [];
  let characters = 0;
  for await (const batch of items) {
    for (const item of batch) {
      const row = rowOf(item);
      group.push(row);
      characters += sizeOf(row);
      if (group.length < GROUP_ROWS && characters < GROUP_CHARACTERS) continue;
      await writer.write({ columnData: columnData(columns, group), rowGroupSize: group.length });
      yield taken(bytes);
      group = [];
      characters = 0;
    }
  }
  if (group.length > 0) {
    await writer.write({ columnData: columnData(columns, group), rowGroupSize: group.length });
  }
  await writer.finish();
  yield taken(bytes);
}

function schemaOf(columns: readonly Column[]): SchemaElement[] {
  return [
    { name: 'root', num_children: columns.length },
    ...columns.map((name): SchemaElement => {
      const type = NUMBERS[name];
      const optional = { name, repetition_type: 'OPTIONAL' } as const;
      if (type !== undefined) return { ...optional, type };
      return { ...optional, type: 'BYTE_ARRAY', converted_type: 'UTF8' };
    }),
  ];
}

function columnData(columns: readonly Column[], rows: readonly Row[]): ColumnSource[] {
  return columns.map((name) => {
    const isLong = NUMBERS[name] === 'INT64';
    const data = rows.map((row) => {
      const value = row[name];
      return isLong && typeof value === 'number' ? BigInt(value) : value;
    });
    const encoding = REPEATED.has(name) ? {} : ({ encoding: 'PLAIN' } as const);
    return { name, data, offsetIndex: false, ...encoding };
  });
}

function sizeOf({ body, content, request }: Row): number {
  return (body?.length ?? 0) + (content?.length ?? 0) + (request?.length ?? 0);
}

/** What was written since the last time; its offsets count on from where they were. */
function taken(bytes: ByteWriter): Buffer {
  const written = Buffer.from(bytes.getBytes());
  bytes.index = 0;
  return written;
}
