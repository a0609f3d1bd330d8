import { setTimeout as sleep } from 'node:timers/promises';
import { APIError } from 'openai';
import type OpenAI from 'openai';
import { afterAll, expect, test } from 'vitest';
import {
  createBatch,
  expectExact,
  makeInput,
  openaiClient,
  say,
  untilFinal,
  upload,
} from '../support/batch.ts';
import type { Input } from '../support/batch.ts';
import { chaosRandom, LONG } from '../support/chaos.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

const RACES = LONG ? 1_000 : 36;
const AT_ONCE = 6;

/** Cancels a batch; one that was over already refuses. */
async function cancel(url: string, id: string): Promise<void> {
  try {
    await openaiClient(url).batches.cancel(id);
  } catch (error) {
    if (!(error instanceof APIError) || error.status !== 400) throw error;
  }
}

/** How a batch ended. Cancelled before its input was read it has no lines, and so no files. */
async function expectEachLineOnce(url: string, batch: OpenAI.Batch, input: Input): Promise<string> {
  const { status, request_counts: counts } = batch;
  if (status !== 'cancelled' || counts?.total !== 0) {
    await expectExact(url, batch, input);
    return status === 'cancelled' && counts?.completed ? 'cancelled after answers' : status;
  }
  if (batch.output_file_id ?? batch.error_file_id) throw new Error(`files of no line: ${batch.id}`);
  return 'unread';
}

test(`cancel races completion ${RACES} times`, async () => {
  const random = chaosRandom();
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await using folder = await makeFolder();
  await using sluice = await startSluice({ dataDir: folder.path, engines: [engine.url] });
  const inputs: { input: Input; file: string }[] = [];
  for (const lines of [1, 2, 3]) {
    const input = makeInput(lines, { name: `of${lines}` });
    inputs.push({ input, file: await upload(sluice.url, input.text) });
  }
  const ends: Record<string, number> = {};
  /** Of an undisturbed batch, ms. Each win of one side gives the other one more time: on any machine both win. */
  let usual = 400;

  async function race(n: number): Promise<void> {
    const chosen = inputs[n % 3];
    if (chosen === undefined) throw new Error('no input');
    const { input, file } = chosen;
    const { id } = await createBatch(sluice.url, file);
    // Anywhere from its first moment to a while after its usual end.
    await sleep(1.3 * usual * random());
    await cancel(sluice.url, id);
    const batch = await untilFinal(sluice.url, id, 60_000);
    usual *= batch.status === 'completed' ? 0.85 : 1.15;
    const end = await expectEachLineOnce(sluice.url, batch, input);
    ends[end] = (ends[end] ?? 0) + 1;
  }

  let next = 0;
  async function runLane(): Promise<void> {
    while (next < RACES) {
      next += 1;
      await race(next);
    }
  }
  const begun = performance.now();
  await Promise.all(Array.from({ length: AT_ONCE }, runLane));
  const seconds = ((performance.now() - begun) / 1_000).toFixed(1);
  say(`${RACES} races in ${seconds} s: ${JSON.stringify(ends)}`);
  const { completed = 0, unread = 0 } = ends;
  expect(completed, 'won by completion').toBeGreaterThan(RACES / 20);
  expect(RACES - completed - unread, 'won by cancel').toBeGreaterThan(RACES / 20);
  expect((await engine.counts()).in_flight).toBe(0);
  expect((await sluice.stop()).code).toBe(0);
});
