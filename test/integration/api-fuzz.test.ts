import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as fc from 'fast-check';
import { afterAll, expect, test } from 'vitest';
import { createBatch, openaiClient, say, upload as uploadText } from '../support/batch.ts';
import { sendRaw } from '../support/raw-http.ts';
import type { Outcome } from '../support/raw-http.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { wildRequest } from '../support/wild-requests.ts';

afterAll(requireNothingLeft);

/** `FUZZ_LONG=1` asks for two minutes instead of seconds. */
const SECONDS = process.env['FUZZ_LONG'] === '1' ? 120 : 4;
const ANSWER_MS = 5_000;
const AT_ONCE = 32;
/** What a warm process may take more than before: its heap moves, a leak of a request's bytes would show far above. */
const GROWTH_MIB = 48;

/** Resident memory of a process in MiB. */
async function residentMib(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(text)?.[1]) / 1_024;
}

function wrongWith(bytes: Buffer, { status, text, hung }: Outcome): string | null {
  const shown = `${JSON.stringify(bytes.subarray(0, 2_000).toString('latin1'))} → ${text.slice(0, 1_000)}`;
  if (hung) return `not answered within ${ANSWER_MS} ms: ${shown}`;
  if (status !== null && status >= 500) return `${status}: ${shown}`;
  const [head = '', body = ''] = text.split('\r\n\r\n');
  if (status === null || status < 400 || !/^content-type: application\/json/im.test(head))
    return null;
  if (bytes.toString('latin1').startsWith('HEAD ')) return null;
  // Bull Board is a program of its own, with answers of its own.
  if (bytes.toString('latin1').includes(' /admin/queues')) return null;
  return /^\{"error":\{"message":".+","type":"\w+","param":.+,"code":"\w+"\}\}$/s.test(body)
    ? null
    : `no envelope: ${shown}`;
}

/** Stored bytes that no file of the API has, and files that were begun and not ended. */
async function leftIn(storage: string, url: string): Promise<string[]> {
  const known = new Set<string>();
  for await (const { id } of openaiClient(url).files.list()) known.add(id);
  const stored = await readdir(join(storage, 'files'));
  const begun = await readdir(join(storage, '.tmp'));
  return [...stored.filter((name) => !known.has(name)), ...begun];
}

test(
  'whatever is sent, the API answers, without a 500, and keeps neither memory nor files',
  async () => {
    await using folder = await makeFolder();
    await using sluice = await startSluice({
      dataDir: folder.path,
      engines: ['http://127.0.0.1:9'],
      roles: ['api'],
    });
    const file = await uploadText(sluice.url, '{}\n');
    const { id: batch } = await createBatch(sluice.url, file);
    const { id: upload } = await openaiClient(sluice.url).uploads.create({
      filename: 'u',
      purpose: 'batch',
      bytes: 1e6,
      mime_type: 'application/jsonl',
    });
    const ids = { file, batch, job: batch.replace('batch_', 'job_'), upload };
    const counts = new Map<number | null, number>();
    const memory: number[] = [];
    let sent = 0;

    await fc.assert(
      fc.asyncProperty(
        fc.array(wildRequest(ids), { minLength: AT_ONCE, maxLength: AT_ONCE }),
        async (requests) => {
          const outcomes = await Promise.all(
            requests.map((bytes) => sendRaw(sluice.url, bytes, ANSWER_MS)),
          );
          for (const [n, outcome] of outcomes.entries()) {
            counts.set(outcome.status, (counts.get(outcome.status) ?? 0) + 1);
            expect(wrongWith(requests[n] ?? Buffer.alloc(0), outcome)).toBeNull();
          }
          sent += requests.length;
          memory.push(await residentMib(sluice.pid));
        },
      ),
      { numRuns: 1e9, interruptAfterTimeLimit: SECONDS * 1_000, markInterruptAsFailure: false },
    );

    // The first half warms up: code is compiled, the heap finds its size.
    const [before = 0, after = 0] = [0.5, 1].map((part) => {
      const upTo = Math.floor(memory.length * part);
      return Math.min(...memory.slice(Math.floor(upTo * 0.8), upTo));
    });
    const statuses = [...counts].map(([status, count]) => `${status ?? 'closed'} ${count}`);
    say(
      `${sent} wild requests in ${SECONDS} s: ${statuses.toSorted().join(', ')}; ${Math.round(before)} → ${Math.round(after)} MiB`,
    );
    expect(sent).toBeGreaterThan(SECONDS * 20);
    expect(counts.get(200), 'requests that got through').toBeGreaterThan(0);
    expect(counts.get(400), 'requests that were refused').toBeGreaterThan(0);
    expect(after - before, 'growth in MiB').toBeLessThan(GROWTH_MIB);

    // What broke off last may still be on its way out.
    const left = () => leftIn(join(folder.path, 'storage'), sluice.url);
    await until(async () => (await left()).length === 0).catch(() => undefined);
    expect(await left(), 'files that nobody knows').toEqual([]);
    const { code } = await sluice.stop();
    expect(code).toBe(0);
  },
  (SECONDS + 60) * 1_000,
);
