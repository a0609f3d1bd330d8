import type { Kind } from './kinds.ts';
import type { KubeObject } from './objects.ts';
import { isRecord } from './objects.ts';
import { badRequest } from './status.ts';

export type Predicate = (object: KubeObject) => boolean;

type Labels = Readonly<Record<string, string>>;

/** Splits at commas that are not inside `(…)`. */
function splitTerms(text: string): string[] {
  return text
    .split(/,(?![^(]*\))/)
    .map((term) => term.trim())
    .filter((term) => term !== '');
}

const SET = /^([\w./-]+)\s+(in|notin)\s+\(([^)]*)\)$/;
const EQUAL = /^([\w./-]+)\s*(==|=|!=)\s*([\w.-]*)$/;
const EXISTS = /^(!?)\s*([\w./-]+)$/;

function labelTerm(term: string): (labels: Labels) => boolean {
  const set = SET.exec(term);
  if (set !== null) {
    const [, key = '', operator, list = ''] = set;
    const values = new Set(list.split(',').map((value) => value.trim()));
    const isIn = (labels: Labels): boolean => key in labels && values.has(labels[key] ?? '');
    return operator === 'in' ? isIn : (labels) => !isIn(labels);
  }
  const equal = EQUAL.exec(term);
  if (equal !== null) {
    const [, key = '', operator, value] = equal;
    return operator === '!='
      ? (labels) => labels[key] !== value
      : (labels) => labels[key] === value;
  }
  const exists = EXISTS.exec(term);
  if (exists === null) {
    throw badRequest(`unable to parse requirement: found '${term}', expected: identifier`);
  }
  const [, not, key = ''] = exists;
  return (labels) => key in labels === (not === '');
}

/** `app=x,tier in (a,b),!old`; throws BadRequest. */
export function parseLabelSelector(text: string): Predicate {
  const terms = splitTerms(text).map(labelTerm);
  return ({ metadata }) => terms.every((term) => term(metadata.labels ?? {}));
}

export interface LabelSelector {
  matchLabels?: Record<string, string>;
  matchExpressions?: { key: string; operator: string; values?: string[] }[];
}

/** A selector as objects hold one. An empty one selects everything, a missing one nothing. */
export function matchesSelector(selector: LabelSelector | undefined, labels: Labels = {}): boolean {
  if (selector === undefined) return false;
  const equal = Object.entries(selector.matchLabels ?? {}).every(
    ([key, value]) => labels[key] === value,
  );
  return (
    equal &&
    (selector.matchExpressions ?? []).every(({ key, operator, values = [] }) => {
      const value = labels[key];
      if (operator === 'Exists') return value !== undefined;
      if (operator === 'DoesNotExist') return value === undefined;
      const isIn = value !== undefined && values.includes(value);
      return operator === 'In' ? isIn : !isIn;
    })
  );
}

/** The value at `a.b.c`, or undefined. */
function valueAt(object: unknown, path: string): unknown {
  let at: unknown = object;
  for (const key of path.split('.')) at = isRecord(at) ? at[key] : undefined;
  return at;
}

function fieldText(object: KubeObject, path: string): string {
  // Jobs and events have fields that lie elsewhere than they are called.
  const [value] =
    path === 'status.successful'
      ? [valueAt(object, 'status.succeeded') ?? 0]
      : path === 'source'
        ? [valueAt(object, 'source.component')]
        : [valueAt(object, path)];
  return typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean'
    ? String(value)
    : '';
}

/** `status.phase=Running,metadata.name!=x`; throws BadRequest for a field that the kind does not offer. */
export function parseFieldSelector(kind: Kind, text: string): Predicate {
  const terms = splitTerms(text).map((term) => {
    const found = /^([\w.-]+)(==|=|!=)(.*)$/.exec(term);
    if (found === null) {
      throw badRequest(`invalid selector: '${text}'; can't understand '${term}'`);
    }
    const [, path = '', operator, value] = found;
    const known = ['metadata.name', 'metadata.namespace', ...kind.fields];
    if (!known.includes(path)) throw badRequest(`field label not supported: ${path}`);
    return (object: KubeObject) => (fieldText(object, path) === value) === (operator !== '!=');
  });
  return (object) => terms.every((term) => term(object));
}
