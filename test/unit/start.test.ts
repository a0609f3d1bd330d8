import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { checkNode } from '../../src/main/node-version.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const CLI = join(ROOT, 'src/main/cli.ts');

interface Ended {
  code: number;
  stdout: string;
  stderr: string;
}

let folder = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sluice-start-'));
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});

/**
 * Runs the program with Node itself, in an empty folder and environment: vitest compiles what Node can only strip, so
 * that an enum or a missing file extension would go unseen here otherwise.
 */
async function sluice(args: string[], env: Record<string, string> = {}): Promise<Ended> {
  return new Promise((resolve) => {
    const options = { cwd: folder, env, timeout: 20_000 };
    execFile(process.execPath, [CLI, ...args], options, (error, stdout, stderr) => {
      const code = error === null ? 0 : Number(error.code ?? -1);
      resolve({ code, stdout, stderr });
    });
  });
}

test('--help says what there is', async () => {
  const { code, stdout, stderr } = await sluice(['--help']);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout).toContain('Usage: sluice');
  expect(stdout).toMatch(/^ {2}start\b/m);
  expect(stdout).toMatch(/^ {2}run\b/m);
}, 25_000);

test('--version is the one of package.json', async () => {
  const manifest: unknown = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
  const { code, stdout } = await sluice(['--version']);
  expect(code).toBe(0);
  expect(manifest).toMatchObject({ version: stdout.trim() });
}, 25_000);

test('an unknown command ends with one clear message', async () => {
  const { code, stdout, stderr } = await sluice(['strat']);
  expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
  expect(stderr).toContain("unknown command 'strat'");
  expect(stderr).toContain('start');
  expect(stderr).not.toMatch(/^\s+at /m);
}, 25_000);

test('bad settings end with what is wrong, without a stack, and nothing is started', async () => {
  const { code, stderr } = await sluice(['start'], { HTTP_ADDR: 'nowhere', ROLES: 'all' });
  expect(code).toBe(1);
  expect(stderr).toContain('2 settings are wrong');
  expect(stderr).toContain('HTTP_ADDR must be host:port');
  expect(stderr).not.toMatch(/^\s+at /m);
  expect(await readdir(folder)).toEqual([]);
}, 25_000);

test('an option that is missing or wrong is named', async () => {
  const missing = await sluice(['run', '--input', 'in.jsonl']);
  expect(missing.code).toBe(1);
  expect(missing.stderr).toContain('--output');
  const wrong = await sluice(['run', '-i', 'a', '-o', 'b', '--engine', 'nowhere']);
  expect(wrong.code).toBe(1);
  expect(wrong.stderr).toContain('http://localhost:8000');
}, 25_000);

const VERSIONS: [string, boolean][] = [
  ['v24.12.0', true],
  ['v24.21.3', true],
  ['v25.0.0', true],
  ['v24.11.9', false],
  ['v22.20.0', false],
  ['v20.1.0', false],
];
test.for(VERSIONS)('Node %s', ([version, isEnough]) => {
  const complaint = checkNode(version);
  expect(complaint === null).toBe(isEnough);
  expect(complaint ?? `npm run setup ${version}`).toContain('npm run setup');
  expect(complaint ?? version).toContain(version);
});
