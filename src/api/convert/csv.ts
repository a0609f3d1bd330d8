import { stringify } from 'csv-stringify/sync';
import type { Item } from './items.ts';
import { columnsOf, rowOf } from './rows.ts';

export interface CsvOptions {
  isMerged: boolean;
  /** Texts that a spreadsheet would take for a formula are written behind an apostrophe. */
  escapesFormulas: boolean;
}

/**
 * What makes a spreadsheet run a cell (https://owasp.org/www-community/attacks/CSV_Injection), in the full width forms
 * of East Asian keyboards, too. An engine writes what it was told to, by whoever wrote the text that it was given.
 */
const FORMULA = /^[=+\-@\t\r\n＝＋－＠]/;
/** Begins like one, and is harmless. */
const NUMBER = /^[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?$/i;

/** CSV as RFC 4180 has it, with a header; a text without value is empty. */
export async function* csvOf(
  items: AsyncIterable<Item[]>,
  { isMerged, escapesFormulas }: CsvOptions,
): AsyncGenerator<Buffer> {
  const options = {
    columns: [...columnsOf(isMerged)],
    record_delimiter: 'windows',
    // Readers take a bare line feed for the end of a record, too.
    quote_record_delimiter: true,
    ...(escapesFormulas ? { cast: { string: harmless } } : {}),
  } as const;
  yield Buffer.from(stringify([], { ...options, header: true }));
  for await (const batch of items) yield Buffer.from(stringify(batch.map(rowOf), options));
}

function harmless(value: string): string {
  return FORMULA.test(value) && !NUMBER.test(value) ? `'${value}` : value;
}
