import { expect, test } from 'vitest';
import { createEstimator } from '../../src/domain/estimate.ts';

function estimate(...bodies: Record<string, unknown>[]) {
  const estimator = createEstimator();
  for (const body of bodies) estimator.add(body);
  return estimator.estimate;
}

test.for([
  [{ messages: [{ content: 'x'.repeat(400) }] }, 100],
  [{ prompt: ['abcd', 'efgh'] }, 2],
  [{ prompt: [[1, 2, 3], [4]] }, 4],
  [{ input: 'abcde' }, 2],
  [{ query: 'abcd', documents: ['abcd', { text: 'abcd' }] }, 3],
  [{ text_1: 'abcd', text_2: ['abcd'] }, 2],
  [{ messages: [], user: 'x'.repeat(400), metadata: { a: 'x'.repeat(400) } }, 0],
  [
    {
      messages: [
        {
          content: [{ text: 'abcd' }, { image_url: { url: `data:image/png,${'x'.repeat(400)}` } }],
        },
      ],
    },
    1,
  ],
] as const)('%j has about %i tokens', ([body, tokens]) => {
  expect(estimate(body).inputTokens).toBe(tokens);
});

test('what answers may have is summed where lines limit it', () => {
  const bodies = [
    { max_tokens: 5 },
    { max_completion_tokens: 7, max_tokens: 100, n: 3 },
    { max_output_tokens: 11 },
    {},
    { max_tokens: -1 },
    { max_tokens: '9' },
  ];
  expect(estimate(...bodies)).toEqual({ inputTokens: 0, maxOutputTokens: 37, unlimited: 3 });
});

test('a body that nests without end is no trouble', () => {
  const nested: unknown = JSON.parse(`${'['.repeat(5_000)}"abcd"${']'.repeat(5_000)}`);
  expect(estimate({ input: nested }).inputTokens).toBe(0);
});
