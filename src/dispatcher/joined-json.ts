/** Pieces that are kept one by one before they become a string of their own: many short ones cost ten times their text. */
const LOOSE_PIECES = 256;

/** A long text of many short pieces. */
export interface JoinedText {
  readonly isEmpty: boolean;
  push(piece: string): void;
  toString(): string;
}

function joinedText(): JoinedText {
  const blocks: string[] = [];
  let loose: string[] = [];
  return {
    get isEmpty() {
      return blocks.length === 0 && loose.length === 0;
    },
    push(piece) {
      if (piece === '') return;
      loose.push(piece);
      if (loose.length < LOOSE_PIECES) return;
      blocks.push(loose.join(''));
      loose = [];
    },
    toString: () => blocks.join('') + loose.join(''),
  };
}

/** A JSON value that grows: `text` by its end, `list` by elements (kept as JSON), `members` one by one. */
export type Grown =
  | { is: 'text'; text: JoinedText }
  | { is: 'list'; elements: JoinedText }
  | { is: 'indexed'; elements: Map<number, GrownObject> }
  | { is: 'members'; members: GrownObject }
  | { is: 'value'; value: unknown };
export type GrownObject = Map<string, Grown>;

/** Texts that are names, not pieces of text: said again, they replace what was said. */
const NAMES = new Set(['id', 'type', 'role', 'name', 'finish_reason', 'stop_reason']);

/** Adds what a delta says to what was said before, as OpenAI's clients put streams together; returns the bytes kept. */
export function grow(into: GrownObject, delta: object): number {
  let kept = 0;
  for (const [key, value] of Object.entries(delta) as [string, unknown][]) {
    kept += growMember(into, key, value);
  }
  return kept;
}

function growMember(into: GrownObject, key: string, value: unknown): number {
  const before = into.get(key);
  if (value === null) {
    if (before === undefined) into.set(key, { is: 'value', value });
    return 0;
  }
  if (typeof value === 'string' && !NAMES.has(key)) return growText(into, key, value);
  if (Array.isArray(value)) return growList(into, key, value);
  if (typeof value === 'object') {
    const members: GrownObject = before?.is === 'members' ? before.members : new Map();
    into.set(key, { is: 'members', members });
    return grow(members, value);
  }
  into.set(key, { is: 'value', value });
  return typeof value === 'string' && before === undefined ? value.length : 0;
}

function growText(into: GrownObject, key: string, piece: string): number {
  const before = into.get(key);
  const text = before?.is === 'text' ? before.text : joinedText();
  if (before?.is !== 'text') into.set(key, { is: 'text', text });
  text.push(piece);
  return Buffer.byteLength(piece);
}

/** Elements with an index are parts of the element with that index; others come one after the other. */
function growList(into: GrownObject, key: string, list: readonly unknown[]): number {
  const before = into.get(key);
  if (list.length > 0 && list.every(isIndexed)) {
    const elements = before?.is === 'indexed' ? before.elements : new Map<number, GrownObject>();
    into.set(key, { is: 'indexed', elements });
    return growElements(elements, list);
  }
  // An empty one says nothing beside what is there.
  if (list.length === 0 && before?.is === 'indexed') return 0;
  const elements = before?.is === 'list' ? before.elements : joinedText();
  into.set(key, { is: 'list', elements });
  let kept = 0;
  for (const element of list) {
    const json = JSON.stringify(element);
    elements.push(elements.isEmpty ? json : `,${json}`);
    kept += Buffer.byteLength(json);
  }
  return kept;
}

function growElements(
  elements: Map<number, GrownObject>,
  parts: readonly { index: number }[],
): number {
  let kept = 0;
  for (const part of parts) {
    const known = elements.get(part.index) ?? new Map<string, Grown>();
    elements.set(part.index, known);
    kept += grow(known, part);
  }
  return kept;
}

function isIndexed(element: unknown): element is { index: number } {
  return (
    typeof element === 'object' &&
    element !== null &&
    'index' in element &&
    typeof element.index === 'number'
  );
}

/** The JSON of a value that has grown. Parts of a list are in the order of their index, which is left out. */
export function grownJson(grown: Grown): string {
  switch (grown.is) {
    case 'text':
      return JSON.stringify(grown.text.toString());
    case 'list':
      return `[${grown.elements.toString()}]`;
    case 'indexed': {
      const inOrder = [...grown.elements].toSorted(([a], [b]) => a - b);
      return `[${inOrder.map(([, element]) => objectJson(without(element, 'index'))).join(',')}]`;
    }
    case 'members':
      return objectJson(grown.members);
    case 'value':
      return JSON.stringify(grown.value);
  }
}

function without(members: GrownObject, key: string): GrownObject {
  const rest = new Map(members);
  rest.delete(key);
  return rest;
}

function objectJson(members: GrownObject): string {
  return jsonOf([...members].map(([key, value]) => [key, grownJson(value)]));
}

/** An object of members whose values are JSON already. */
export function jsonOf(members: readonly (readonly [key: string, json: string])[]): string {
  return `{${members.map(([key, json]) => `${JSON.stringify(key)}:${json}`).join(',')}}`;
}
