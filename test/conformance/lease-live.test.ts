/**
 * What of the contract of lease managers can be asked of an account that exists. It runs on the simulators, and with
 * LEASES_LIVE=1 on each provider whose key is set instead, which nothing but a person does:
 *
 *     export AIBRIX_BATCH_SSH_KEY_FILE=$HOME/.ssh/id_ed25519
 *     LEASES_LIVE=1 RUNPOD_API_KEY=… npx vitest run --project conformance test/conformance/lease-live.test.ts
 *     LEASES_LIVE=1 LEASES_LIVE_MAX_USD=1.50 LAMBDA_CLOUD_API_KEY=… LAMBDA_CLOUD_SSH_KEYS=… npx vitest …
 *
 * Without LEASES_LIVE_MAX_USD it only reads. With it, one machine is leased, the cheapest that can be had for at most so
 * many US dollars an hour, shown, and given back at once: some cents. Whatever a run that was killed has left begins
 * with `sl-live` in the provider's console. The other settings of a provider (regions, base URL, …) count as they do for
 * a server; Redis is the one of the tests.
 */
import { randomBytes, randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { loadSettings, readEnvironment } from '../../config/load.ts';
import { SluiceError } from '../../src/domain/errors.ts';
import { machineName } from '../../src/domain/lease.ts';
import type { MachineProvider } from '../../src/domain/provision.ts';
import { authorizedKeyOf, openManager } from '../../src/main/lease-providers.ts';
import type { Offer } from '../../src/resources/contract.ts';
import type { LeaseManager, Machine, MachineWish } from '../../src/resources/lease-contract.ts';
import { createKeyPair } from '../../src/runtimes/ssh/keys.ts';
import { createStore } from '../../src/store/store.ts';
import { leasingEnvironment, makeKeyFile, startCloud } from '../support/clouds.ts';
import { makeFolder } from '../support/server.ts';
import type { Environment } from '../support/server.ts';
import { connectTo } from '../support/store-back-ends.ts';
import { until } from '../support/until.ts';

const IS_LIVE = process.env['LEASES_LIVE'] === '1';
const KEYS = { runpod: 'RUNPOD_API_KEY', lambdaCloud: 'LAMBDA_CLOUD_API_KEY' } as const;
const PROVIDERS = ['runpod', 'lambdaCloud'] as const;
const GONE_MS = 5 * 60_000;
const TEST_MS = 12 * 60_000;
const LOOK_MS = IS_LIVE ? 3_000 : 50;
/** More that are refused, one after the other, have another reason than that somebody was quicker. */
const MOST_ASKED = 5;

interface Account extends AsyncDisposable {
  manager: LeaseManager;
  stamp: string;
  authorizedKey: string;
  image: string;
}

/** A manager as a server of this environment has it, that shares the rates of its credential by Redis. */
async function openAccount(provider: MachineProvider, environment: Environment): Promise<Account> {
  const settings = loadSettings(environment);
  const redis = connectTo('redis');
  const { limits } = createStore({ redis, namespace: randomUUID() });
  const stamp = `sl-live${randomBytes(2).toString('hex')}`;
  const shared = { stamp, draw: limits.draw.bind(limits), now: Date.now };
  return {
    manager: openManager(provider, settings, shared),
    stamp,
    authorizedKey: await authorizedKeyOf(settings),
    image: settings.runpodImage ?? 'ubuntu:24.04',
    async [Symbol.asyncDispose]() {
      redis.disconnect();
    },
  };
}

/** Gives back all that these tests have leased, whatever became of their calls, until nothing of it is listed. */
async function clear({ manager, stamp }: Account): Promise<void> {
  await until(
    async () => {
      const left = (await manager.list(stamp)).filter(({ state }) => state !== 'gone');
      for (const { id } of left) await manager.destroy(id);
      return left.length === 0;
    },
    { timeoutMs: GONE_MS, everyMs: LOOK_MS },
  );
}

async function affordable(manager: LeaseManager, mostUsd: number): Promise<Offer[]> {
  const offers = await manager.catalog();
  return offers
    .filter(({ stock }) => stock !== 'unavailable')
    .filter(({ pricePerHour }) => pricePerHour !== null && pricePerHour <= mostUsd)
    .toSorted((one, other) => (one.pricePerHour ?? 0) - (other.pricePerHour ?? 0))
    .slice(0, MOST_ASKED);
}

/** The cheapest machine that can be had now. */
async function lease(account: Account, mostUsd: number): Promise<Machine> {
  const { manager, stamp, authorizedKey, image } = account;
  const { privateKey: hostKey } = createKeyPair();
  let refusal: unknown = new Error(`nothing can be had for ${mostUsd} USD an hour now`);
  for (const [n, offer] of (await affordable(manager, mostUsd)).entries()) {
    const wish: MachineWish = {
      name: machineName(stamp, '0'.repeat(16), n + 1, Date.now()),
      offer: offer.id,
      gpuCount: offer.count ?? 1,
      regions: [],
      interruptible: false,
      maxPricePerHour: mostUsd,
      image,
      diskGb: 20,
      authorizedKey,
      hostKey,
      modelCache: null,
      sendBefore: Date.now() + 60_000,
    };
    try {
      return await manager.create(wish);
    } catch (error) {
      if (!(error instanceof SluiceError) || error.kind !== 'NoCapacity') throw error;
      refusal = error;
    }
  }
  throw refusal;
}

function describeAccount(
  provider: MachineProvider,
  open: () => Promise<Account>,
  mostUsd: number | null,
): void {
  let account: Account;
  beforeAll(async () => {
    account = await open();
  });
  afterAll(() => account[Symbol.asyncDispose]());

  test('has a catalog with prices', async () => {
    const offers = await account.manager.catalog();
    expect(offers.length).toBeGreaterThan(0);
    for (const offer of offers) expect(offer).toMatchObject({ provider, kind: 'machine' });
  });

  test('lists what carries a stamp, and nothing of a stamp that is new', async () => {
    expect(await account.manager.list(account.stamp)).toEqual([]);
  });

  test('knows nothing of an id that it never gave', async () => {
    const id = provider === 'runpod' ? 'sluicelive0000' : randomUUID().replaceAll('-', '');
    expect(await account.manager.describe(id)).toBeNull();
    expect(await account.manager.destroy(id)).toBe('gone');
  });

  test.runIf(mostUsd !== null)(
    'leases the cheapest machine, shows it, and gives it back',
    async () => {
      onTestFinished(() => clear(account), GONE_MS);
      const { manager, stamp } = account;
      const machine = await lease(account, mostUsd ?? 0);
      await until(async () => (await manager.list(stamp)).some(({ id }) => id === machine.id), {
        timeoutMs: manager.capabilities.listLagMs + 30_000,
        everyMs: LOOK_MS,
      });
      const shown = await manager.describe(machine.id);
      expect(shown).toMatchObject({ id: machine.id, name: machine.name });
      expect(shown?.pricePerHour ?? 0).toBeLessThanOrEqual(mostUsd ?? 0);
      expect(JSON.stringify(shown?.raw)).not.toMatch(/PRIVATE KEY|"SLUICE_HOST_KEY"/);
      expect(['gone', 'going']).toContain(await manager.destroy(machine.id));
      await until(
        async () => {
          const now = await manager.describe(machine.id);
          return now === null || now.state === 'gone';
        },
        { timeoutMs: GONE_MS, everyMs: LOOK_MS },
      );
    },
    TEST_MS,
  );
}

describe.skipIf(IS_LIVE).each(PROVIDERS)('the simulated account at %s', (provider) => {
  describeAccount(
    provider,
    async () => {
      const stack = new AsyncDisposableStack();
      const folder = stack.use(await makeFolder());
      const key = await makeKeyFile(folder.path);
      const cloud = stack.use(await startCloud(provider, key, { machines: 'none' }));
      const account = stack.use(await openAccount(provider, leasingEnvironment([cloud], key)));
      return { ...account, [Symbol.asyncDispose]: () => stack.disposeAsync() };
    },
    5,
  );
});

const environment = IS_LIVE ? readEnvironment() : {};
const limit = Number(environment['LEASES_LIVE_MAX_USD'] ?? Number.NaN);

for (const provider of PROVIDERS) {
  describe.runIf(IS_LIVE && environment[KEYS[provider]] !== undefined)(
    `the live account at ${provider}`,
    () => {
      describeAccount(
        provider,
        () => openAccount(provider, { ...environment, PROVISIONER: provider }),
        limit > 0 ? limit : null,
      );
    },
  );
}
