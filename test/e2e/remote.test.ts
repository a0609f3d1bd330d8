import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { globalKeys, recordKey } from '../../src/store/keys.ts';
import { startMetadataService } from '../simulators/metadata-service/server.ts';
import {
  download,
  expectExact,
  makeInput,
  openaiClient,
  readJob,
  submit,
  untilAnswered,
  untilBatch,
  untilFinal,
} from '../support/batch.ts';
import { openRedis, startRedis } from '../support/redis.ts';
import { makeFolder, requireNothingLeft, runCli, startSluice } from '../support/server.ts';
import type { Environment, TestFolder } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

/** A server that has another one run its batches. */
function startNear(folder: TestFolder, url: string, env: Environment = {}) {
  return startSluice({ dataDir: folder.path, env: { METADATA_SERVICE_URL: url, ...env } });
}

async function openFar(flags: string[] = []) {
  const engine = await startVllmProcess({ flags: ['--profile', 'zero', ...flags] });
  const folder = await makeFolder();
  function start(addr = '127.0.0.1:0') {
    return startSluice({ dataDir: folder.path, engines: [engine.url], env: { HTTP_ADDR: addr } });
  }
  return {
    engine,
    start,
    async [Symbol.asyncDispose]() {
      await folder[Symbol.asyncDispose]();
      await engine[Symbol.asyncDispose]();
    },
  };
}

test('METADATA_SERVICE_URL: batches run at another Sluice, and their files are the same', async () => {
  await using far = await openFar();
  await using folder = await makeFolder();
  await using service = await far.start();
  await using sluice = await startNear(folder, service.url);
  const input = makeInput(300);
  const id = await submit(sluice.url, input);
  const batch = await untilFinal(sluice.url, id);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
  // The remote batch has the same id, so that its lines have the same ids, too.
  const remote = await untilFinal(service.url, id);
  const files = await Promise.all([
    download(sluice.url, batch.output_file_id),
    download(service.url, remote.output_file_id),
  ]);
  expect(files[0]).toBe(files[1]);
  expect(batch.usage).toEqual(remote.usage);
  const { events, provision } = await readJob(sluice.url, id);
  expect(events.map(({ status }) => status)).toEqual(
    expect.arrayContaining([
      'queued',
      'resource_preparing',
      'submitting',
      'in_progress',
      'finalizing',
      'completed',
    ]),
  );
  expect(provision?.raw_json).toContain(service.url);
});

test('a service that dies and comes back is waited for; a cancel reaches it, and keeps what was answered', async () => {
  await using far = await openFar(['--set', 'latency_ms=150']);
  await using folder = await makeFolder();
  const first = await far.start();
  const { host } = new URL(first.url);
  await using sluice = await startNear(folder, first.url);
  const input = makeInput(2_000);
  const id = await submit(sluice.url, input, { maxConcurrency: 8 });
  await untilAnswered(sluice.url, id, 8);
  await first.kill();
  await until(async () => (await readJob(sluice.url, id)).error_message !== '', {
    what: 'a reason',
  });
  const { status, error_message: why } = await readJob(sluice.url, id);
  expect({ status, why }).toEqual({
    status: 'in_progress',
    why: expect.stringMatching(/does not answer/),
  });
  await using service = await far.start(host);
  await until(async () => (await readJob(sluice.url, id)).error_message === '', {
    what: 'no reason',
  });
  await openaiClient(sluice.url).batches.cancel(id);
  const batch = await untilFinal(sluice.url, id);
  expect(batch.status).toBe('cancelled');
  const { output, error } = await expectExact(sluice.url, batch, input);
  expect(output.length).toBeGreaterThan(0);
  expect(error[0]?.error?.code).toBe('batch_cancelled');
  expect((await untilFinal(service.url, id)).status).toBe('cancelled');
});

test('a server that is killed between a create and its record makes no second batch', async () => {
  // It would make one: it remembers nothing of what it was asked.
  await using service = await startMetadataService({ auto: { afterMs: 500 } });
  await using folder = await makeFolder();
  service.fail('create', { kind: 'silence' });
  const key = { METADATA_SERVICE_API_KEY: 'secret' };
  const first = await startNear(folder, service.url, key);
  const input = makeInput(20);
  const id = await submit(first.url, input);
  await until(() => service.batches.size > 0, { what: 'a batch' });
  await first.kill();
  await using sluice = await startNear(folder, service.url, key);
  const batch = await untilFinal(sluice.url, id);
  expect(batch).toMatchObject({
    status: 'completed',
    request_counts: { total: 20, completed: 20 },
  });
  expect(service.batches.size).toBe(1);
  expect(service.calls.filter(({ operation }) => operation === 'create')).toHaveLength(1);
  const shown = new Set(service.calls.map(({ authorization }) => authorization));
  expect([...shown]).toEqual(['Bearer secret']);
  const lines = (await download(sluice.url, batch.output_file_id)).trimEnd().split('\n');
  expect(lines.map((line) => (JSON.parse(line) as { custom_id: string }).custom_id)).toEqual(
    input.customIds,
  );
});

test('a batch whose time is over is stopped at the service', async () => {
  await using service = await startMetadataService();
  await using redis = await startRedis();
  await using records = openRedis(redis.url);
  await using folder = await makeFolder();
  await using sluice = await startNear(folder, service.url, { REDIS_URL: redis.url });
  const id = await submit(sluice.url, makeInput(5));
  await untilBatch(sluice.url, id, ({ status }) => status === 'in_progress');
  const [remote = ''] = service.batches.keys();
  service.progress(remote, { completed: 1, failed: 0 });
  // The shortest window is a minute.
  const job = id.replace('batch_', 'job_');
  await records.client.hset(recordKey(job), 'deadline', Date.now());
  await records.client.zadd(globalKeys('sluice').deadlines, Date.now(), job);
  await until(() => service.batches.get(remote)?.status === 'cancelling', { what: 'a cancel' });
  service.run(remote, { answers: (n) => (n === 0 ? 'output' : null) });
  expect(await untilFinal(sluice.url, id)).toMatchObject({
    status: 'expired',
    request_counts: { total: 5, completed: 1, failed: 4 },
  });
});

test('METADATA_SERVICE_URL and METADATA_SERVICE_API_KEY: what they may be', async () => {
  await using folder = await makeFolder();
  const DATA_DIR = folder.path;
  const wrong = await runCli(['start'], { DATA_DIR, METADATA_SERVICE_URL: 'ftp://x' });
  expect(wrong.stderr).toContain('METADATA_SERVICE_URL');
  expect(wrong.stderr).toContain('must be an http(s) URL such as http://localhost:8090');
  const alone = await runCli(['start'], { DATA_DIR, METADATA_SERVICE_API_KEY: 'x' });
  expect(alone.stderr).toContain('METADATA_SERVICE_API_KEY is sent to METADATA_SERVICE_URL');
});

test('METADATA_SERVICE_URL: `sluice run` asks its own engine all the same', async () => {
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await using folder = await makeFolder();
  const [input, output] = [join(folder.path, 'in.jsonl'), join(folder.path, 'out.jsonl')];
  await writeFile(input, makeInput(5).text);
  const env = { DATA_DIR: join(folder.path, 'data'), METADATA_SERVICE_URL: 'http://127.0.0.1:9' };
  const args = ['run', '--input', input, '--output', output, '--engine', engine.url];
  expect(await runCli(args, env)).toMatchObject({ code: 0 });
  expect((await readFile(output, 'utf8')).trimEnd().split('\n')).toHaveLength(5);
});
