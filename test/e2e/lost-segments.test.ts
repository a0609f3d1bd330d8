import { open, readdir, rename, rm, stat, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  expectExact,
  makeInput,
  openaiClient,
  readJob,
  submit,
  untilAnswered,
  untilFinal,
} from '../support/batch.ts';
import { requireNothingLeft } from '../support/server.ts';
import type { TestFolder } from '../support/server.ts';
import { openSite } from '../support/site.ts';
import type { Site } from '../support/site.ts';
import { until } from '../support/until.ts';

const LINES = 1_500;

async function flipByte(path: string): Promise<void> {
  const { size } = await stat(path);
  const file = await open(path, 'r+');
  try {
    const byte = Buffer.alloc(1);
    const at = Math.floor(size / 2);
    await file.read(byte, 0, 1, at);
    byte.writeUInt8(byte.readUInt8(0) ^ 1, 0);
    await file.write(byte, 0, 1, at);
  } finally {
    await file.close();
  }
}

/** Paths below a folder that have this in them. */
async function find(folder: string, piece: string): Promise<string[]> {
  const all = await readdir(folder, { recursive: true });
  return all.filter((path) => path.includes(piece)).map((path) => join(folder, path));
}

async function firstSegment(folder: TestFolder, id: string): Promise<string> {
  const [path] = await find(folder.path, `${id.replace('batch_', 'job_')}/segments/`);
  if (path === undefined) throw new Error('there are answers and no segment');
  return path;
}

/** The states that a job came through, and what its history says of lost answers. */
async function historyOf(url: string, id: string) {
  const { events } = await readJob(url, id);
  const lost = events.filter(({ message }) => /lost/.test(message));
  return { states: events.map(({ status }) => status), lost: lost.map(({ message }) => message) };
}

describe('a segment that proves wrong when the files are written', () => {
  let site: Site;
  beforeAll(async () => {
    site = await openSite();
  });
  afterAll(async () => {
    await site[Symbol.asyncDispose]();
    requireNothingLeft();
  });

  /** A job that has its first answers in storage; `hasten` lets the rest come at once, `hold` not before long. */
  async function running(name: string) {
    const { url, engine, folder, sluice } = site;
    await engine.setConfig({ latency_ms: 100 });
    const before = await engine.counts();
    const input = makeInput(LINES, { name });
    const id = await submit(url, input, { maxConcurrency: 50 });
    await untilAnswered(url, id, 1);
    return {
      url,
      sluice,
      folder,
      input,
      id,
      hasten: () => engine.setConfig({ latency_ms: 0 }),
      hold: () => engine.setConfig({ latency_ms: 10_000 }),
      /** Lines of this job that the engine was asked twice. */
      repeated: async () => (await engine.counts()).repeated - before.repeated,
    };
  }

  test.each([
    ['is missing', (path: string) => rm(path), /: is missing\.$/],
    ['is cut short', (path: string) => truncate(path, 1_000), /: only \d+ of \d+ bytes\.$/],
    ['has a byte that flipped', flipByte, /: (checksum is|line|an entry|ends within) ?.*\.$/],
  ] as const)(
    'when it %s, its lines are asked again, and only those',
    async (name, damage, reason) => {
      const job = await running(name);
      await damage(await firstSegment(job.folder, job.id));
      await job.hasten();
      const batch = await untilFinal(job.url, job.id);
      expect(batch.status).toBe('completed');
      const { error } = await expectExact(job.url, batch, job.input);
      expect(error).toEqual([]);
      const { states, lost } = await historyOf(job.url, job.id);
      const asked = await job.repeated();
      expect(asked).toBeGreaterThan(0);
      expect(asked).toBeLessThan(LINES);
      expect(lost[0]).toMatch(/^Answers are lost in storage: segment [0-9a-f]+, bytes \d+ to \d+/);
      expect(lost[0]).toMatch(reason);
      expect(lost[1]).toBe(`${asked} requests whose answers are lost are asked again.`);
      const back = states.indexOf('finalizing');
      expect(states.indexOf('resource_preparing', back)).toBeGreaterThan(back);
      expect(batch.finalizing_at).toBeGreaterThanOrEqual(batch.in_progress_at ?? Infinity);
    },
  );

  test('of a cancelled batch its lines count as never answered, and nothing is asked', async () => {
    const job = await running('cancelled');
    await job.hold();
    const { request_counts: counts } = await untilAnswered(job.url, job.id, 1);
    await rm(await firstSegment(job.folder, job.id));
    await openaiClient(job.url).batches.cancel(job.id);
    const batch = await untilFinal(job.url, job.id);
    expect(batch.status).toBe('cancelled');
    const { error } = await expectExact(job.url, batch, job.input);
    expect(new Set(error.map((line) => line.error?.code))).toEqual(new Set(['batch_cancelled']));
    expect(error.length).toBeGreaterThanOrEqual(counts?.completed ?? 0);
    expect((await historyOf(job.url, job.id)).lost).toHaveLength(1);
    expect(await job.repeated()).toBe(0);
  });

  test('storage that has not even the input is waited for, and nothing is asked again', async () => {
    const job = await running('away');
    await job.hold();
    const { input_file_id: name } = await openaiClient(job.url).batches.retrieve(job.id);
    const [input = ''] = await find(job.folder.path, `files/${name}`);
    const paths = [input, await firstSegment(job.folder, job.id)];
    const { request_counts: counts } = await untilAnswered(job.url, job.id, 1);
    for (const path of paths) await rename(path, `${path}-away`);
    await openaiClient(job.url).batches.cancel(job.id);
    // Of this job: the server may have said so of one before it.
    const said = await until(() =>
      job.sluice
        .logs()
        .find(
          ({ msg, jobId }) =>
            msg === 'output files cannot be written, trying again' &&
            jobId === job.id.replace('batch_', 'job_'),
        ),
    );
    expect(JSON.stringify(said)).toContain('Storage has neither all answers nor the input file.');
    const { error_message: reason } = await readJob(job.url, job.id);
    expect(reason).toMatch(/^The output files cannot be written: Storage has neither/);
    for (const path of paths) await rename(`${path}-away`, path);
    const batch = await untilFinal(job.url, job.id);
    expect(batch.status).toBe('cancelled');
    const { output } = await expectExact(job.url, batch, job.input);
    expect(output.length).toBeGreaterThanOrEqual(counts?.completed ?? 0);
    expect((await historyOf(job.url, job.id)).lost).toEqual([]);
    expect(await job.repeated()).toBe(0);
  });
});
