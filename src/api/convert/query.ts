import * as v from 'valibot';
import { invalidInput } from '../../domain/errors.ts';
import { parse } from '../body.ts';
import type { ApiContext } from '../routes.ts';

const FORMATS = ['jsonl', 'csv', 'parquet'] as const;
export type Format = (typeof FORMATS)[number];

const SWITCH_RULE = 'true or false';

/** How a file is wanted. */
export const contentSchema = v.object({
  format: v.pipe(
    v.optional(v.picklist(FORMATS, 'one of jsonl, csv, parquet'), 'jsonl'),
    v.description(
      'Output and error files of batches also come as `csv` or `parquet`: a row a line with the columns custom_id, ' +
        'status_code, request_id, model, content, finish_reason, prompt_tokens, completion_tokens, total_tokens, ' +
        'error_code, error_message and body, the whole answer as JSON.',
    ),
  ),
  merge: v.pipe(
    v.optional(v.literal('input', 'input, or left out')),
    v.description(
      'With `input`, each line of an output or error file has its request beside it: JSON lines of custom_id, ' +
        'request, response and error, or a column `request` more. The input must still be there.',
    ),
  ),
  gzip: v.pipe(
    v.optional(v.picklist(['true', 'false', ''], SWITCH_RULE), 'false'),
    v.description(
      'The download is a `.gz` file. Who only wants less to be sent has `Accept-Encoding: gzip` for it.',
    ),
  ),
  escape_formulas: v.pipe(
    v.optional(v.picklist(['true', 'false'], SWITCH_RULE)),
    v.description(
      'Of CSV: unless `false`, an apostrophe stands before texts that a spreadsheet would run as a formula; `body` ' +
        'has the answer as it was in any case.',
    ),
  ),
});

/** A wish that a file's bytes be given in another form than they have. */
export interface Conversion {
  format: Format;
  isMerged: boolean;
  /** The download is a compressed file, whatever the transfer is. */
  isGzip: boolean;
  escapesFormulas: boolean;
}

/** What the query of a download asks for; null for the bytes as they are. What would have no effect is refused. */
export function conversionOf(c: ApiContext): Conversion | null {
  const asked = parse(contentSchema, c.req.query());
  const { format, merge, gzip, escape_formulas: escape } = asked;
  if (escape !== undefined && format !== 'csv') {
    const message = 'escape_formulas is for format=csv: no other format is opened by spreadsheets.';
    throw invalidInput('invalid_value', message, { param: 'escape_formulas' });
  }
  const isGzip = gzip !== 'false';
  if (isGzip && format === 'parquet') {
    const message = 'format=parquet is compressed as it is: leave gzip out.';
    throw invalidInput('invalid_value', message, { param: 'gzip' });
  }
  if (format === 'jsonl' && merge === undefined && !isGzip) return null;
  return { format, isMerged: merge === 'input', isGzip, escapesFormulas: escape !== 'false' };
}

/** Whether the lines themselves are rewritten, and not only packed. */
export function isRewritten({ format, isMerged }: Conversion): boolean {
  return format !== 'jsonl' || isMerged;
}

const TYPES: Record<Format, string> = {
  jsonl: 'application/jsonl',
  csv: 'text/csv; charset=utf-8; header=present',
  parquet: 'application/vnd.apache.parquet',
};

export function convertedType({ format, isGzip }: Conversion): string {
  return isGzip ? 'application/gzip' : TYPES[format];
}

/** `batch_1_output.jsonl` as `batch_1_output_merged.csv.gz`; a name of another kind only gets its `.gz`. */
export function convertedName(filename: string, conversion: Conversion): string {
  const { format, isMerged, isGzip } = conversion;
  const end = isGzip ? '.gz' : '';
  if (!isRewritten(conversion)) return `${filename}${end}`;
  return `${filename.replace(/\.jsonl$/, '')}${isMerged ? '_merged' : ''}.${format}${end}`;
}
