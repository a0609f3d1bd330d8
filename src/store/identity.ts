import type { Context } from './records.ts';

/**
 * Binds these records to a storage at the first call ever, and returns the identity of the storage that they are
 * bound to: another one than `identity` means that two hosts have storages of their own.
 */
export async function claimStorage({ redis, keys }: Context, identity: string): Promise<string> {
  await redis.set(keys.storage, identity, 'NX');
  return (await redis.get(keys.storage)) ?? identity;
}
