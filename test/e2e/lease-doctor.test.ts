import { chmod, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { Finding } from '../../src/main/doctor.ts';
import { createKeyPair } from '../../src/runtimes/ssh/keys.ts';
import { call } from '../simulators/runpod/asking.ts';
import { runCli } from '../support/server.ts';
import type { Environment } from '../support/server.ts';
import { useTwoClouds } from '../support/two-clouds.ts';

const world = useTwoClouds();

/** What the doctor says of providers and their key: `state message`, by what was checked. */
async function said(more: Environment = {}) {
  const { code, stdout, stderr } = await runCli(['doctor', '--json'], world().environment(more));
  if (stdout === '') throw new Error(`it printed nothing: ${stderr}`);
  const { checks } = JSON.parse(stdout) as { checks: Finding[] }; // our own words
  const of = (wanted: Finding['check']) =>
    checks
      .filter(({ check }) => check === wanted)
      .map(({ state, message }) => `${state} ${message}`);
  return { code, key: of('ssh key'), runpod: of('runpod'), lambdaCloud: of('lambdaCloud') };
}

test('accounts that can be used: a line each for the key, what is in them, and the catalog', async () => {
  const volume = { name: 'weights', size: 100, dataCenter: 'EU-RO-1' };
  const { runpod, lambdaCloud } = world();
  await call(runpod.url, 'POST', '/v2/network-volumes', volume);
  await fetch(`${lambdaCloud.url}/api/v1/filesystems`, {
    method: 'POST',
    headers: { authorization: 'Bearer lambda-key' },
    body: JSON.stringify({ name: 'weights', region: 'us-west-1' }),
  });
  const found = await said({
    RUNPOD_NETWORK_VOLUME_ID: 'weights',
    LAMBDA_CLOUD_FILE_SYSTEM: 'weights',
  });
  expect(found.key).toEqual([expect.stringMatching(/^ok .*\/key: ssh-ed25519 SHA256:[\w+/]{43}$/)]);
  const catalog = /^ok the catalog has \d+ kinds of machines, [1-9]\d* of them to be had now$/;
  const account = 'ok the account can be used; machines of Sluice in it now: 0';
  expect(found.runpod).toEqual([
    account,
    expect.stringMatching(/^ok network volume 'weights' \(\w+\) in EU-RO-1$/),
    expect.stringMatching(catalog),
  ]);
  expect(found.lambdaCloud).toEqual([
    account,
    "ok SSH keys 'default'",
    "ok file system 'weights' in us-west-1",
    expect.stringMatching(catalog),
  ]);
  expect(found.code).toBe(0);
});

test('one call too many is asked again: a server beside it uses the same account', async () => {
  for (const { control } of [world().runpod, world().lambdaCloud]) {
    await control.setFaults(
      (['list', 'catalog'] as const).map((op) => {
        return { kind: 'error', op, error: 'rate_limited', retry_after: 1, count: 1 };
      }),
    );
  }
  const { code, runpod, lambdaCloud } = await said();
  const all = [...runpod, ...lambdaCloud];
  expect([code, all.filter((line) => !line.startsWith('ok '))]).toEqual([0, []]);
});

test('keys that are refused are told with the setting, and nothing else is asked', async () => {
  const found = await said({ RUNPOD_API_KEY: 'wrong', LAMBDA_CLOUD_API_KEY: 'wrong' });
  expect(found.runpod).toEqual([expect.stringMatching(/^fail .*RUNPOD_API_KEY/)]);
  expect(found.lambdaCloud).toEqual([expect.stringMatching(/^fail .*LAMBDA_CLOUD_API_KEY/)]);
  expect(found.code).toBe(1);
});

test('what an account does not have is told: a key, a volume, a file system', async () => {
  const found = await said({
    RUNPOD_NETWORK_VOLUME_ID: 'gone',
    LAMBDA_CLOUD_SSH_KEYS: 'nobodys',
    LAMBDA_CLOUD_FILE_SYSTEM: 'gone',
  });
  expect(found.runpod.filter((line) => line.startsWith('fail'))).toEqual([
    expect.stringContaining("no network volume 'gone'"),
  ]);
  expect(found.lambdaCloud.filter((line) => line.startsWith('fail'))).toEqual([
    expect.stringContaining("no SSH key 'nobodys', which LAMBDA_CLOUD_SSH_KEYS names"),
    expect.stringContaining("no file system 'gone'"),
  ]);
  expect(found.code).toBe(1);
});

test('a provider that is away, and a region where nothing is to be had', async () => {
  await world().runpod[Symbol.asyncDispose]();
  const found = await said({ LAMBDA_CLOUD_REGION: 'mars-1' });
  expect(found.runpod).toEqual([expect.stringMatching(/^fail RunPod gives no answer/)]);
  expect(found.lambdaCloud.at(-1)).toMatch(/^warn .*none is to be had now.*LAMBDA_CLOUD_REGION/);
});

describe('the private key', () => {
  test('that others may read', async () => {
    const path = join(world().folder, 'open');
    await writeFile(path, createKeyPair().privateKey);
    await chmod(path, 0o644);
    const found = await said({ AIBRIX_BATCH_SSH_KEY_FILE: path });
    expect(found.key).toEqual([expect.stringContaining(`fail others may read the private key`)]);
    expect(found.code).toBe(1);
  });

  test('of which RUNPOD_SSH_PUBLIC_KEY is no half', async () => {
    const found = await said({ RUNPOD_SSH_PUBLIC_KEY: createKeyPair().publicKey });
    expect(found.key).toEqual([expect.stringMatching(/^fail RUNPOD_SSH_PUBLIC_KEY is not/)]);
  });
});

test('settings at odds are told as they are at the start', async () => {
  const odd = { RUNPOD_BASE_URL: `${world().runpod.url}/v1`, RUNPOD_API_VERSION: 'v2' };
  expect((await said(odd)).runpod).toEqual([expect.stringContaining('RUNPOD_API_VERSION is v2')]);
});
