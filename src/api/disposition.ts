/** What may stand unescaped in an extended parameter (RFC 8187, attr-char), of what encodeURIComponent leaves. */
const NOT_ATTR_CHAR = /['()*]/g;
/** Control characters, which must never reach a header, and what ends or escapes a quoted string. */
const UNQUOTABLE = /["\\%]|[^\x20-\x7e]/g;

/**
 * `Content-Disposition` of a download (RFC 6266): the name in ASCII for old clients, and as it is, percent-encoded,
 * for all others. Whatever the name holds, the value stays one header line.
 */
export function contentDisposition(filename: string): string {
  const printable = Array.from(filename.toWellFormed())
    .filter((character) => character >= ' ' && character !== '\x7f')
    .join('');
  const plain = printable.replace(UNQUOTABLE, '_');
  const encoded = encodeURIComponent(printable).replace(NOT_ATTR_CHAR, percentEncoded);
  return `attachment; filename="${plain}"; filename*=UTF-8''${encoded}`;
}

function percentEncoded(character: string): string {
  return `%${character.charCodeAt(0).toString(16).toUpperCase()}`;
}
