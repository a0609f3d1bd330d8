import { createHash } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { Busboy } from '@fastify/busboy';
import { clientClosed } from './body.ts';
import { sha256 } from './ids.ts';

/** More fields than any of our forms has: such a form is refused anyway, and must not fill the memory before. */
const FORM_LIMITS = { fields: 64, fieldSize: 8_192, parts: 128, headerSize: 16_384 } as const;
/** A handler may answer once it has what it needs; the last bytes behind that are at hand. */
const REST_MS = 1_000;

/** Takes a body's bytes as they pass. */
interface Sink {
  write(chunk: Buffer): void;
  /** After the last byte: hex, or null for a form that is not one. */
  end(): Promise<string | null>;
}

/**
 * Listens to a body that a handler is going to read, and returns how to get its print once that handler is done:
 * null when the body was not read to its end. Nothing is held in memory, and the reading is not begun here.
 */
export function watchBody(incoming: IncomingMessage): () => Promise<string | null> {
  const sink = openSink(incoming);
  // Paused by hand, so that the listener alone does not set the bytes flowing before the handler reads them.
  incoming.pause();
  incoming.on('data', (chunk: Buffer) => sink.write(chunk));
  return async function print() {
    if (!incoming.readableEnded) await readRest(incoming);
    return incoming.readableEnded ? sink.end() : null;
  };
}

/** Reads a whole body for nothing but its print. Throws when the client hangs up. */
export async function printBody(incoming: IncomingMessage): Promise<string | null> {
  const sink = openSink(incoming);
  try {
    for await (const chunk of incoming.iterator({ destroyOnReturn: false })) sink.write(chunk);
  } catch (cause) {
    throw clientClosed(cause);
  }
  return sink.end();
}

/** Whether the body may be of any size, so that its print is made as it streams. */
export function isStreamed(incoming: IncomingMessage): boolean {
  return /^(?:multipart\/|application\/(?:x-ndjson|jsonl|octet-stream))/i.test(
    incoming.headers['content-type'] ?? '',
  );
}

async function readRest(incoming: IncomingMessage): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, REST_MS);
  for (const event of ['end', 'close', 'error']) incoming.once(event, () => resolve());
  incoming.resume();
  await promise;
  clearTimeout(timer);
}

function openSink(incoming: IncomingMessage): Sink {
  const type = incoming.headers['content-type'] ?? '';
  return /^multipart\/form-data\s*;/i.test(type) ? formSink(type) : rawSink();
}

function rawSink(): Sink {
  const hash = createHash('sha256');
  return {
    write: (chunk) => void hash.update(chunk),
    end: () => Promise.resolve(hash.digest('hex')),
  };
}

/** A client writes a form anew for each try, with another boundary: so its fields and files are what counts. */
function formSink(type: string): Sink {
  const found: string[] = [];
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const parser = openParser(type);
  if (parser === null) return { write: () => undefined, end: () => Promise.resolve(null) };
  parser.on('field', (name, value) => found.push(JSON.stringify([name, value])));
  parser.on('file', (name, stream, filename) => {
    const hash = createHash('sha256');
    stream.on('data', (chunk: Buffer) => hash.update(chunk));
    stream.once('end', () => found.push(JSON.stringify([name, filename, hash.digest('hex')])));
    // The parser says the same, which decides; unheard it would end the process.
    stream.on('error', () => undefined);
  });
  parser.on('finish', () => resolve(true));
  for (const event of ['error', 'fieldsLimit', 'partsLimit'] as const) {
    parser.on(event, () => resolve(false));
  }
  let broken = false;
  void promise.then((isWhole) => (broken = !isWhole));
  return {
    write(chunk) {
      if (!broken) parser.write(chunk);
    },
    async end() {
      parser.end();
      return (await promise) ? sha256(found.toSorted().join('\n')) : null;
    },
  };
}

function openParser(type: string) {
  try {
    return Busboy({
      headers: { 'content-type': type },
      limits: FORM_LIMITS,
      isPartAFile: (_name, _type, filename) => filename !== undefined,
    });
  } catch {
    return null; // a content type without a boundary, which the handler refuses with a reason
  }
}
