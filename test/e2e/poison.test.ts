import { afterAll, expect, test } from 'vitest';
import {
  createBatch,
  download,
  makeInput,
  parseLines,
  requestLine,
  say,
  untilFinal,
  upload,
} from '../support/batch.ts';
import { requireNothingLeft, makeFolder, startSluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

/** Starts an engine again at the same address whenever it dies of a request with this text. */
async function startMortalEngine(poison: string) {
  let deaths = 0;
  let isOver = false;
  async function start(port = 0): Promise<VllmProcess> {
    const engine = await startVllmProcess({ flags: ['--profile', 'zero'], port });
    await engine.setConfig({ latency_ms: 100 });
    await engine.setFaults([{ kind: 'exit', match: poison }]);
    return engine;
  }
  let engine = await start();
  const { url, port } = engine;
  async function keepUp(): Promise<void> {
    while (!isOver) {
      await engine.exited;
      if (isOver) return;
      deaths += 1;
      engine = await start(port);
    }
  }
  const kept = keepUp();
  return {
    url,
    deaths: () => deaths,
    async [Symbol.asyncDispose]() {
      isOver = true;
      await engine.close();
      await kept;
    },
  };
}

test('a line that kills its engine is found, and the rest completes', async () => {
  await using engine = await startMortalEngine('POISON');
  await using folder = await makeFolder();
  await using sluice = await startSluice({ dataDir: folder.path, engines: [engine.url] });
  const input = makeInput(200);
  const lines = input.text.trim().split('\n');
  const messages = [{ role: 'user', content: 'POISON' }];
  lines[83] = requestLine('line-83', JSON.stringify({ model: 'sim-model', messages }));
  const file = await upload(sluice.url, `${lines.join('\n')}\n`);
  const begun = performance.now();
  const { id } = await createBatch(sluice.url, file, { maxConcurrency: 64 });
  const batch = await untilFinal(sluice.url, id, 150_000);
  const seconds = ((performance.now() - begun) / 1_000).toFixed(1);
  say(`the engine died ${engine.deaths()} times in ${seconds} s`);
  expect(batch.status).toBe('completed');
  expect(batch.request_counts).toEqual({ total: 200, completed: 199, failed: 1 });
  const [output, error] = await Promise.all(
    [batch.output_file_id, batch.error_file_id].map(async (each) =>
      parseLines(await download(sluice.url, each)),
    ),
  );
  expect(error).toMatchObject([
    { custom_id: 'line-83', response: null, error: { code: 'engine_crashed' } },
  ]);
  const answered = (output ?? []).map((line) => line.custom_id);
  expect(answered, 'every other line once, in input order').toEqual(
    input.customIds.filter((customId) => customId !== 'line-83'),
  );
  expect(engine.deaths()).toBeLessThanOrEqual(12);
}, 180_000);
