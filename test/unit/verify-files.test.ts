import { createHash } from 'node:crypto';
import { Readable } from 'node:stream';
import { expect, test } from 'vitest';
import { checkFiles } from '../../src/main/verify-files.ts';
import type { Manifest, ManifestFile } from '../../src/domain/manifest.ts';
import { makeJob } from '../support/assembly.ts';
import type { MadeJob, MadeLine } from '../support/assembly.ts';

const KINDS = ['output', 'error', 'output', 'output', 'undone', 'output'] as const;
const LINES: MadeLine[] = Array.from({ length: 60 }, (_, n) => ({
  customId: `c${n}`,
  kind: KINDS[n % KINDS.length] ?? 'output',
  segment: 0,
  size: 20,
}));

interface Files {
  input: string | null;
  output: string | null;
  error: string | null;
}

function fileOf(name: string, text: string, lines: number): ManifestFile {
  const sha256 = createHash('sha256').update(text).digest('hex');
  return { file_id: `file-${name}`, filename: name, bytes: Buffer.byteLength(text), sha256, lines };
}

function manifestOf(job: MadeJob): Manifest {
  return {
    object: 'batch.manifest',
    schema_version: 1,
    tool: { name: 'sluice', version: '1' },
    job_id: job.jobId,
    batch_id: 'batch_made',
    status: 'cancelled',
    endpoint: '/v1/chat/completions',
    created_at: 0,
    started_at: 0,
    finished_at: 0,
    input: fileOf('input', job.input.toString(), 60),
    output: fileOf('output', job.output, 40),
    error: fileOf('error', job.error, 20),
    request_counts: { total: 60, completed: 40, failed: 20 },
    status_codes: [
      { status_code: 200, completed: 40, failed: 0 },
      { status_code: 400, completed: 0, failed: 10 },
      { status_code: null, completed: 0, failed: 10 },
    ],
    models: [],
    engines: [],
    usage: {
      input_tokens: 0,
      cached_tokens: 0,
      output_tokens: 0,
      reasoning_tokens: 0,
      total_tokens: 0,
    },
  };
}

async function checksOf(change: (files: Files, manifest: Manifest) => void) {
  const job = makeJob(LINES, 10);
  const files: Files = { input: job.input.toString(), output: job.output, error: job.error };
  const manifest = manifestOf(job);
  change(files, manifest);
  const open = (text: string | null) => (text === null ? null : Readable.from([Buffer.from(text)]));
  return checkFiles(manifest, {
    input: open(files.input),
    output: open(files.output),
    error: open(files.error),
  });
}

async function detailOf(name: string, change: (files: Files, manifest: Manifest) => void) {
  return (await checksOf(change)).find((check) => check.name === name)?.detail;
}

/** The names of the checks that fail, and what is said of the requests. */
async function wrongOf(change: (files: Files, manifest: Manifest) => void) {
  const checks = await checksOf(change);
  const requests = checks.find(({ name }) => name === 'requests')?.detail;
  return { wrong: checks.filter(({ ok }) => !ok).map(({ name }) => name), requests };
}

function lines(text: string | null): string[] {
  return (text ?? '').trimEnd().split('\n');
}

function edited(text: string | null, edit: (all: string[]) => string[]): string {
  return `${edit(lines(text)).join('\n')}\n`;
}

test('files that are whole have nothing wrong', async () => {
  expect(await wrongOf(() => undefined)).toEqual({
    wrong: [],
    requests: 'each of 60 is in one of the files once, in the order of the input',
  });
});

const cases: [string, (files: Files, manifest: Manifest) => void, string[], string][] = [
  [
    'a line that is missing',
    (files) => (files.output = edited(files.output, (all) => all.toSpliced(1, 1))),
    ['output', 'requests', 'status codes', 'counts'],
    'request 3, input line 4 (custom_id "c2") has no answer at its place: next is output line 2 (request 4), or error line 2 (request 5)',
  ],
  [
    'a line that is there twice',
    (files) => (files.output = edited(files.output, (all) => all.toSpliced(1, 0, all[0] ?? ''))),
    ['output', 'requests', 'status codes', 'counts'],
    'output line 2 (custom_id "c0") is there twice, or out of order',
  ],
  [
    'lines that changed places',
    (files) => (files.error = edited(files.error, ([a = '', b = '', ...all]) => [b, a, ...all])),
    ['error', 'requests'],
    'request 2, input line 3 (custom_id "c1") has no answer at its place: next is output line 2 (request 3), or error line 1 (request 5)',
  ],
  [
    'a line in both files',
    (files) => (files.error = edited(files.error, (all) => [lines(files.output)[0] ?? '', ...all])),
    ['error', 'requests', 'status codes', 'counts'],
    'request 1, input line 1 (custom_id "c0") is in both files: output line 1 and error line 1',
  ],
  [
    'a line too many at the end',
    (files) =>
      (files.output = `${files.output}${lines(files.output).at(-1)?.replace('_59"', '_60"').replace(':200,', ':503,')}\n`),
    ['output', 'requests', 'status codes', 'counts'],
    'output line 41 answers no request of the input',
  ],
  [
    'a custom_id that was changed',
    (files) => (files.output = files.output?.replace('"c3"', '"x3"') ?? null),
    ['output', 'requests'],
    'output line 3 has the custom_id "x3", not that of request 4, input line 5 (custom_id "c3")',
  ],
  [
    'a line that was cut',
    (files) => (files.output = files.output?.slice(0, -20) ?? null),
    ['output', 'requests'],
    'output line 40 is no finished line',
  ],
  [
    'a line that is no JSON',
    (files) => (files.output = edited(files.output, (all) => all.with(0, 'x'))),
    ['output', 'requests', 'status codes'],
    'output line 1 is no finished line',
  ],
  [
    'a status that was changed',
    (files) =>
      (files.output = files.output?.replace('"status_code":200', '"status_code":201') ?? null),
    ['output', 'status codes'],
    'each of 60 is in one of the files once, in the order of the input',
  ],
  [
    'one byte of an answer that was changed',
    (files) => (files.output = files.output?.replace('xxx', 'xyx') ?? null),
    ['output'],
    'each of 60 is in one of the files once, in the order of the input',
  ],
  [
    'lines that are missing at the end',
    (files) => {
      files.output = edited(files.output, (all) => all.slice(0, -1));
      files.error = edited(files.error, (all) => all.slice(0, -1));
    },
    ['output', 'error', 'requests', 'status codes', 'counts'],
    'request 59, input line 74 (custom_id "c58") has no answer at its place: no line is left',
  ],
  [
    'an input that is another one',
    (files) => (files.input = files.input?.replace('"c7"', '"d7"') ?? null),
    ['input', 'requests'],
    'error line 3 has the custom_id "c7", not that of request 8, input line 10 (custom_id "d7")',
  ],
  [
    'an input that is gone',
    (files) => (files.input = null),
    ['input'],
    'each of 60 is in one of the files once, by its number, since the input is gone',
  ],
  [
    'an input that is gone, and a line that is missing',
    (files) => {
      files.input = null;
      files.error = edited(files.error, (all) => all.toSpliced(0, 1));
    },
    ['input', 'error', 'requests', 'status codes', 'counts'],
    'request 2 has no answer at its place: next is output line 2 (request 3), or error line 1 (request 5)',
  ],
  [
    'a request that is in no file, of which the manifest knows nothing',
    (files) => {
      files.input = null;
      files.error = edited(files.error, (all) => all.slice(0, -1));
    },
    ['input', 'error', 'requests', 'status codes', 'counts'],
    'request 59 has no answer at its place: next is output line 40 (request 60)',
  ],
  [
    'a manifest that counts otherwise',
    (_files, manifest) => (manifest.request_counts = { total: 60, completed: 41, failed: 19 }),
    ['counts'],
    'each of 60 is in one of the files once, in the order of the input',
  ],
];

test.for(cases)('%s is told', async ([, change, wrong, requests]) => {
  expect(await wrongOf(change)).toEqual({ wrong, requests });
});

test('requests that no file has, because the input was changed, are a fact, and no fault', async () => {
  const job = makeJob(LINES, 10);
  const kept = lines(job.error).filter((line) => !line.includes('"response":null'));
  const error = edited(job.error, () => kept);
  const unnamed = 20 - kept.length;
  expect(unnamed).toBe(10);
  function change(files: Files, manifest: Manifest): void {
    files.input = null;
    files.error = error;
    manifest.error = fileOf('error', error, kept.length);
    manifest.status_codes = manifest.status_codes.slice(0, 2);
  }
  expect(await wrongOf(change)).toEqual({
    wrong: ['input'],
    requests: 'each of 50 is in one of the files once, by its number, since the input is gone',
  });
  const leftOut = `${unnamed} requests failed and are in no file: the input that names them was changed`;
  expect(await detailOf('left out', change)).toBe(leftOut);
  // One more than the manifest says.
  const { wrong } = await wrongOf((files, manifest) => {
    change(files, manifest);
    files.output = edited(files.output, (all) => all.toSpliced(0, 1));
  });
  expect(wrong).toEqual(['input', 'output', 'requests', 'status codes', 'counts']);
});
