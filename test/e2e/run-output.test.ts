import { existsSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { requestLine } from '../support/batch.ts';
import { makeFolder, requireNothingLeft, runCli } from '../support/server.ts';

afterAll(requireNothingLeft);

test('answers of an earlier run are written over only with --force, and not by a run whose input is refused', async () => {
  await using folder = await makeFolder();
  const [input, output] = [join(folder.path, 'in.jsonl'), join(folder.path, 'out.jsonl')];
  const body = '{"model":"sim-model","messages":[]}';
  await writeFile(input, `${requestLine('twice', body)}\n${requestLine('twice', body)}\n`);
  await writeFile(output, 'answers that were paid for\n');

  const args = ['run', '-i', input, '-o', output, '-e', 'http://127.0.0.1:1'];
  const env = { DATA_DIR: join(folder.path, 'data') };
  const unforced = await runCli(args, env);
  expect(unforced.code).toBe(1);
  expect(unforced.stderr).toContain(`--output ${output} has content already`);
  expect(existsSync(join(env.DATA_DIR, 'runs'))).toBe(false);

  const { code, stderr } = await runCli([...args, '--force'], env);
  expect(code).toBe(1);
  expect(stderr).toContain('duplicate_custom_id');
  expect(await readFile(output, 'utf8')).toBe('answers that were paid for\n');
});
