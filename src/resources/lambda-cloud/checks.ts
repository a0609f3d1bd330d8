import type { LeaseAccount } from '../lease-contract.ts';
import type { Account } from './account.ts';
import { findFileSystem } from './places.ts';

/** What `sluice doctor` asks of the account. */
export function checksOf(
  account: Account,
  {
    sshKeyNames = [],
    regions = [],
  }: { sshKeyNames?: readonly string[]; regions?: readonly string[] },
): Pick<LeaseAccount, 'checkLogin' | 'checkModelCache'> {
  return {
    async checkLogin(authorizedKey) {
      await account.checkKeys(sshKeyNames, authorizedKey);
      const names = sshKeyNames.map((name) => `'${name}'`).join(', ');
      return names === '' ? 'the SSH key of this deployment' : `SSH keys ${names}`;
    },
    async checkModelCache(modelCache) {
      const { name, region } = await findFileSystem(modelCache, regions, account);
      return `file system '${name}' in ${region}`;
    },
  };
}
