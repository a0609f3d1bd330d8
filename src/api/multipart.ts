import type { IncomingMessage } from 'node:http';
import { Busboy } from '@fastify/busboy';
import type { BusboyFileStream, BusboyInstance } from '@fastify/busboy';
import { describeError, invalidInput } from '../domain/errors.ts';
import type { SluiceError } from '../domain/errors.ts';
import { clientClosed } from './body.ts';

/** Writes the file's bytes away; it must reject, and leave nothing, when the source rejects. */
export type Put<Stored> = (source: AsyncIterable<Uint8Array>) => Promise<Stored>;

/** Boundaries, part headers and fields beside the file: a body may be this much larger than its file. */
const FORM_OVERHEAD = 1024 * 1024;
const FORM_LIMITS = { fields: 32, fieldSize: 4_096, parts: 64, headerSize: 16_384 } as const;
/** A longer name would, percent-encoded, outgrow the header limit of those who download it. */
export const MAX_FILENAME = 255;

/** What a form has to be like. What fields it may have beside is its own to say. */
export interface FormRules {
  /** The one part that is a file. */
  file: string;
  /** How such a form is sent, for people. */
  usage: string;
  /** Whether the file has to have a name. */
  isNamed: boolean;
  /** Takes a field as it comes, in whatever order; returns what is wrong with it. */
  field(name: string, value: string): SluiceError | null;
  /** What is wrong, or missing, once the whole form with a file of so many bytes was read. */
  end(bytes: number): SluiceError | null;
  /** Most bytes of the file by the fields that came so far. */
  maxBytes(): number;
}

interface FilePart {
  stream: BusboyFileStream;
  filename: string;
}

interface Form {
  /** The file's part once its bytes begin, null when the form ends without one. */
  file: Promise<FilePart | null>;
  /** Resolves when the form's last byte was read; rejects as soon as it is known to be wrong. */
  complete: Promise<void>;
  /** Stops reading; what was not read stays in the request. */
  stop(): void;
}

/**
 * Streams the file of a multipart form through `put`; fields may come before or after it. The stream ends only once
 * the whole form was read and found right, so that an upload which is refused or breaks off is never stored. Throws
 * invalid input: 400 for a form that is wrong, 413 for a file over its limit.
 */
export async function receiveForm<Stored>(
  incoming: IncomingMessage,
  rules: FormRules,
  put: Put<Stored>,
): Promise<{ filename: string; stored: Stored }> {
  refuseLength(incoming, rules);
  const form = readForm(incoming, rules);
  try {
    const file = await form.file;
    if (file === null) throw missing(rules.file);
    refuseLength(incoming, rules);
    return { filename: file.filename, stored: await put(checkedBytes(form, file, rules)) };
  } finally {
    form.stop();
  }
}

async function* checkedBytes(
  form: Form,
  file: FilePart,
  rules: FormRules,
): AsyncGenerator<Uint8Array> {
  let bytes = 0;
  for await (const chunk of fileBytes(form, file, rules)) {
    bytes += chunk.length;
    refuseBytes(bytes, rules);
    yield chunk;
  }
  await form.complete;
  const wrong = rules.end(bytes);
  if (wrong !== null) throw wrong;
  refuseBytes(bytes, rules);
}

async function* fileBytes(form: Form, file: FilePart, rules: FormRules): AsyncGenerator<Buffer> {
  try {
    yield* file.stream as AsyncIterable<Buffer>;
  } catch (error) {
    // A part that is cut short breaks off before the form says, in words for people, what is wrong with it.
    await form.complete;
    throw malformed(describeError(error), rules);
  }
}

function refuseBytes(bytes: number, rules: FormRules): void {
  if (bytes > rules.maxBytes()) throw tooLarge(rules);
}

function refuseLength(incoming: IncomingMessage, rules: FormRules): void {
  const length = Number(incoming.headers['content-length'] ?? 0);
  if (length > rules.maxBytes() + FORM_OVERHEAD) throw tooLarge(rules);
}

function readForm(incoming: IncomingMessage, rules: FormRules): Form {
  const parser = openParser(incoming, rules);
  const file = Promise.withResolvers<FilePart | null>();
  const complete = Promise.withResolvers<void>();
  // Whoever waits for them sees the rejection; nobody may be waiting yet.
  file.promise.catch(() => undefined);
  complete.promise.catch(() => undefined);
  let part: FilePart | null = null;

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
  // A part need not have a name, whatever the types of the parser say.
  parser.on('file', (name: string | undefined, stream, filename) => {
    // A part cut short emits this although `complete` already says so; unheard it would end the process.
    stream.on('error', () => undefined);
    const wrong =
      wrongPart(name ?? '', filename, rules) ?? (part === null ? null : secondFile(rules));
    if (wrong !== null) {
      stream.resume();
      fail(wrong);
      return;
    }
    part = { stream, filename };
    file.resolve(part);
  });
  parser.on('field', (name: string | undefined, value) => {
    const wrong = name === rules.file ? notAFile(rules) : rules.field(name ?? '', value);
    if (wrong !== null) fail(wrong);
  });
  for (const event of ['fieldsLimit', 'partsLimit'] as const) {
    parser.on(event, () => fail(malformed('it has too many fields', rules)));
  }
  parser.on('error', (error) => fail(malformed(describeError(error), rules)));
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
  return { file: file.promise, complete: complete.promise, stop };
}

function openParser(incoming: IncomingMessage, rules: FormRules): BusboyInstance {
  const type = incoming.headers['content-type'] ?? '';
  if (!/^multipart\/form-data\s*;/i.test(type)) {
    const message = `${rules.usage}, and a boundary in its content type, which clients write by themselves; got '${type.slice(0, 100)}'.`;
    throw invalidInput('invalid_content_type', message, { param: rules.file });
  }
  try {
    return Busboy({
      headers: { ...incoming.headers, 'content-type': type },
      limits: FORM_LIMITS,
      isPartAFile: (_name, _type, filename) => filename !== undefined,
    });
  } catch (cause) {
    throw malformed(describeError(cause), rules);
  }
}

function wrongPart(name: string, filename: string, rules: FormRules): SluiceError | null {
  if (name !== rules.file) {
    const message = `Only the field '${rules.file}' may be a file, not '${name}'.`;
    return invalidInput('invalid_form', message, { param: name });
  }
  if (filename === '' && rules.isNamed) {
    const message = `The part '${rules.file}' must have a filename.`;
    return invalidInput('invalid_filename', message, { param: rules.file });
  }
  if (filename.length <= MAX_FILENAME) return null;
  return invalidInput(
    'invalid_filename',
    `A filename may have at most ${MAX_FILENAME} characters; got ${filename.length}.`,
    { param: rules.file },
  );
}

function notAFile({ file }: FormRules): SluiceError {
  const message = `The part '${file}' must be a file with a filename.`;
  return invalidInput('invalid_filename', message, { param: file });
}

function secondFile({ file }: FormRules): SluiceError {
  const message = 'One file is uploaded at a time; this form has several.';
  return invalidInput('invalid_form', message, { param: file });
}

export function missing(param: string): SluiceError {
  const message = `Missing required parameter: '${param}'.`;
  return invalidInput('missing_required_parameter', message, { param });
}

function malformed(reason: string, { file }: FormRules): SluiceError {
  const message = `The multipart form is not complete or not valid: ${reason}`;
  return invalidInput('invalid_form', message, { param: file });
}

function tooLarge(rules: FormRules): SluiceError {
  return invalidInput(
    'content_size_limit_exceeded',
    `Maximum content size limit exceeded. The content size surpasses the allowed limit of ${rules.maxBytes()} bytes.`,
    { param: rules.file, status: 413 },
  );
}
