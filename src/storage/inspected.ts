import { createHash } from 'node:crypto';
import type { Inspector, PutResult } from './contract.ts';

/** The same bytes, which the inspector sees as they pass; they end with what it throws. */
export async function* inspected(
  source: AsyncIterable<Uint8Array>,
  inspector: Inspector | undefined,
): AsyncGenerator<Uint8Array> {
  for await (const chunk of source) {
    inspector?.see(chunk);
    yield chunk;
  }
  inspector?.end();
}

/** Reads a source to its end. */
export async function digestOf(source: AsyncIterable<Uint8Array>): Promise<PutResult> {
  const digest = createHash('sha256');
  let bytes = 0;
  for await (const chunk of source) {
    digest.update(chunk);
    bytes += chunk.length;
  }
  return { bytes, sha256: digest.digest('hex') };
}
