import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  expectExact,
  makeInput,
  readJob,
  submit,
  untilAnswered,
  untilFinal,
} from '../support/batch.ts';
import { requireNothingLeft } from '../support/server.ts';
import { openSite } from '../support/site.ts';
import type { Site } from '../support/site.ts';
import { until } from '../support/until.ts';

let site: Site;
beforeAll(async () => {
  site = await openSite({ flags: ['--profile', 'small'] });
});
afterAll(async () => {
  await site[Symbol.asyncDispose]();
  requireNothingLeft();
});

interface Provision {
  id: string;
  status: string;
}

async function provisionsOf(url: string, batch: string): Promise<Provision[]> {
  const job = batch.replace('batch_', 'job_');
  const answer = await fetch(`${url}/api/v1/provisions?job_id=${job}`);
  return ((await answer.json()) as { provisions: Provision[] }).provisions;
}

async function release(url: string, id: string, job: string): Promise<number> {
  const body = JSON.stringify({ job });
  const answer = await fetch(`${url}/api/v1/provisions/${id}/release`, { method: 'POST', body });
  await answer.body?.cancel();
  return answer.status;
}

test('a job whose provision is released three times gets a new one each time, and loses no line', async () => {
  const { engine, sluice } = site;
  const input = makeInput(200);
  // Each provision answers so many and then hangs, so that the job cannot end before it is released.
  const SHARE = 40;
  await engine.setFaults([{ kind: 'hang_headers', after: SHARE }]);
  const id = await submit(sluice.url, input, { maxConcurrency: 8 });

  for (const round of [1, 2, 3]) {
    await untilAnswered(sluice.url, id, round * SHARE);
    const [live] = await provisionsOf(sluice.url, id);
    expect(live?.status).toBe('serving');
    await engine.setFaults(round === 3 ? [] : [{ kind: 'hang_headers', after: SHARE }]);
    expect(await release(sluice.url, live?.id ?? '', 'rehome')).toBe(200);
    const served = round === 3 ? /^(?:serving|releas)/ : /^serving$/;
    await until(
      async () => {
        const [newest] = await provisionsOf(sluice.url, id);
        return newest?.id !== live?.id && served.test(newest?.status ?? '');
      },
      { timeoutMs: 60_000, what: 'another provision that serves' },
    );
  }
  const batch = await untilFinal(sluice.url, id, 60_000);

  expect(batch.status).toBe('completed');
  const { error } = await expectExact(sluice.url, batch, input);
  expect(error).toEqual([]);
  const { events } = await readJob(sluice.url, id);
  expect(events.filter(({ status }) => status === 'resource_preparing')).toHaveLength(1 + 3);
  await until(
    async () => {
      const all = await provisionsOf(sluice.url, id);
      return all.length === 4 && all.every(({ status }) => status === 'released');
    },
    { timeoutMs: 60_000, what: 'the release of all' },
  );
}, 90_000);

test("released with 'end' the job is cancelled, and its answers are kept", async () => {
  const { sluice } = site;
  const input = makeInput(600, { name: 'ended' });
  const id = await submit(sluice.url, input, { maxConcurrency: 8 });
  await untilAnswered(sluice.url, id, 10);
  const [live] = await provisionsOf(sluice.url, id);
  expect(await release(sluice.url, live?.id ?? '', 'end')).toBe(200);

  const batch = await untilFinal(sluice.url, id);
  expect(batch.status).toBe('cancelled');
  const { output, error } = await expectExact(sluice.url, batch, input);
  expect(output.length).toBeGreaterThanOrEqual(10);
  expect(new Set(error.map((line) => line.error?.code))).toEqual(new Set(['batch_cancelled']));
  await until(
    async () => (await provisionsOf(sluice.url, id)).every(({ status }) => status === 'released'),
    { timeoutMs: 60_000, what: 'the release' },
  );
}, 60_000);
