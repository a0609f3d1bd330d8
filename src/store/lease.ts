import type { Context } from './records.ts';

/** What one process at a time does. */
export interface Lease {
  /** Takes the lease, or renews it for its holder, for `ms`; false while another has it. */
  lease(holder: string, ms: number): Promise<boolean>;
  /** Gives the lease up, if `holder` has it. */
  yield(holder: string): Promise<void>;
  /** Whether anybody has it. */
  isHeld(): Promise<boolean>;
}

export function createLease({ redis, scripts }: Context, key: string): Lease {
  return {
    lease: async (holder, ms) => (await scripts.run('lease', key, holder, ms)) === 1,
    async yield(holder) {
      await scripts.run('yield', key, holder);
    },
    isHeld: async () => (await redis.exists(key)) === 1,
  };
}
