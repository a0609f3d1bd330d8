import { expect, test } from 'vitest';
import type { Account } from '../../src/resources/lambda-cloud/account.ts';
import type { Ask } from '../../src/resources/lambda-cloud/api.ts';
import { createLaunch } from '../../src/resources/lambda-cloud/launch.ts';
import { createKeyPair } from '../../src/runtimes/ssh/keys.ts';

const TYPE = {
  name: 'gpu_1x_a10',
  gpuDescription: 'A10 (24 GB PCIe)',
  gpus: 1,
  pricePerHour: 0.75,
  storageGib: 1_400,
  regions: ['us-west-1'],
  architecture: null,
};
const ACCOUNT: Account = {
  fileSystems: async () => [],
  regions: async () => [],
  keysFor: async () => ({ name: 'default', others: [] }),
  checkKeys: async () => undefined,
  forget: () => undefined,
};

test('a launch may take no longer for a connection than it may leave', async () => {
  let clock = 1_000_000;
  const asked: Parameters<Ask>[] = [];
  const launch = createLaunch(
    { stamp: 'sl-1', now: () => clock },
    {
      async ask(...call) {
        asked.push(call);
        return { is: 'data', data: { instance_ids: ['i1'] }, pageToken: null };
      },
      // What the turn took is gone from it.
      turn: async () => void (clock += 300),
      types: { get: async () => new Map([[TYPE.name, TYPE]]), forget: () => undefined },
      account: ACCOUNT,
    },
  );
  const { privateKey, publicKey } = createKeyPair();
  const machine = await launch({
    name: 'sl-1-a',
    offer: TYPE.name,
    gpuCount: 1,
    regions: [],
    interruptible: false,
    maxPricePerHour: null,
    image: '',
    diskGb: 60,
    authorizedKey: publicKey,
    hostKey: privateKey,
    modelCache: null,
    sendBefore: 1_001_000,
  });
  expect(machine).toMatchObject({ id: 'i1', createdAt: 1_000_300 });
  expect(asked).toEqual([['POST', '/instance-operations/launch', expect.anything(), 700]]);
});
