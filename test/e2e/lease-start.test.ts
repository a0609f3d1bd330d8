import { chmod, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { createKeyPair } from '../../src/runtimes/ssh/keys.ts';
import { runCli, startSluice } from '../support/server.ts';
import type { Environment } from '../support/server.ts';
import { useTwoClouds } from '../support/two-clouds.ts';

const world = useTwoClouds();

/** What a server that cannot be started says, without its log. */
async function refusal(more: Environment): Promise<string> {
  const { code, stderr } = await runCli(['start'], world().environment(more));
  expect(code).toBe(1);
  const lines = stderr.split('\n').filter((line) => line !== '' && !line.startsWith('{'));
  return lines.join('\n');
}

describe('a server that lacks what its providers need does not start, and says what', () => {
  test.for<[provider: string, without: string[]]>([
    ['runpod', ['RUNPOD_API_KEY']],
    ['lambdaCloud', ['LAMBDA_CLOUD_API_KEY', 'LAMBDA_CLOUD_SSH_KEYS']],
  ])('PROVISIONER=%s without %s: missing credential', async ([provider, without]) => {
    const gone = Object.fromEntries(without.map((name) => [name, '']));
    const said = await refusal({ PROVISIONER: provider, ...gone });
    expect(said).toContain('resource manager init: missing credential: ');
    expect(said).toContain(`${provider} needs ${without.join(' and ')}`);
  });

  test('a private key that is not there', async () => {
    const path = join(world().folder, 'none');
    const said = await refusal({ AIBRIX_BATCH_SSH_KEY_FILE: path });
    expect(said).toContain(`there is no private key at ${path}`);
    expect(said).toContain('ssh-keygen -t ed25519');
  });

  test('a private key that others may read', async () => {
    const path = join(world().folder, 'open');
    await writeFile(path, createKeyPair().privateKey);
    await chmod(path, 0o644);
    expect(await refusal({ AIBRIX_BATCH_SSH_KEY_FILE: path })).toContain(`chmod 600 ${path}`);
  });

  test('a public key of another pair', async () => {
    const said = await refusal({ RUNPOD_SSH_PUBLIC_KEY: createKeyPair().publicKey });
    expect(said).toContain('RUNPOD_SSH_PUBLIC_KEY is not the public half of');
    expect(said).toContain(world().key.publicKey.split(' ')[1]);
  });
});

describe('GET /api/v1/catalog', () => {
  interface Offer {
    provider: string;
    id: string;
    region: string;
    regions: string[];
    architecture: string | null;
    price_per_hour: number | null;
    error: string;
  }
  const ROLES = 'api';

  async function offersOf(more: Environment = {}): Promise<Offer[]> {
    const { folder: dataDir, environment } = world();
    const env = { ROLES, ...environment(more) };
    await using sluice = await startSluice({ dataDir, env });
    const answer = await fetch(`${sluice.url}/api/v1/catalog`);
    expect(answer.status).toBe(200);
    return ((await answer.json()) as { offers: Offer[] }).offers; // the document says so
  }

  test('has the machines of every provider, with price and regions', async () => {
    const offers = await offersOf();
    const find = (id: string) => offers.find((offer) => offer.id === id);
    expect(find('1x NVIDIA H100 80GB HBM3')).toMatchObject({
      provider: 'runpod',
      price_per_hour: expect.any(Number),
      architecture: 'x86_64',
    });
    const grace = find('gpu_1x_gh200');
    expect(grace).toMatchObject({ provider: 'lambdaCloud', architecture: 'arm64' });
    const a10 = find('gpu_1x_a10');
    expect(a10?.regions.length).toBeGreaterThan(1);
    expect(a10?.region).toBe(a10?.regions.join(', '));
  });

  test('a provider that cannot be asked is an entry that says why, and the others are there', async () => {
    await world().runpod[Symbol.asyncDispose]();
    const offers = await offersOf({ LAMBDA_CLOUD_REGION: 'us-west-1' });
    expect(offers.filter(({ provider }) => provider === 'runpod')).toEqual([
      expect.objectContaining({ id: 'runpod', error: expect.stringContaining('RunPod') }),
    ]);
    const lambda = offers.filter(({ provider }) => provider === 'lambdaCloud');
    expect(new Set(lambda.flatMap(({ regions }) => regions))).toEqual(new Set(['us-west-1']));
  });
});
