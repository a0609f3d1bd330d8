import { Buffer } from 'node:buffer';
import { TOKEN_CHARS } from './kv-cache.ts';

/** A prompt as the engine gets it. */
export interface Prompt {
  text: string;
  /** It came as token ids. */
  ids: boolean;
}

/**
 * Token ids as text, one token of the simulator's tokenizer each, so that they count as ids and share
 * KV blocks; ids that /tokenize gave for ASCII become that text again.
 */
function textOf(ids: readonly unknown[]): string {
  const bytes = Buffer.alloc(ids.length * TOKEN_CHARS);
  for (const [i, id] of ids.entries()) {
    bytes.writeUInt32LE(typeof id === 'number' ? id >>> 0 : 0, i * TOKEN_CHARS);
  }
  return bytes.toString('latin1');
}

/** One text or many, each a string or token ids; undefined when it is none of these. */
export function readPrompts(value: unknown): Prompt[] | undefined {
  if (typeof value === 'string') return [{ text: value, ids: false }];
  if (!Array.isArray(value) || value.length === 0) return undefined;
  const items: unknown[] = value;
  if (items.every((item) => typeof item === 'number')) return [{ text: textOf(items), ids: true }];
  const prompts: Prompt[] = [];
  for (const item of items) {
    if (typeof item === 'string') prompts.push({ text: item, ids: false });
    else if (Array.isArray(item)) prompts.push({ text: textOf(item), ids: true });
    else return undefined;
  }
  return prompts;
}
