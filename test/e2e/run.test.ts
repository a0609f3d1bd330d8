import { readFile, readlink, symlink, writeFile } from 'node:fs/promises';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { EXIT_BUSY } from '../../src/main/commands.ts';
import { expectExactLines, makeInput, parseLines } from '../support/batch.ts';
import type { Input } from '../support/batch.ts';
import { requireNothingLeft, makeFolder, runCli, spawnCli } from '../support/server.ts';
import type { CliResult, TestFolder } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

let engine: VllmProcess;
beforeAll(async () => {
  engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
});
beforeEach(async () => {
  await engine.setFaults([]);
  await engine.setConfig({ latency_ms: 0 });
});
afterAll(async () => {
  await engine.close();
  requireNothingLeft();
});

/** What the engine has counted since this was called. */
async function countFromNow() {
  const before = await engine.counts();
  return async () => {
    const now = await engine.counts();
    return {
      requests: now.requests - before.requests,
      repeated: now.repeated - before.repeated,
      distinct: now.distinct_bodies - before.distinct_bodies,
    };
  };
}

const LINES = 2_000;

interface Place {
  args: string[];
  env: Record<string, string>;
  input: string;
  output: string;
  runs: string;
}

async function prepare(
  folder: TestFolder,
  engine: Pick<VllmProcess, 'url'>,
  text: string,
): Promise<Place> {
  const input = join(folder.path, 'in.jsonl');
  const output = join(folder.path, 'out.jsonl');
  await writeFile(input, text);
  return {
    args: ['run', '-i', input, '-o', output, '-e', engine.url, '--json'],
    env: { DATA_DIR: folder.path },
    input,
    output,
    runs: join(folder.path, 'runs'),
  };
}

/** The summary is the last line of stdout, whatever else is there. */
function summaryOf({ stdout }: CliResult): Record<string, unknown> {
  return JSON.parse(stdout.trimEnd().split('\n').at(-1) ?? '') as Record<string, unknown>;
}

/** Compared whole, so that a failure shows what the command said. */
function expectSuccess({ code, stderr }: CliResult): void {
  expect({ code, stderr }).toEqual({ code: 0, stderr });
}

async function expectOutput({ output }: Place, input: Input): Promise<void> {
  const error = `${output}.errors.jsonl`;
  const errors = existsSync(error) ? await readFile(error, 'utf8') : '';
  const results = {
    output: parseLines(await readFile(output, 'utf8')),
    error: parseLines(errors),
  };
  expectExactLines(results, input);
}

test('a whole run: summary, exit code, answers, and nothing left behind', async () => {
  await using folder = await makeFolder();
  const input = makeInput(500, { name: 'whole' });
  const place = await prepare(folder, engine, input.text);

  const result = await runCli(place.args, place.env);

  expectSuccess(result);
  const summary = summaryOf(result);
  expect(summary).toMatchObject({ lines: 500, completed: 500, failed: 0, output: place.output });
  expect(summary['seconds']).toBeGreaterThan(0);
  expect(summary['lines_per_second']).toBeGreaterThan(0);
  await expectOutput(place, input);
  expect(existsSync(`${place.output}.errors.jsonl`)).toBe(false);
  expect(existsSync(place.runs)).toBe(false);
  await folder.untilUnused();
});

test('lines that the engine refuses go to the errors file; the run itself is a success', async () => {
  await using folder = await makeFolder();
  const input = makeInput(20);
  await engine.setFaults([{ kind: 'status', status: 400, match: 'Question 7 ' }]);
  const place = await prepare(folder, engine, input.text);

  const result = await runCli(place.args, place.env);

  expect(result.code).toBe(0);
  expect(summaryOf(result)).toMatchObject({ lines: 20, completed: 19, failed: 1 });
  const errors = parseLines(await readFile(`${place.output}.errors.jsonl`, 'utf8'));
  expect(errors).toMatchObject([{ custom_id: 'line-7', response: { status_code: 400 } }]);
  await expectOutput(place, input);
});

test('input that is wrong is exit code 1 with the line, and writes nothing', async () => {
  await using folder = await makeFolder();
  const place = await prepare(folder, engine, `${makeInput(2).text}{"half":\n`);
  const result = await runCli(place.args, place.env);
  expect(result.code).toBe(1);
  expect(result.stderr).toMatch(/line 3/);
  expect(existsSync(place.output)).toBe(false);

  const [missing, nowhere] = await Promise.all([
    runCli(['run', '-i', '/no/such', '-o', place.output, '-e', engine.url]),
    runCli(['run', '-i', place.input, '-o', place.output]),
  ]);
  expect(missing.code).toBe(1);
  expect(missing.stderr).toContain('/no/such');
  expect(nowhere.code).toBe(1);
  expect(nowhere.stderr).toContain('--engine');
});

test('Ctrl-C and the same command again: it goes on, and no answered line is asked twice', async () => {
  await engine.setConfig({ latency_ms: 300 });
  const counts = await countFromNow();
  await using folder = await makeFolder();
  const input = makeInput(LINES, { name: 'again' });
  const place = await prepare(folder, engine, input.text);
  const args = [...place.args, '-c', '100'];

  await using first = spawnCli(args, { ...place.env, SHUTDOWN_GRACE: '3s' });
  await until(async () => (await counts()).requests > 300, {
    what: '300 requests',
    timeoutMs: 60_000,
  });
  const busy = await runCli(args, place.env);
  expect(busy.code).toBe(EXIT_BUSY);
  expect(busy.stderr).toMatch(/Another run is writing/);
  // Whoever is not on a terminal reads plain lines, no bar that is drawn over and over.
  await until(
    () => /^\d+\/2000, \d+\/s, \d+ in flight, 0 failed, ETA \d+s$/m.test(first.stderr()),
    { what: 'a line of progress', timeoutMs: 60_000 },
  );
  expect(first.stderr()).not.toContain('\r');
  first.child.kill('SIGINT');
  expect(await first.exited).toMatchObject({ code: 130 });
  expect(first.stderr()).toMatch(/same command goes on/);
  expect(existsSync(place.output)).toBe(false);

  await engine.setConfig({ latency_ms: 0 });
  const second = await runCli(args, place.env);
  expectSuccess(second);
  expect(second.stderr).toMatch(/Going on/);
  expect(summaryOf(second)).toMatchObject({ lines: LINES, completed: LINES });
  await expectOutput(place, input);
  expect(await counts()).toMatchObject({ repeated: 0, distinct: LINES });
  expect(existsSync(place.runs)).toBe(false);
});

test('another input under the same output starts afresh', async () => {
  await engine.setConfig({ latency_ms: 500 });
  const counts = await countFromNow();
  await using folder = await makeFolder();
  const place = await prepare(folder, engine, makeInput(1_000, { name: 'old' }).text);
  await using first = spawnCli([...place.args, '-c', '50'], place.env);
  await until(async () => (await counts()).requests > 60, {
    what: '60 requests',
    timeoutMs: 60_000,
  });
  await first.kill('SIGINT');

  const input = makeInput(30, { name: 'new' });
  await writeFile(place.input, input.text);
  await engine.setConfig({ latency_ms: 0 });
  const second = await runCli(place.args, place.env);
  expectSuccess(second);
  expect(second.stderr).not.toMatch(/Going on/);
  await expectOutput(place, input);
});

test('what is no file is refused as output, and left as it is', async () => {
  await using folder = await makeFolder();
  const place = await prepare(folder, engine, makeInput(1).text);
  const device = join(folder.path, 'device');
  await symlink('/dev/null', device);
  const outputs = ['-', device, folder.path, join(folder.path, 'none', 'out.jsonl')];
  await Promise.all(
    outputs.map(async (output) => {
      const args = place.args.map((arg) => (arg === place.output ? output : arg));
      const { code, stderr } = await runCli(args, place.env);
      expect({ code, stderr }).toEqual({
        code: 1,
        stderr: expect.stringContaining(`--output ${output}`),
      });
    }),
  );
  expect(await readlink(device)).toBe('/dev/null');
});

test('--wait gives up on an engine that never comes, and the next run goes on', async () => {
  await using folder = await makeFolder();
  const input = makeInput(10);
  const port = 1;
  const place = await prepare(folder, { url: `http://127.0.0.1:${port}` }, input.text);

  const tired = await runCli([...place.args, '--wait', '1s'], place.env);

  expect(tired.code).toBe(1);
  expect(tired.stderr).toContain('No engine was healthy');
  expect(summaryOf(tired)).toMatchObject({ status: 'interrupted', lines: 10, completed: 0 });
  const args = place.args.map((arg) => (arg.startsWith('http://') ? engine.url : arg));
  const again = await runCli(args, place.env);
  expectSuccess(again);
  expect(again.stderr).toContain('Going on where the last run stopped');
  await expectOutput(place, input);
});
