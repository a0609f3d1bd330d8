import type { IncomingMessage } from 'node:http';
import { invalidInput } from '../../domain/errors.ts';
import type { SluiceError } from '../../domain/errors.ts';
import { EXPIRES_AFTER_SECONDS, UPLOAD_PURPOSES } from '../../domain/file.ts';
import type { UploadPurpose } from '../../domain/file.ts';
import { MAX_PART_BYTES } from '../../domain/upload.ts';
import { missing, receiveForm } from '../multipart.ts';
import type { FormRules, Put } from '../multipart.ts';

/** Largest files in bytes; a file of purpose `batch` has a limit of its own. */
export interface FileLimits {
  maxFileBytes: number;
  maxBatchFileBytes: number;
}

interface FileForm<Stored> {
  filename: string;
  purpose: UploadPurpose;
  /** How long the file is kept; null: until somebody deletes it. */
  expiresAfterMs: number | null;
  stored: Stored;
}

const ANCHOR = 'expires_after[anchor]';
const SECONDS = 'expires_after[seconds]';
type Field = 'purpose' | typeof ANCHOR | typeof SECONDS;

/** Receives a file as OpenAI's clients send it: nested fields come as `expires_after[anchor]`. */
export async function receiveFile<Stored>(
  incoming: IncomingMessage,
  limits: FileLimits,
  put: Put<Stored>,
): Promise<FileForm<Stored>> {
  const fields = new Map<string, string>();
  const rules: FormRules = {
    file: 'file',
    usage: "A file is uploaded as multipart/form-data with the fields 'file' and 'purpose'",
    isNamed: true,
    field(name, value) {
      if (!isField(name)) return name.startsWith('expires_after') ? strangeExpiry(name) : null;
      if (fields.has(name)) return twice(name);
      fields.set(name, value);
      return WRONG[name](value);
    },
    end: (bytes) => missingField(fields) ?? (bytes === 0 ? empty() : null),
    maxBytes: () =>
      fields.get('purpose') === 'batch'
        ? Math.min(limits.maxBatchFileBytes, limits.maxFileBytes)
        : limits.maxFileBytes,
  };
  const { filename, stored } = await receiveForm(incoming, rules, put);
  const purpose = fields.get('purpose');
  if (purpose === undefined || !isPurpose(purpose)) throw missing('purpose');
  const seconds = fields.get(SECONDS);
  const expiresAfterMs = seconds === undefined ? null : Number(seconds) * 1_000;
  return { filename, purpose, expiresAfterMs, stored };
}

/** Receives the bytes of a part of an upload; whatever name they have is of no meaning. */
export async function receivePart<Stored>(
  incoming: IncomingMessage,
  put: Put<Stored>,
): Promise<Stored> {
  const { stored } = await receiveForm(
    incoming,
    {
      file: 'data',
      usage: "A part is sent as multipart/form-data with its bytes as the file 'data'",
      isNamed: false,
      field: () => null,
      end: () => null,
      maxBytes: () => MAX_PART_BYTES,
    },
    put,
  );
  return stored;
}

const WRONG: Record<Field, (value: string) => SluiceError | null> = {
  purpose(value) {
    return isPurpose(value)
      ? null
      : wrong('purpose', `one of ${UPLOAD_PURPOSES.join(', ')}`, value);
  },
  [ANCHOR](value) {
    return value === 'created_at' ? null : wrong(ANCHOR, "'created_at'", value);
  },
  [SECONDS](value) {
    const { min, max } = EXPIRES_AFTER_SECONDS;
    const isRight = /^\d{1,9}$/.test(value) && Number(value) >= min && Number(value) <= max;
    return isRight ? null : wrong(SECONDS, `an integer from ${min} to ${max}`, value);
  },
};

function missingField(fields: ReadonlyMap<string, string>): SluiceError | null {
  if (!fields.has('purpose')) return missing('purpose');
  if (fields.has(SECONDS) && !fields.has(ANCHOR)) return missing(ANCHOR);
  return fields.has(ANCHOR) && !fields.has(SECONDS) ? missing(SECONDS) : null;
}

/** As OpenAI refuses it, before a batch over it would fail. */
function empty(): SluiceError {
  const message = 'File is empty: upload one with at least one byte.';
  return invalidInput('empty_file', message, { param: 'file' });
}

function isField(name: string): name is Field {
  return Object.hasOwn(WRONG, name);
}

function isPurpose(text: string): text is UploadPurpose {
  return (UPLOAD_PURPOSES as readonly string[]).includes(text);
}

function wrong(param: string, rule: string, value: string): SluiceError {
  const message = `Invalid '${param}': it must be ${rule}; got '${value.slice(0, 100)}'.`;
  return invalidInput('invalid_value', message, { param });
}

/** A file that is kept for ever after all, because of a slip in the name of a field, is found too late. */
function strangeExpiry(name: string): SluiceError {
  const param = name.slice(0, 100);
  const message = `Unknown parameter: '${param}'. An expiry is sent as the two fields ${ANCHOR} and ${SECONDS}.`;
  return invalidInput('unknown_parameter', message, { param });
}

function twice(param: string): SluiceError {
  return invalidInput('invalid_value', `'${param}' was given twice.`, { param });
}
