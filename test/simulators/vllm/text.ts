import { fraction, seededRandom } from './digest.ts';
import type { Profile } from './profile.ts';

/** A text made of tokens; here a token is a word with the space before it. */
export interface Text {
  whole: string;
  tokens: number;
  /** The token with this index; all of them joined are `whole`. */
  piece(index: number): string;
  finish: 'stop' | 'length';
}

const POOL_WORDS = 1024;
const SYLLABLES = ['ba', 'den', 'fi', 'gor', 'ka', 'lum', 'mi', 'nos', 'pa', 'rel', 'su', 'tor'];

function poolWord(random: () => number): string {
  let word = ' ';
  for (let i = 0; i < 3; i += 1) word += SYLLABLES[Math.floor(random() * SYLLABLES.length)] ?? '';
  return word;
}

const random = seededRandom(20_240_607);
const WORDS = Array.from({ length: POOL_WORDS }, () => poolWord(random));
const POOL = WORDS.join('');
const OFFSETS = [0];
for (const word of WORDS) OFFSETS.push((OFFSETS.at(-1) ?? 0) + word.length);

/** `count` words of the endless repetition of the pool, from word `start`: slices, so 64 MiB cost no loop. */
function poolText(start: number, count: number): string {
  const end = start + count;
  const from = OFFSETS[start] ?? 0;
  if (end <= POOL_WORDS) return POOL.slice(from, OFFSETS[end]);
  const rounds = Math.floor(end / POOL_WORDS) - 1;
  return POOL.slice(from) + POOL.repeat(rounds) + POOL.slice(0, OFFSETS[end % POOL_WORDS]);
}

/** The answer to the body of that digest: it begins with the digest, so an answer proves its request. */
function generatedText(digest: string, choice: number, tokens: number): Text {
  const mark = `sim-${digest.slice(0, 16)}${choice === 0 ? '' : `-${choice}`}`;
  const start = (Number.parseInt(digest.slice(16, 22), 16) + choice) % POOL_WORDS;
  return {
    whole: mark + poolText(start, tokens - 1),
    tokens,
    piece: (index) => (index === 0 ? mark : (WORDS[(start + index - 1) % POOL_WORDS] ?? '')),
    finish: 'stop',
  };
}

/** A given text, never cut. */
export function givenText(whole: string): Text {
  const pieces = whole.match(/\s*\S+|\s+$/g) ?? [''];
  return { whole, tokens: pieces.length, piece: (index) => pieces[index] ?? '', finish: 'stop' };
}

/** What follows `ECHO:` in a prompt, if it is there: a client may so choose its answer. */
export function echoOf(prompt: string): string | undefined {
  const at = prompt.indexOf('ECHO:');
  if (at < 0) return undefined;
  return prompt.slice(prompt[at + 5] === ' ' ? at + 6 : at + 5);
}

/**
 * The answer to one choice of one prompt. A limit is used up (`length`) unless the draw of `early_stop`,
 * which depends on the body only, ends it before; without a limit the profile names the length.
 */
export function answerText(
  digest: string,
  choice: number,
  limit: number | undefined,
  profile: Profile,
): Text {
  const drawn = 2 * fraction(digest, 32) - 1;
  const swing =
    profile.answer_decades > 0
      ? 10 ** ((drawn * profile.answer_decades) / 2)
      : 1 + profile.answer_spread * drawn;
  const usual = Math.max(1, Math.round(profile.answer_tokens * swing));
  if (limit === undefined) return generatedText(digest, choice, usual);
  if (fraction(digest, 40) < profile.early_stop) {
    const tokens = Math.max(1, Math.ceil(limit * fraction(digest, 48)));
    return generatedText(digest, choice, tokens);
  }
  return { ...generatedText(digest, choice, limit), finish: 'length' };
}
