import { afterAll, expect, test } from 'vitest';
import { createBatch, requestLine, say, untilFinal, upload } from '../support/batch.ts';
import { requireNothingLeft, makeFolder, startSluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

const PROMPTS = 20;
const LINES = 400;
/** 1,000 tokens by the simulator's count: of 20 such prompts a cache of 400 blocks holds six. */
const PROMPT_CHARS = 4_000;
const CACHE = ['--profile', 'small', '--set', 'num_gpu_blocks=400', '--max-num-seqs', '4'];

/** Lines that take turns at long system prompts, so that in their own order no cache holds what comes next. */
function interleaved(): string {
  return Array.from({ length: LINES }, (_, n) => {
    const system = `Prompt ${n % PROMPTS}. `.padEnd(PROMPT_CHARS, `rule ${n % PROMPTS}, `);
    const messages = [
      { role: 'system', content: system },
      { role: 'user', content: `Question ${n}` },
    ];
    const body = { model: 'sim-model', max_tokens: 16, messages };
    return requestLine(`line-${n}`, JSON.stringify(body));
  }).join('\n');
}

test('lines that begin alike are asked one after the other, so that prefix caches hit', async () => {
  await using first = await startVllmProcess({ flags: CACHE });
  await using second = await startVllmProcess({ flags: CACHE });
  await using folder = await makeFolder();
  const engines = [first.url, second.url];
  await using sluice = await startSluice({ dataDir: folder.path, engines });
  const file = await upload(sluice.url, interleaved());
  const { id } = await createBatch(sluice.url, file, { maxConcurrency: 4 });
  const batch = await untilFinal(sluice.url, id, 120_000);
  expect(batch.request_counts).toEqual({ total: LINES, completed: LINES, failed: 0 });
  const counts = await Promise.all([first.counts(), second.counts()]);
  const hits = counts.reduce((sum, { prefix_cache: cache }) => sum + cache.hits, 0);
  const queries = counts.reduce((sum, { prefix_cache: cache }) => sum + cache.queries, 0);
  say(`prefix caches hit ${((100 * hits) / queries).toFixed(1)} % of ${queries} tokens`);
  // 0.91 where nothing else runs. A busy machine reads more slowly than lines are waited for; unordered it would be 0.
  expect(hits / queries).toBeGreaterThan(0.4);
  for (const { requests } of counts) expect(requests).toBeGreaterThan(LINES / 5);
}, 150_000);
