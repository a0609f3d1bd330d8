import type { IncomingMessage } from 'node:http';
import { Busboy } from '@fastify/busboy';
import type { BusboyFileStream, BusboyInstance } from '@fastify/busboy';
import { describeError, invalidInput } from '../domain/errors.ts';
import type { SluiceError } from '../domain/errors.ts';
import { UPLOAD_PURPOSES } from '../domain/file.ts';
import type { UploadPurpose } from '../domain/file.ts';
import { clientClosed } from './body.ts';

/** Largest files in bytes; a file of purpose `batch` has a limit of its own. */
export interface UploadLimits {
  maxFileBytes: number;
  maxBatchFileBytes: number;
}

/** Writes the file's bytes away; it must reject, and leave nothing, when the source rejects. */
type Put<Stored> = (source: AsyncIterable<Uint8Array>) => Promise<Stored>;

interface Upload<Stored> {
  filename: string;
  purpose: UploadPurpose;
  stored: Stored;
}

/** Boundaries, part headers and fields beside the file: a body may be this much larger than its file. */
const FORM_OVERHEAD = 1024 * 1024;
const FORM_LIMITS = { fields: 32, fieldSize: 4_096, parts: 64, headerSize: 16_384 } as const;
/** A longer name would, percent-encoded, outgrow the header limit of those who download it. */
const MAX_FILENAME = 255;

interface FilePart {
  stream: BusboyFileStream;
  filename: string;
}

interface Form {
  /** The `file` part once its bytes begin, null when the form ends without one. */
  file: Promise<FilePart | null>;
  /** Resolves when the form's last byte was read; rejects as soon as it is known to be wrong. */
  complete: Promise<void>;
  purpose(): UploadPurpose | null;
  /** Stops reading; what was not read stays in the request. */
  stop(): void;
}

/**
 * Streams the `file` of a multipart form through `put`; other fields may come before or after it. The stream ends
 * only once the whole form was read and found right, so that an upload which is refused or breaks off is never
 * stored. Throws invalid input: 400 for a form that is wrong, 413 for a file over its limit.
 */
export async function receiveUpload<Stored>(
  incoming: IncomingMessage,
  limits: UploadLimits,
  put: Put<Stored>,
): Promise<Upload<Stored>> {
  refuseLength(incoming, limits.maxFileBytes);
  const form = readForm(incoming);
  try {
    const file = await form.file;
    if (file === null) throw missing('file');
    const cap = form.purpose() === 'batch' ? limits.maxBatchFileBytes : limits.maxFileBytes;
    refuseLength(incoming, cap);
    const stored = await put(checkedBytes(form, file, limits));
    const purpose = form.purpose();
    if (purpose === null) throw missing('purpose');
    return { filename: file.filename, purpose, stored };
  } finally {
    form.stop();
  }
}

async function* checkedBytes(
  form: Form,
  file: FilePart,
  limits: UploadLimits,
): AsyncGenerator<Uint8Array> {
  let bytes = 0;
  for await (const chunk of file.stream as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    refuseBytes(bytes, form.purpose(), limits);
    yield chunk;
  }
  await form.complete;
  const purpose = form.purpose();
  if (purpose === null) throw missing('purpose');
  refuseBytes(bytes, purpose, limits);
}

function refuseBytes(bytes: number, purpose: UploadPurpose | null, limits: UploadLimits): void {
  const limit = purpose === 'batch' ? limits.maxBatchFileBytes : limits.maxFileBytes;
  if (bytes > limit) throw tooLarge(limit);
}

function refuseLength(incoming: IncomingMessage, limit: number): void {
  const length = Number(incoming.headers['content-length'] ?? 0);
  if (length > limit + FORM_OVERHEAD) throw tooLarge(limit);
}

function readForm(incoming: IncomingMessage): Form {
  const parser = openParser(incoming);
  const file = Promise.withResolvers<FilePart | null>();
  const complete = Promise.withResolvers<void>();
  // Whoever waits for them sees the rejection; nobody may be waiting yet.
  file.promise.catch(() => undefined);
  complete.promise.catch(() => undefined);
  let part: FilePart | null = null;
  let purpose: UploadPurpose | null = null;

  function stop(): void {
    incoming.unpipe(parser);
    part?.stream.destroy();
  }
  function fail(error: SluiceError): void {
    file.reject(error);
    complete.reject(error);
    incoming.unpipe(parser);
    part?.stream.destroy(error);
  }
  parser.on('file', (name, stream, filename) => {
    // A part cut short emits this although `complete` already says so; unheard it would end the process.
    stream.on('error', () => undefined);
    const wrong = wrongPart(name, filename) ?? (part === null ? null : secondFile());
    if (wrong !== null) {
      stream.resume();
      fail(wrong);
      return;
    }
    part = { stream, filename };
    file.resolve(part);
  });
  parser.on('field', (name, value) => {
    if (name === 'file') fail(notAFile());
    if (name !== 'purpose') return;
    if (isPurpose(value) && purpose === null) purpose = value;
    else fail(wrongPurpose(value, purpose !== null));
  });
  for (const event of ['fieldsLimit', 'partsLimit'] as const) {
    parser.on(event, () => fail(malformed('it has too many fields')));
  }
  parser.on('error', (error) => fail(malformed(describeError(error))));
  parser.on('finish', () => {
    file.resolve(null);
    complete.resolve();
  });
  incoming.once('close', () => {
    if (!incoming.readableEnded) fail(clientClosed(incoming.errored));
  });
  // Node emits it only when somebody listens; `close`, which always follows, is what counts.
  incoming.once('error', () => undefined);
  incoming.pipe(parser);
  return { file: file.promise, complete: complete.promise, purpose: () => purpose, stop };
}

function openParser(incoming: IncomingMessage): BusboyInstance {
  const type = incoming.headers['content-type'] ?? '';
  if (!/^multipart\/form-data\s*;/i.test(type)) {
    throw invalidInput(
      'invalid_content_type',
      `A file is uploaded as multipart/form-data with the fields 'file' and 'purpose'; got '${type.slice(0, 100)}'.`,
      { param: 'file' },
    );
  }
  try {
    return Busboy({
      headers: { ...incoming.headers, 'content-type': type },
      limits: FORM_LIMITS,
      isPartAFile: (_name, _type, filename) => filename !== undefined,
    });
  } catch (cause) {
    throw malformed(describeError(cause));
  }
}

function isPurpose(text: string): text is UploadPurpose {
  return (UPLOAD_PURPOSES as readonly string[]).includes(text);
}

function wrongPart(name: string, filename: string): SluiceError | null {
  if (name !== 'file') {
    return invalidInput('invalid_form', `Only the field 'file' may be a file, not '${name}'.`, {
      param: name,
    });
  }
  if (filename === '') {
    return invalidInput('invalid_filename', "The part 'file' must have a filename.", {
      param: 'file',
    });
  }
  if (filename.length <= MAX_FILENAME) return null;
  return invalidInput(
    'invalid_filename',
    `A filename may have at most ${MAX_FILENAME} characters; got ${filename.length}.`,
    { param: 'file' },
  );
}

function notAFile(): SluiceError {
  return invalidInput('invalid_filename', "The part 'file' must be a file with a filename.", {
    param: 'file',
  });
}

function secondFile(): SluiceError {
  return invalidInput('invalid_form', 'One file is uploaded at a time; this form has several.', {
    param: 'file',
  });
}

function wrongPurpose(value: string, again: boolean): SluiceError {
  if (again) {
    return invalidInput('invalid_value', "'purpose' was given twice.", { param: 'purpose' });
  }
  const allowed = UPLOAD_PURPOSES.join(', ');
  const message = `Invalid 'purpose': it must be one of ${allowed}; got '${value.slice(0, 100)}'.`;
  return invalidInput('invalid_value', message, { param: 'purpose' });
}

function missing(param: string): SluiceError {
  return invalidInput('missing_required_parameter', `Missing required parameter: '${param}'.`, {
    param,
  });
}

function malformed(reason: string): SluiceError {
  return invalidInput(
    'invalid_form',
    `The multipart form is not complete or not valid: ${reason}`,
    {
      param: 'file',
    },
  );
}

function tooLarge(limit: number): SluiceError {
  return invalidInput(
    'content_size_limit_exceeded',
    `Maximum content size limit exceeded. The content size surpasses the allowed limit of ${limit} bytes.`,
    { param: 'file', status: 413 },
  );
}
