import { isUtf8 } from 'node:buffer';
import { checkLine, isProblem, MAX_MODELS, problem } from '../domain/plan.ts';
import type { CheckedLine, LineRules, Problem } from '../domain/plan.ts';
import { findJsonFault } from './json-fault.ts';
import { scanCustomId } from './json-scan.ts';
import type { InputLine } from './lines.ts';

const ASCII = /^[\0-\x7f]*$/;
const NULL = Buffer.from('null');

/** What is wrong with a line in itself, or what planning keeps of it. */
export function checkInputLine(
  { bytes }: InputLine,
  rules: LineRules,
  maxLineBytes: number,
): CheckedLine | Problem {
  if (bytes === null) {
    return problem(
      'line_too_long',
      `This line is longer than ${maxLineBytes} bytes (MAX_LINE_BYTES of the server).`,
      null,
    );
  }
  if (!isUtf8(bytes)) return notUtf8(bytes);
  // JSON's syntax is ASCII: latin1 shows a line's form at less cost than UTF-8, and only what is shown or compared
  // has to be read as what it is.
  const checked = checkText(bytes.toString('latin1'), rules);
  const isExact =
    checked !== null &&
    !isProblem(checked) &&
    ASCII.test(checked.customId) &&
    isPlain(checked.model);
  if (isExact) return checked;
  const text = bytes.toString('utf8');
  return checkText(text, rules) ?? notJson(text);
}

function isPlain(model: string | null): boolean {
  return model === null || ASCII.test(model);
}

/** Null for what is no JSON. */
function checkText(text: string, rules: LineRules): CheckedLine | Problem | null {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    return null; // which is a finding here
  }
  return checkLine(parsed, rules);
}

function notJson(text: string): Problem {
  const fault = findJsonFault(text);
  return unparseable(fault === null ? '' : ` Column ${fault.column}: ${fault.reason}.`);
}

function notUtf8(bytes: Buffer): Problem {
  const read = bytes.toString('utf8');
  // What cannot be read comes back as other bytes.
  const back = Buffer.from(read);
  let at = 0;
  while (bytes[at] === back[at]) at += 1;
  const column = bytes.toString('utf8', 0, at).length + 1;
  return unparseable(` Column ${column}: bytes that are no UTF-8. Save the file as UTF-8.`);
}

function unparseable(why: string): Problem {
  return problem('invalid_json_line', `This line is not parseable as valid JSON.${why}`, null);
}

/** A model more than a job may name. */
export function tooManyModels(): Problem {
  const message = `A batch may name at most ${MAX_MODELS} models.`;
  return problem('model_mismatch', message, 'body.model');
}

/** The rules of a job that was planned. */
export interface PlannedRules extends LineRules {
  /** The models that planning found. */
  models: readonly string[];
}

/** What the error file says of a line that planning marked as bad. */
export interface Refusal {
  /** Raw JSON: the string that the line has, or `null`. */
  customId: Buffer;
  code: string;
  message: string;
}

/**
 * Finds again why planning marked a line as bad. Only that another line has its custom_id does not show in the line:
 * that is what is left.
 */
export function refusalOf(line: InputLine, rules: PlannedRules, maxLineBytes: number): Refusal {
  const checked = checkInputLine(line, rules, maxLineBytes);
  return { customId: customIdOf(line), ...reasonOf(checked, rules) };
}

/** The raw `custom_id` of any line, or `null` where it has none. */
export function customIdOf({ bytes }: InputLine): Buffer {
  if (bytes === null || !isUtf8(bytes)) return NULL;
  try {
    JSON.parse(bytes.toString('latin1'));
  } catch {
    return NULL; // half a line may have an id, but nobody can say that it is the line's
  }
  return scanCustomId(bytes) ?? NULL;
}

function reasonOf(checked: CheckedLine | Problem, rules: PlannedRules): Omit<Refusal, 'customId'> {
  if (isProblem(checked)) return { code: checked.code, message: checked.message };
  // A model that only lines with a custom_id of others name is not among the job's either.
  const isFull = rules.models.length >= MAX_MODELS;
  if (isFull && checked.model !== null && !rules.models.includes(checked.model)) {
    const { code, message } = tooManyModels();
    return { code, message };
  }
  return {
    code: 'duplicate_custom_id',
    message:
      'This custom_id is already used in an earlier line: a dry run (POST /v1/batches/validate) says in which.',
  };
}
