import type { Usage } from '../domain/job.ts';

export const NO_USAGE: Usage = {
  inputTokens: 0,
  cachedTokens: 0,
  outputTokens: 0,
  reasoningTokens: 0,
};

/**
 * Tokens that an engine counted for one answer, in the words of chat completions and embeddings (`prompt_tokens`,
 * `completion_tokens`) or of responses (`input_tokens`, `output_tokens`); what is absent or no whole number counts 0.
 */
export function readUsage(answer: unknown): Usage {
  const usage = member(answer, 'usage');
  return {
    inputTokens: count(usage, 'prompt_tokens', 'input_tokens'),
    cachedTokens: count(
      member(usage, 'prompt_tokens_details') ?? member(usage, 'input_tokens_details'),
      'cached_tokens',
    ),
    outputTokens: count(usage, 'completion_tokens', 'output_tokens'),
    reasoningTokens: count(
      member(usage, 'completion_tokens_details') ?? member(usage, 'output_tokens_details'),
      'reasoning_tokens',
    ),
  };
}

function member(value: unknown, name: string): unknown {
  if (typeof value !== 'object' || value === null) return undefined;
  return Object.hasOwn(value, name) ? (value as Record<string, unknown>)[name] : undefined;
}

function count(value: unknown, ...names: string[]): number {
  for (const name of names) {
    const found = member(value, name);
    if (typeof found === 'number' && Number.isSafeInteger(found) && found >= 0) return found;
  }
  return 0;
}
