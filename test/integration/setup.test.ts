import { readlink, symlink } from 'node:fs/promises';
import { join } from 'node:path';

import { expect, test } from 'vitest';

import { makeClone } from '../support/clone.ts';
import type { Clone, Outcome } from '../support/clone.ts';
import { until } from '../support/until.ts';

const SETUP = 'src/main/setup.sh';
const STAMP = 'node_modules/.sluice-setup';
const DONE = { code: 0, signal: null, stdout: '' };

function setUp(clone: Clone, args: string[] = [], env?: Record<string, string>): Promise<Outcome> {
  return clone.run('sh', [SETUP, ...args], env);
}

test('installs once, is then silent and starts neither npm nor Node', async () => {
  await using clone = await makeClone();
  expect(await setUp(clone)).toEqual({
    ...DONE,
    stderr: 'setup: installing npm packages (this takes a moment)\n',
  });
  expect(await clone.has(STAMP)).toBe(true);
  expect(await clone.has('.sluice/setup.lock')).toBe(false);

  // Whoever calls them now fails the run.
  await clone.add('npm', '#!/bin/sh\nexit 9');
  await clone.remove('node_modules/.bin/node');
  await symlink('/bin/false', join(clone.folder, 'node_modules/.bin/node'));
  const startedAt = performance.now();
  expect(await setUp(clone)).toEqual({ ...DONE, stderr: '' });
  expect(performance.now() - startedAt).toBeLessThan(5_000);
});

test.each(['package-lock.json', 'package.json'])(
  'installs again when %s has changed',
  async (file) => {
    await using clone = await makeClone();
    await setUp(clone);
    await clone.write(file, '{"other": true}');
    await setUp(clone);
    await setUp(clone);
    expect(await clone.installs()).toBe(2);
  },
);

test('installs again when Node is gone', async () => {
  await using clone = await makeClone();
  await setUp(clone);
  await clone.remove('node_modules/.bin/node');
  expect(await setUp(clone)).toMatchObject(DONE);
  expect(await clone.installs()).toBe(2);
});

test('shows what npm says when it fails, and is tried again', async () => {
  await using clone = await makeClone();
  await clone.write('broken', '');
  const outcome = await setUp(clone);
  expect(outcome).toMatchObject({ code: 1 });
  expect(outcome.stderr).toContain('npm error the reason\nsetup: npm ci failed');
  expect(await clone.has(STAMP)).toBe(false);
  await clone.remove('broken');
  expect(await setUp(clone)).toMatchObject(DONE);
});

test('two at once install once', async () => {
  await using clone = await makeClone();
  await clone.write('hold', '');
  const first = clone.start('sh', [SETUP]);
  await until(() => clone.has('node_modules/node'));
  const second = clone.start('sh', [SETUP]);
  let told = '';
  second.child.stderr?.on('data', (text: string) => (told += text));
  await until(() => told.includes(`waiting for another set-up (process ${first.child.pid})`));
  await clone.remove('hold');
  expect(await first.outcome).toMatchObject(DONE);
  expect(await second.outcome).toMatchObject(DONE);
  expect(await clone.installs()).toBe(1);
});

test.each(['SIGINT', 'SIGKILL'] as const)(
  'the next run mends one that %s has ended',
  async (signal) => {
    await using clone = await makeClone();
    await clone.write('hold', '');
    const { child, outcome } = clone.start('sh', [SETUP]);
    await until(() => clone.has('node_modules/node'));
    expect(await readlink(join(clone.folder, '.sluice/setup.lock'))).toBe(String(child.pid));
    // The whole group, as a terminal does it.
    process.kill(-(child.pid ?? Number.NaN), signal);
    await outcome;
    await clone.remove('hold');
    const next = await Promise.all([setUp(clone), setUp(clone), setUp(clone)]);
    for (const one of next) expect(one).toMatchObject(DONE);
    expect(await clone.installs()).toBe(2);
    expect(await clone.has('.sluice/setup.lock')).toBe(false);
  },
);

test('says what to install when there is no Redis and no way to get one', async () => {
  await using clone = await makeClone();
  await clone.run('rm', [join(clone.bin, 'redis-server')]);
  const outcome = await setUp(clone);
  expect(outcome).toMatchObject({ code: 1 });
  expect(outcome.stderr).toContain('apt-get install redis-server');
  expect(outcome.stderr).toContain('brew install redis');
  expect(await setUp(clone, [], { REDIS_URL: 'redis://elsewhere' })).toMatchObject(DONE);

  await clone.add('valkey-server');
  expect(await setUp(clone)).toEqual({ ...DONE, stderr: '' });
});

test('takes the server that redis-tools carries under another name', async () => {
  await using clone = await makeClone();
  await clone.run('rm', [join(clone.bin, 'redis-server')]);
  const carried = '#!/bin/sh\ncase $0 in *redis-server) echo "Redis server v=7.0.15 sha=0" ;; esac';
  await clone.add('redis-check-rdb', carried);
  expect(await setUp(clone)).toMatchObject(DONE);
  expect(await clone.has('node_modules/.bin/redis-server')).toBe(true);
});

test('installs with Homebrew where that is the way', async () => {
  await using clone = await makeClone();
  await clone.run('rm', [join(clone.bin, 'redis-server')]);
  const server = join(clone.bin, 'redis-server');
  const script = `#!/bin/sh\n[ "$*" = "install --quiet redis" ] && touch ${server} && chmod 755 ${server}`;
  await clone.add('brew', script);
  expect(await setUp(clone)).toMatchObject(DONE);
  expect(await clone.has('../bin/redis-server')).toBe(true);
});

test('a program for tests that cannot be had is a warning with the command', async () => {
  await using clone = await makeClone();
  await Promise.all([clone.add('sshd'), clone.add('kubectl')]);
  const outcome = await setUp(clone, ['--tests']);
  expect(outcome).toMatchObject(DONE);
  expect(outcome.stderr).toContain('chromium is missing and its tests will fail: apt-get install');
  expect(outcome.stderr).not.toContain('kubectl');
});
