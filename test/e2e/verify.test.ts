import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { copyFile, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { manifestKey } from '../../src/domain/file.ts';
import { jobIdOf } from '../../src/domain/job.ts';
import type { Manifest } from '../../src/domain/manifest.ts';
import { makeInput, openaiClient, requestLine, untilFinal, upload } from '../support/batch.ts';
import { makeFolder, requireNothingLeft, runCli, startSluice } from '../support/server.ts';
import type { Sluice, TestFolder } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

let folder: TestFolder;
let engine: VllmProcess;
let sluice: Sluice;
let batch: string;
let manifest: Manifest;

const GOOD = 300;
/** What an engine answers with 400; a line that is no JSON is never asked. */
const REFUSED = requestLine(
  'refused',
  '{"model":"sim-model","messages":[{"role":"user","content":"?"}],"max_tokens":-1}',
);
const TOTAL = GOOD + 2;

beforeAll(async () => {
  engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  folder = await makeFolder();
  sluice = await startSluice({ dataDir: folder.path, engines: [engine.url] });
  const text = `${REFUSED}\n${makeInput(GOOD).text}\n\nnonsense\n`;
  const wish = {
    input_file_id: await upload(sluice.url, text),
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    aibrix: { validation: 'lenient' },
  } as const;
  ({ id: batch } = await openaiClient(sluice.url).batches.create(wish));
  await untilFinal(sluice.url, batch);
  manifest = await readManifest();
});

afterAll(async () => {
  await sluice.stop();
  await engine.close();
  await folder[Symbol.asyncDispose]();
  requireNothingLeft();
});

function jobId(): string {
  return jobIdOf(batch) ?? '';
}

async function readManifest(): Promise<Manifest> {
  const answer = await fetch(`${sluice.url}/api/v1/jobs/${jobId()}/manifest`);
  expect(answer.status).toBe(200);
  return (await answer.json()) as Manifest; // what it holds is asserted
}

function stored(name: string): string {
  return join(folder.path, 'storage', 'files', name);
}

async function described(id: string) {
  const bytes = await readFile(stored(id));
  const sha256 = createHash('sha256').update(bytes).digest('hex');
  const lines = bytes
    .toString()
    .split('\n')
    .filter((line) => line.trim() !== '').length;
  return { file_id: id, bytes: bytes.length, sha256, lines };
}

async function checksOf(args: readonly string[], env: Record<string, string> = {}) {
  const { code, stdout, stderr } = await runCli(['verify', ...args, '--json'], env);
  expect(stderr).toBe('');
  const { ok, checks } = JSON.parse(stdout) as {
    ok: boolean;
    checks: { name: string; ok: boolean; detail: string }[];
  };
  expect(ok).toBe(code === 0);
  return { ok, wrong: checks.filter((check) => !check.ok), checks };
}

test('the manifest says what the batch wrote, from what and by whom, and lies beside it', async () => {
  const [input, output, error] = await Promise.all(
    [manifest.input, manifest.output, manifest.error].map((file) => described(file?.file_id ?? '')),
  );
  const name = jobId().slice('job_'.length);
  expect(manifest).toMatchObject({
    object: 'batch.manifest',
    schema_version: 1,
    tool: { name: 'sluice', version: expect.stringMatching(/^\d+\.\d+/) },
    batch_id: batch,
    job_id: jobId(),
    status: 'completed',
    endpoint: '/v1/chat/completions',
    input: { ...input, filename: 'input.jsonl', lines: TOTAL },
    output: { ...output, filename: `${batch}_output.jsonl`, lines: GOOD },
    error: { ...error, filename: `${batch}_error.jsonl`, lines: 2 },
    request_counts: { total: TOTAL, completed: GOOD, failed: 2 },
    status_codes: [
      { status_code: 200, completed: GOOD, failed: 0 },
      { status_code: 400, completed: 0, failed: 1 },
      { status_code: null, completed: 0, failed: 1 },
    ],
    models: [{ model: 'sim-model', completed: GOOD, failed: 2 }],
    engines: [
      {
        engine: 'engine-1',
        provider: 'static',
        provision_ids: [`prov_${name}_0_0`],
        completed: GOOD,
        failed: 1,
      },
      { engine: null, provider: null, provision_ids: [], completed: 0, failed: 1 },
    ],
  });
  const { usage } = await openaiClient(sluice.url).batches.retrieve(batch);
  expect(manifest.usage).toMatchObject({
    input_tokens: usage?.input_tokens,
    output_tokens: usage?.output_tokens,
    total_tokens: usage?.total_tokens,
  });
  expect(usage?.output_tokens).toBeGreaterThan(0);
  const { created_at: created, started_at: started, finished_at: finished } = manifest;
  expect(started).toBeGreaterThanOrEqual(created);
  expect(finished).toBeGreaterThanOrEqual(started ?? Infinity);
  const beside = await readFile(stored(manifestKey(jobId()).slice('files/'.length)), 'utf8');
  const answers = await Promise.all(
    [`/api/v1/jobs/${jobId()}/manifest`, `/v1/batches/${batch}/manifest`].map(async (path) =>
      (await fetch(`${sluice.url}${path}`)).text(),
    ),
  );
  expect(answers).toEqual([beside, beside]);
  const job = await (await fetch(`${sluice.url}/api/v1/jobs/${jobId()}`)).json();
  expect(job).toMatchObject({ manifest: `/api/v1/jobs/${jobId()}/manifest` });
});

test('a batch that is whole: a line a check, and exit code 0', async () => {
  const { code, stdout } = await runCli(['verify', batch, '--url', sluice.url]);
  expect(code).toBe(0);
  const lines = stdout.trimEnd().split('\n');
  expect(lines).toHaveLength(7);
  expect(lines.every((line) => line.startsWith('ok '))).toBe(true);
  expect(stdout).toContain(`each of ${TOTAL} is in one of the files once`);
  expect(stdout).toContain(`200: ${GOOD}, 400: 1, none: 1`);
});

test('SLUICE_URL names the server, and HTTP_ADDR where nothing else does', async () => {
  const { host } = new URL(sluice.url);
  for (const env of [{ SLUICE_URL: `${sluice.url}/` }, { HTTP_ADDR: host }]) {
    expect(await checksOf([jobId()], env)).toMatchObject({ ok: true, wrong: [] });
  }
});

test('SLUICE_API_KEY is shown to the server, whose refusal is said', async () => {
  const seen: unknown[] = [];
  const server = createServer((incoming, outgoing) => {
    seen.push(incoming.headers.authorization);
    outgoing.writeHead(401).end('{"error":{"message":"This key is not known."}}');
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo; // a TCP server that listens has one
  const env = { SLUICE_API_KEY: 'a-key' };
  const { code, stdout, stderr } = await runCli(
    ['verify', batch, '--url', `http://127.0.0.1:${port}`],
    env,
  );
  server.close();
  expect([code, stdout, seen]).toEqual([1, '', ['Bearer a-key']]);
  expect(stderr).toContain('sluice: This key is not known.');
});

test('a download that fails ends it, although others are still open', async () => {
  const server = createServer((incoming, outgoing) => {
    const { url = '' } = incoming;
    if (url.endsWith('/manifest')) outgoing.end(JSON.stringify(manifest));
    // Some bytes, and no end.
    else if (url.includes(manifest.input.file_id)) outgoing.write('{"custom_id":"refused"}\n');
    else outgoing.writeHead(500).end('{"error":{"message":"The disk is broken."}}');
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo; // a TCP server that listens has one
  const args = ['verify', batch, '--url', `http://127.0.0.1:${port}`];
  const { code, signal, stderr } = await runCli(args, {}, { timeoutMs: 10_000 });
  server.closeAllConnections();
  server.close();
  expect([code, signal]).toEqual([1, null]);
  expect(stderr).toContain('sluice: The disk is broken.');
});

test('files that were changed are told, with the first wrong line', async () => {
  const path = stored(manifest.output?.file_id ?? '');
  const whole = await readFile(path, 'utf8');
  const lines = whole.split('\n');
  const [fifth = '', sixth = ''] = lines.slice(4, 6);
  try {
    await writeFile(path, lines.with(4, sixth).with(5, fifth).join('\n'));
    const { ok, wrong } = await checksOf([batch, '--url', sluice.url]);
    expect(ok).toBe(false);
    expect(wrong.map(({ name }) => name)).toEqual(['output', 'requests']);
    expect(wrong[0]?.detail).toContain(`instead of ${manifest.output?.sha256}`);
    expect(wrong[1]?.detail).toBe(
      'request 6, input line 6 (custom_id "line-4") has no answer at its place: next is output line 5 (request 7), ' +
        `or error line 2 (request ${TOTAL})`,
    );
  } finally {
    await writeFile(path, whole);
  }
  expect((await checksOf([batch, '--url', sluice.url])).ok).toBe(true);
});

test('--dir checks a downloaded set, without a server', async () => {
  const dir = join(folder.path, 'set');
  await mkdir(dir);
  await writeFile(join(dir, `${batch}_manifest.json`), JSON.stringify(manifest));
  for (const file of [manifest.input, manifest.output, manifest.error]) {
    await copyFile(stored(file?.file_id ?? ''), join(dir, file?.filename ?? ''));
  }
  expect((await checksOf(['--dir', dir])).wrong).toEqual([]);
  // The storage's own folder is such a set, too.
  expect((await checksOf([batch, '--dir', stored('.')])).wrong).toEqual([]);
  await rm(join(dir, manifest.error?.filename ?? ''));
  const { wrong } = await checksOf(['--dir', dir]);
  expect(wrong.map(({ name }) => name)).toEqual(['error', 'requests', 'status codes', 'counts']);
  expect(wrong[0]?.detail).toBe(`${manifest.error?.file_id} is gone`);
});

const failures: [string, string[], string][] = [
  ['no batch', [], 'Name a batch or job'],
  ['what is no id', ['nonsense'], 'Name a batch or job'],
  ['a server that is not there', ['batch_a', '--url', 'http://127.0.0.1:1'], 'cannot be reached'],
  ['no folder', ['--dir', '/nowhere/at/all'], 'is no folder'],
];
test.for(failures)('%s ends in one clear line', async ([, args, words]) => {
  const { code, stdout, stderr } = await runCli(['verify', ...args]);
  expect([code, stdout]).toEqual([1, '']);
  expect(stderr).toMatch(/^sluice: [^\n]+\n$/);
  expect(stderr).toContain(words);
});

test('without its input a batch is not whole, and what is left of it is checked', async () => {
  await openaiClient(sluice.url).files.delete(manifest.input.file_id);
  const { ok, wrong, checks } = await checksOf([batch, '--url', sluice.url]);
  expect(ok).toBe(false);
  expect(wrong).toEqual([
    { name: 'input', ok: false, detail: `${manifest.input.file_id} is gone` },
  ]);
  expect(checks.find(({ name }) => name === 'requests')?.detail).toContain('the input is gone');
});
