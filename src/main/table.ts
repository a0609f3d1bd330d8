/** Rows under a head, in columns that are as wide as they need; the last one is not padded. Columns without text are left out. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const columns = head.map((_, i) => i).filter((i) => rows.some((row) => (row[i] ?? '') !== ''));
  const lines = [head, ...rows].map((row) => columns.map((i) => oneLine(row[i] ?? '')));
  const widths = columns.map((_, i) => Math.max(...lines.map((line) => (line[i] ?? '').length)));
  return lines
    .map((line) => line.map((text, i) => text.padEnd(widths[i] ?? 0)).join('  '))
    .map((line) => `${line.trimEnd()}\n`)
    .join('');
}

/** What others say may have line breaks, and worse for a terminal. */
export function oneLine(text: string): string {
  return text.replaceAll(/[\p{Cc}\s]+/gu, ' ').trim();
}
