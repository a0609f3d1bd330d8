/** Where a text stops to be JSON, in the words of Python's `json` module. */
interface JsonFault {
  at: number;
  message: string;
}

const STRING = /"(?:[ !#-[\]-\uffff]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*/y;
const SCALAR = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null/y;
const SPACE = /[ \t\n\r]*/y;
const NAME_WANTED = 'Expecting property name enclosed in double quotes';

/**
 * The first fault of a text that JSON.parse refused; undefined if there is none. Python names the place
 * where a token begins and Node mostly the one where it breaks, so Node's message does not help.
 */
export function findJsonFault(text: string): JsonFault | undefined {
  let at = 0;
  const open: ('{' | '[')[] = [];
  const fault = (message: string): JsonFault => ({ at, message });

  function take(pattern: RegExp): boolean {
    pattern.lastIndex = at;
    const length = pattern.exec(text)?.[0].length ?? 0;
    at += length;
    return length > 0;
  }

  function takeString(): JsonFault | undefined {
    const start = at;
    take(STRING);
    const next = text[at];
    if (next === undefined) return { at: start, message: 'Unterminated string starting at' };
    if (next !== '"')
      return fault(next === '\\' ? 'Invalid \\escape' : 'Invalid control character at');
    at += 1;
    return undefined;
  }

  function takeName(): JsonFault | undefined {
    take(SPACE);
    if (text[at] !== '"') return fault(NAME_WANTED);
    const bad = takeString();
    if (bad !== undefined) return bad;
    take(SPACE);
    if (text[at] !== ':') return fault("Expecting ':' delimiter");
    at += 1;
    return undefined;
  }

  /** Goes to where the next value begins; `done` at the end of the text. */
  function takeDelimiter(): JsonFault | 'next' | 'done' {
    for (;;) {
      take(SPACE);
      const inside = open.at(-1);
      if (inside === undefined) return at < text.length ? fault('Extra data') : 'done';
      if (text[at] === ',') {
        at += 1;
        return (inside === '{' ? takeName() : undefined) ?? 'next';
      }
      if (text[at] !== (inside === '{' ? '}' : ']')) return fault("Expecting ',' delimiter");
      at += 1;
      open.pop();
    }
  }

  /** One scalar, or the beginning of an object or list; true when its first value comes next. */
  function takeValue(): JsonFault | boolean {
    take(SPACE);
    const first = text[at];
    if (first === '"') return takeString() ?? false;
    if (first !== '{' && first !== '[') return !take(SCALAR) && fault('Expecting value');
    at += 1;
    open.push(first);
    take(SPACE);
    if (text[at] === (first === '{' ? '}' : ']')) return false;
    return (first === '{' ? takeName() : undefined) ?? true;
  }

  for (;;) {
    const begun = takeValue();
    if (typeof begun === 'object') return begun;
    if (begun) continue;
    const next = takeDelimiter();
    if (typeof next === 'object') return next;
    if (next === 'done') return undefined;
  }
}
