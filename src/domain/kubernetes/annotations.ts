import { SluiceError } from '../errors.ts';
import { ENDPOINTS, isEndpoint, parseCompletionWindow } from '../job.ts';
import type { Endpoint } from '../job.ts';

/** What every annotation of a batch begins with, on a Job and on its pod template: AIBrix's names. */
export const ANNOTATION_PREFIX = 'batch.job.aibrix.ai/';

/** A batch as annotations ask for it. Keys of both generations of AIBrix; null: not said. */
export interface BatchSpec {
  /** Id of a file in storage, key of an object there, or `s3://…`, `tos://…`. */
  inputFileId: string;
  endpoint: Endpoint;
  completionWindow: string | null;
  sessionId: string | null;
  metadata: Record<string, string>;
  /** The process ends, as if it were broken, after so many answers: for tries of what becomes of a batch then. */
  failAfterRequests: number | null;
  /** The `aibrix` extension of a batch, as an object that nobody has checked yet. */
  aibrix: Record<string, unknown> | null;
  outputFileId: string | null;
  errorFileId: string | null;
  /** Ids that AIBrix's workers write parts under; a worker of ours has no use for them. */
  tempOutputFileId: string | null;
  tempErrorFileId: string | null;
  modelTemplateName: string | null;
  modelTemplateVersion: string | null;
  profileName: string | null;
  templateOverrides: Record<string, unknown> | null;
  profileOverrides: Record<string, unknown> | null;
}

/** Annotations, and what messages call the place where they stand ("the Job"). */
export interface AnnotationSource {
  name: string;
  annotations: Readonly<Record<string, string>>;
}

/** Keys that stand for themselves, by the field that they fill. */
const TEXTS = {
  'input-file-id': 'inputFileId',
  endpoint: 'endpoint',
  'completion-window': 'completionWindow',
  'session-id': 'sessionId',
  'output-file-id': 'outputFileId',
  'error-file-id': 'errorFileId',
  'temp-output-file-id': 'tempOutputFileId',
  'temp-error-file-id': 'tempErrorFileId',
  'model-template-name': 'modelTemplateName',
  'model-template-version': 'modelTemplateVersion',
  'profile-name': 'profileName',
} as const satisfies Record<string, keyof BatchSpec>;

/** Keys whose value is a JSON object. */
const OBJECTS = {
  aibrix: 'aibrix',
  'template-overrides': 'templateOverrides',
  'profile-overrides': 'profileOverrides',
} as const satisfies Record<string, keyof BatchSpec>;

/** What a control plane writes on the Job about how far it is; a worker asks for none of it. */
const STATUS_KEYS: ReadonlySet<string> = new Set([
  'state',
  'condition',
  'errors',
  'request-counts',
  'usage',
  'in-progress-at',
  'finalizing-at',
  'finalized-at',
  'cancelling-at',
]);

const FAIL_AFTER = 'fail_after_n_requests';
/** OpenAI's bounds of a batch's metadata. */
const MOST_METADATA = 16;
const MOST_VALUE = 512;
const FILE_ID = /^(?!\.{1,2}$)[A-Za-z0-9._-]{1,200}$/;
const FILE_ID_RULE = 'must be 1 to 200 characters out of A-Z, a-z, 0-9, ., _ and -';

type TextKey = keyof typeof TEXTS;
type ObjectKey = keyof typeof OBJECTS;
type Values = Readonly<Record<string, string>>;

/** What all sources say together, without the prefix. */
export interface MergedAnnotations {
  values: Values;
  /** Where two sources say something else of one key: a sentence each, for the log. */
  conflicts: string[];
}

/**
 * Joins the annotations of several sources: of each key the first source that has it counts, and an empty value is none.
 * Other annotations than those of batches are left out.
 */
export function mergeAnnotations(sources: readonly AnnotationSource[]): MergedAnnotations {
  const found = new Map<string, { value: string; source: string }>();
  const conflicts: string[] = [];
  for (const { name: source, annotations } of sources) {
    for (const [whole, value] of Object.entries(annotations)) {
      if (!whole.startsWith(ANNOTATION_PREFIX) || value === '') continue;
      const key = whole.slice(ANNOTATION_PREFIX.length);
      const first = found.get(key);
      if (first === undefined) found.set(key, { value, source });
      else if (first.value !== value && !STATUS_KEYS.has(key)) {
        conflicts.push(
          `${whole} is '${clip(first.value)}' on ${first.source} and '${clip(value)}' on ${source}: ${first.source}'s counts`,
        );
      }
    }
  }
  const values = Object.fromEntries([...found].map(([key, { value }]) => [key, value]));
  return { values, conflicts };
}

/** The batch that annotations ask for, or all that is wrong with them: a sentence each, with what is allowed. */
export function parseAnnotations(
  values: Values,
): { spec: BatchSpec; problems?: never } | { problems: string[] } {
  const problems = [...unknownKeys(values), ...missingKeys(values), ...wrongTexts(values)];
  const metadata = metadataOf(values, problems);
  const failAfterRequests = failAfterOf(values, problems);
  const objects = objectsOf(values, problems);
  const text = (key: TextKey) => values[key] ?? null;
  const endpoint = text('endpoint') ?? '';
  if (problems.length > 0 || !isEndpoint(endpoint)) return { problems };
  return {
    spec: {
      inputFileId: text('input-file-id') ?? '',
      endpoint,
      completionWindow: text('completion-window'),
      sessionId: text('session-id'),
      metadata,
      failAfterRequests,
      outputFileId: text('output-file-id'),
      errorFileId: text('error-file-id'),
      tempOutputFileId: text('temp-output-file-id'),
      tempErrorFileId: text('temp-error-file-id'),
      modelTemplateName: text('model-template-name'),
      modelTemplateVersion: text('model-template-version'),
      profileName: text('profile-name'),
      ...objects,
    },
  };
}

/**
 * The annotations that ask for a batch: what `parseAnnotations` reads back. Fields that are null or left out have none.
 * A Job needs `inputFileId` and `endpoint`.
 */
export function formatAnnotations(spec: Partial<BatchSpec>): Record<string, string> {
  const written: Record<string, string> = {};
  function write(key: string, value: string | null | undefined): void {
    if (value !== null && value !== undefined && value !== '') {
      written[`${ANNOTATION_PREFIX}${key}`] = value;
    }
  }
  for (const [key, field] of Object.entries(TEXTS)) write(key, spec[field]);
  for (const [key, field] of Object.entries(OBJECTS)) {
    const value = spec[field];
    if (value) write(key, JSON.stringify(value));
  }
  for (const [name, value] of Object.entries(spec.metadata ?? {})) write(`metadata.${name}`, value);
  if (spec.failAfterRequests) write(`opts.${FAIL_AFTER}`, String(spec.failAfterRequests));
  return written;
}

function unknownKeys(values: Values): string[] {
  const known = [...Object.keys(TEXTS), ...Object.keys(OBJECTS), 'opts'];
  return Object.keys(values)
    .filter((key) => !known.includes(key) && !STATUS_KEYS.has(key))
    .filter((key) => !key.startsWith('metadata.') && !key.startsWith('opts.'))
    .map(
      (key) =>
        `${ANNOTATION_PREFIX}${clip(key)} is no annotation of a batch: those are ${known.join(', ')}, metadata.<key> and opts.<key>`,
    );
}

function missingKeys(values: Values): string[] {
  const wanted = {
    'input-file-id':
      'the id of an uploaded file, the key of an object in storage, or a URL such as s3://bucket/key',
    endpoint: `one of ${ENDPOINTS.join(', ')}`,
  };
  return Object.entries(wanted)
    .filter(([key]) => values[key] === undefined)
    .map(
      ([key, rule]) =>
        `Required annotation '${ANNOTATION_PREFIX}${key}' not found: it must be ${rule}`,
    );
}

function wrongTexts(values: Values): string[] {
  const problems: string[] = [];
  function refuse(key: TextKey, rule: string): void {
    problems.push(`${ANNOTATION_PREFIX}${key} ${rule}, got '${clip(values[key] ?? '')}'`);
  }
  const { endpoint } = values;
  if (endpoint !== undefined && !isEndpoint(endpoint)) {
    refuse('endpoint', `must be one of ${ENDPOINTS.join(', ')}`);
  }
  if (!isWindow(values['completion-window'])) {
    refuse(
      'completion-window',
      'must be days, hours and minutes such as 24h, 1d12h or 90m, at most 365d',
    );
  }
  const ids = ['output-file-id', 'error-file-id'] as const;
  for (const key of ids) if (!FILE_ID.test(values[key] ?? 'unset')) refuse(key, FILE_ID_RULE);
  if (
    values['output-file-id'] !== undefined &&
    values['output-file-id'] === values['error-file-id']
  ) {
    refuse('error-file-id', 'must be another one than output-file-id');
  }
  return problems;
}

function isWindow(window: string | undefined): boolean {
  if (window === undefined) return true;
  try {
    return parseCompletionWindow(window) > 0;
  } catch (error) {
    if (error instanceof SluiceError) return false;
    throw error;
  }
}

function metadataOf(values: Values, problems: string[]): Record<string, string> {
  const entries = Object.entries(values)
    .filter(([key]) => key.startsWith('metadata.'))
    .map(([key, value]): [string, string] => [key.slice('metadata.'.length), value]);
  if (entries.length > MOST_METADATA) {
    problems.push(
      `${ANNOTATION_PREFIX}metadata.<key>: a batch has at most ${MOST_METADATA} of them, got ${entries.length}`,
    );
  }
  for (const [key, value] of entries) {
    if (value.length <= MOST_VALUE) continue;
    const rule = `must have at most ${MOST_VALUE} characters, got ${value.length}`;
    problems.push(`${ANNOTATION_PREFIX}metadata.${clip(key)} ${rule}`);
  }
  return Object.fromEntries(entries);
}

/** `opts.<key>` is how the older generation says it, `opts` with a JSON object how the newer one does. */
function failAfterOf(values: Values, problems: string[]): number | null {
  const given: Record<string, unknown> = jsonObject('opts', values, problems) ?? {};
  for (const [key, value] of Object.entries(values)) {
    if (key.startsWith('opts.')) given[key.slice('opts.'.length)] = value;
  }
  for (const key of Object.keys(given)) {
    if (key === FAIL_AFTER) continue;
    problems.push(
      `${ANNOTATION_PREFIX}opts.${clip(key)} is no option: the only one is ${FAIL_AFTER}`,
    );
  }
  const wish = given[FAIL_AFTER] ?? null;
  if (wish === null) return null;
  const count = Number(wish);
  if (Number.isSafeInteger(count) && count > 0) return count;
  const got = clip(JSON.stringify(wish));
  problems.push(`${ANNOTATION_PREFIX}opts.${FAIL_AFTER} must be a whole number from 1, got ${got}`);
  return null;
}

function objectsOf(values: Values, problems: string[]) {
  const read = (key: ObjectKey) => jsonObject(key, values, problems);
  return {
    aibrix: read('aibrix'),
    templateOverrides: read('template-overrides'),
    profileOverrides: read('profile-overrides'),
  };
}

function jsonObject(
  key: ObjectKey | 'opts',
  values: Values,
  problems: string[],
): Record<string, unknown> | null {
  const text = values[key];
  if (text === undefined) return null;
  const object = parseObject(text);
  if (object === null) {
    problems.push(`${ANNOTATION_PREFIX}${key} must be a JSON object, got '${clip(text)}'`);
  }
  return object;
}

/** Null for a text that is no JSON object. */
export function parseObject(text: string): Record<string, unknown> | null {
  try {
    const parsed: unknown = JSON.parse(text);
    const isObject = typeof parsed === 'object' && parsed !== null && !Array.isArray(parsed);
    return isObject ? { ...parsed } : null;
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

/** Users' text in messages is cut: a log is no place for 256 KiB of annotations. */
function clip(text: string): string {
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}
