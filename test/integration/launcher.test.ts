import { spawnSync } from 'node:child_process';
import { symlink } from 'node:fs/promises';
import { join } from 'node:path';

import { expect, test } from 'vitest';

import { checkNode } from '../../src/main/node-version.ts';
import { makeClone } from '../support/clone.ts';
import type { Clone } from '../support/clone.ts';

const SLUICE = 'src/main/sluice';
const CLI = `
const told: string = JSON.stringify({ version: process.version, args: process.argv.slice(2) });
console.log(told);
process.exitCode = 7;`;
const VERSION = process.version;

async function makeCloneWithCli(): Promise<Clone> {
  const clone = await makeClone();
  await clone.write('src/main/cli.ts', CLI);
  return clone;
}

test('sets a fresh clone up, then hands arguments and exit code through', async () => {
  await using clone = await makeCloneWithCli();
  const outcome = await clone.run(SLUICE, ['run', 'a file.jsonl', '']);
  expect(outcome).toMatchObject({
    code: 7,
    stderr: 'setup: installing npm packages (this takes a moment)\n',
  });
  expect(JSON.parse(outcome.stdout)).toEqual({
    version: VERSION,
    args: ['run', 'a file.jsonl', ''],
  });
  expect(await clone.run(SLUICE, ['again'])).toMatchObject({ code: 7, stderr: '' });
  expect(await clone.installs()).toBe(1);
});

test('finds its clone through links, relative ones too, from anywhere', async () => {
  await using clone = await makeCloneWithCli();
  await symlink(join(clone.folder, SLUICE), join(clone.bin, 'absolute'));
  await symlink('../bin/absolute', join(clone.folder, 'relative'));
  const link = join(clone.folder, 'relative');
  const outcome = await clone.run('sh', ['-c', `cd / && "${link}" --version`]);
  expect(JSON.parse(outcome.stdout)).toEqual({ version: VERSION, args: ['--version'] });
});

test('runs nothing when set-up fails', async () => {
  await using clone = await makeCloneWithCli();
  await clone.write('broken', '');
  expect(await clone.run(SLUICE, [])).toMatchObject({ code: 1, stdout: '' });
});

test.each(['20.20.2', '24.11.1'])('says in one line that Node %s is too old', async (version) => {
  await using clone = await makeCloneWithCli();
  await clone.write('node-version', version);
  await clone.run('sh', ['src/main/setup.sh']);
  const { code, stdout, stderr } = await clone.run(SLUICE, []);
  const line = `sluice: needs Node 24.12 or later, this clone has ${version}: run npm run setup\n`;
  expect({ code, stdout, stderr }).toEqual({ code: 1, stdout: '', stderr: line });
});

test('checkNode draws the line at 24.12', () => {
  const fine = ['v24.12.0', '24.21.0', 'v25.0.0', 'v26.1.0', 'v24.12.0-nightly'];
  expect(fine.map(checkNode)).toEqual(fine.map(() => null));
  for (const old of ['v20.20.2', 'v22.18.0', 'v24.11.1', 'v9.0.0', 'v24.2.0']) {
    expect(checkNode(old)).toBe(
      `Sluice needs Node 24.12 or later and this is ${old}: ` +
        'run `npm run setup`, then start it with `npm start` or `npx sluice`',
    );
  }
});

test('the scripts hold to POSIX sh', () => {
  for (const script of [SLUICE, 'src/main/setup.sh']) {
    const path = join(import.meta.dirname, '../..', script);
    const { status, stderr } = spawnSync('sh', ['-n', path], { encoding: 'utf8' });
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  }
});
