import * as v from 'valibot';
import { permanent } from '../../domain/errors.ts';
import type { SluiceError } from '../../domain/errors.ts';
import { callError } from './api.ts';
import type { Ask } from './api.ts';
import type { Turn } from './inventory.ts';
import { createKept } from './kept.ts';

const KEYS_PAGE = 'https://cloud.lambda.ai/ssh-keys';

const sshKeys = v.array(v.object({ name: v.string(), public_key: v.string() }));
const fileSystems = v.array(
  v.object({ id: v.string(), name: v.string(), region: v.object({ name: v.string() }) }),
);
const regions = v.array(v.object({ name: v.string() }));

/** An SSH key of the account. */
interface AccountKey {
  name: string;
  public_key: string;
}

export interface FileSystem {
  id: string;
  name: string;
  region: string;
}

/** What an account has beside its instances, which changes by hand and seldom. All reject with the contract's errors. */
export interface Account {
  fileSystems(): Promise<FileSystem[]>;
  /** All that there are, whether they have capacity or not. */
  regions(): Promise<string[]>;
  /** The key that a launch names, and the public keys of others that are to be let in. */
  keysFor(
    names: readonly string[],
    authorizedKey: string,
  ): Promise<{ name: string; others: string[] }>;
  /** Rejects with Permanent `lease.ssh_key_missing` where the key that a launch names is not there. */
  checkKeys(names: readonly string[], authorizedKey: string): Promise<void>;
  forget(): void;
}

export interface AccountDeps {
  ask: Ask;
  turn: Turn;
  now: () => number;
}

const KEEP_MS = 60_000;

export function createAccount({ ask, turn, now }: AccountDeps): Account {
  const keep = <S extends v.GenericSchema>(path: string, doing: string, schema: S) => {
    const fetch = async () => {
      await turn('look');
      return fetchList(ask, path, doing, schema);
    };
    return createKept(fetch, KEEP_MS, now);
  };
  const keys = keep('/ssh-keys', 'for its SSH keys', sshKeys);
  const systems = keep('/file-systems', 'for its file systems', fileSystems);
  const places = keep('/regions', 'for its regions', regions);
  return {
    async fileSystems() {
      const found = await systems.get();
      return found.map(({ id, name, region }) => ({ id, name, region: region.name }));
    },
    async regions() {
      return (await places.get()).map(({ name }) => name);
    },
    async keysFor(names, authorizedKey) {
      const [first, ...more] = names;
      // One key needs no look: the launch says whether it is there.
      if (first !== undefined && more.length === 0) return { name: first, others: [] };
      const known = await keys.get();
      const others = known.filter(({ name }) => more.includes(name));
      return {
        name: keyForLaunch(names, authorizedKey, known),
        others: others.map((key) => key.public_key),
      };
    },
    async checkKeys(names, authorizedKey) {
      keyForLaunch(names, authorizedKey, await keys.get());
    },
    forget() {
      for (const each of [keys, systems, places]) each.forget();
    },
  };
}

async function fetchList<S extends v.GenericSchema>(
  ask: Ask,
  path: string,
  doing: string,
  schema: S,
): Promise<v.InferOutput<S>> {
  const outcome = await ask('GET', path);
  const parsed = v.safeParse(schema, outcome.is === 'data' ? outcome.data : undefined);
  if (!parsed.success) throw callError(doing, outcome);
  return parsed.output;
}

/** Type and material of a public key, without its comment. */
function material(key: string): string {
  return key.trim().split(/\s+/).slice(0, 2).join(' ');
}

/**
 * A launch names exactly one key of the account ("Currently, exactly one SSH key must be specified"): the first of the
 * settings, or, where these name none, the one that is the authorized key. Throws Permanent `lease.ssh_key_missing`.
 */
function keyForLaunch(
  names: readonly string[],
  authorizedKey: string,
  known: readonly AccountKey[],
): string {
  const missing = names.find((name) => known.every((key) => key.name !== name));
  if (missing !== undefined) throw missingKey(missing, known);
  const name =
    names[0] ?? known.find((key) => material(key.public_key) === material(authorizedKey))?.name;
  if (name !== undefined) return name;
  const mend = `Add it at ${KEYS_PAGE}, or name a key of the account in LAMBDA_CLOUD_SSH_KEYS.`;
  throw permanent(
    'lease.ssh_key_missing',
    `The Lambda Cloud account has no SSH key that is the one of this deployment. ${mend}`,
  );
}

function missingKey(name: string, known: readonly AccountKey[]): SluiceError {
  const there = known.map((key) => `'${key.name}'`).join(', ') || 'none';
  return permanent(
    'lease.ssh_key_missing',
    `The Lambda Cloud account has no SSH key '${name}', which LAMBDA_CLOUD_SSH_KEYS names. It has ${there}. ` +
      `Add it at ${KEYS_PAGE}, or name another.`,
  );
}
