import { setTimeout as sleep } from 'node:timers/promises';
import type { Settings } from '../../config/schema.ts';
import { describeError, SluiceError } from '../domain/errors.ts';
import { draw, freshBucket } from '../domain/rate-limit.ts';
import type { Bucket } from '../domain/rate-limit.ts';
import type { LeaseProvider } from '../domain/provision.ts';
import type { Offer } from '../resources/contract.ts';
import type { LeaseAccount } from '../resources/lease-contract.ts';
import type { DrawUnits } from '../resources/pace.ts';
import { fingerprint } from '../runtimes/ssh/keys.ts';
import type { Finding } from './doctor.ts';
import { authorizedKeyOf, enabledLeases, LEASE_PARTS, openManager } from './lease-providers.ts';

/** What the names of machines of any deployment begin with. */
const ANY_STAMP = 'sl-';

/** Each provider that PROVISIONER leases of, and the key with which its machines are logged in to. */
export function checkLeases(settings: Settings): Promise<Finding[]>[] {
  const enabled = enabledLeases(settings);
  if (enabled.length === 0) return [];
  return [checkKey(settings), ...enabled.map(async (each) => checkAccount(each, settings))];
}

/** The rates of this command alone: Redis may be what is broken. */
function ownBuckets(): DrawUnits {
  const buckets = new Map<string, Bucket>();
  return async (name, _op, perSecond, units) => {
    const now = Date.now();
    const before = buckets.get(name) ?? freshBucket(perSecond, now, units.most);
    const drawn = draw(before, perSecond, units, now);
    buckets.set(name, drawn.bucket);
    return drawn;
  };
}

async function checkKey(settings: Settings): Promise<Finding[]> {
  const { sshKeyFile } = settings;
  const check = 'ssh key';
  if (sshKeyFile === undefined) return [];
  try {
    const [type, blob = ''] = (await authorizedKeyOf(settings)).split(' ');
    const print = fingerprint(Buffer.from(blob, 'base64'));
    return [{ check, state: 'ok', message: `${sshKeyFile}: ${type} ${print}` }];
  } catch (error) {
    return [{ check, state: 'fail', message: describeError(error) }];
  }
}

/** Nothing else is looked at where the account itself cannot be. */
async function checkAccount(check: LeaseProvider, settings: Settings): Promise<Finding[]> {
  const fail = (error: unknown): Finding => ({
    check,
    state: 'fail',
    message: describeError(error),
  });
  let manager: LeaseAccount | null = null;
  try {
    const shared = { stamp: ANY_STAMP, draw: ownBuckets(), now: Date.now };
    const opened = openManager(check, settings, shared);
    manager = opened;
    const own = (await opened.checks?.()) ?? [];
    const findings = own.map((each): Finding => ({ check, ...each }));
    if (own.some(({ state }) => state === 'fail')) return findings;
    const machines = await patiently(() => opened.list(ANY_STAMP));
    const there = machines.filter(({ state }) => state !== 'gone').length;
    const message = `the account can be used; machines of Sluice in it now: ${there}`;
    const looks = looksAt(opened, settings).map(async (look) => patiently(look).catch(fail));
    const found = (await Promise.all(looks)).filter((finding) => finding !== null);
    return [{ check, state: 'ok', message }, ...findings, ...found];
  } catch (error) {
    return [fail(error)];
  } finally {
    await manager?.close?.();
  }
}

/** So long it is tried again; somebody waits for the answer. */
const PATIENCE_MS = 5_000;
const AGAIN_MS = 1_500;

/** A server beside this command uses the same credential, so that a call may be refused as one too many. */
async function patiently<T>(call: () => Promise<T>): Promise<T> {
  const until = performance.now() + PATIENCE_MS;
  for (;;) {
    try {
      return await call();
    } catch (error) {
      const isPassing = error instanceof SluiceError && error.kind === 'Transient';
      const wait = isPassing ? (error.retryAfterMs ?? AGAIN_MS) : Infinity;
      if (performance.now() + wait > until) throw error;
      await sleep(wait);
    }
  }
}

function looksAt(manager: LeaseAccount, settings: Settings): (() => Promise<Finding | null>)[] {
  const { provider: check } = manager;
  const modelCache = LEASE_PARTS[check].modelCache(settings);
  return [
    async () => {
      const message = await manager.checkLogin(await publicKeyOrNone(settings));
      return message === null ? null : { check, state: 'ok', message };
    },
    async () => {
      if (modelCache === null) return null;
      return { check, state: 'ok', message: await manager.checkModelCache(modelCache) };
    },
    async () => describeCatalog(check, await manager.catalog()),
  ];
}

/** A key that is of no use is told on a line of its own. */
async function publicKeyOrNone(settings: Settings): Promise<string> {
  return authorizedKeyOf(settings).catch(() => '');
}

function describeCatalog(check: LeaseProvider, offers: readonly Offer[]): Finding {
  const there = offers.filter(({ stock }) => stock !== 'unavailable').length;
  const kinds = `the catalog has ${offers.length} kinds of machines`;
  if (there > 0) return { check, state: 'ok', message: `${kinds}, ${there} of them to be had now` };
  const mend = LEASE_PARTS[check].emptyMend;
  return { check, state: 'warn', message: `${kinds}, and none is to be had now: ${mend}` };
}
