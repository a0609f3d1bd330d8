import type { Context } from './records.ts';

/** The lease by which one process at a time sweeps. */
export interface Sweep {
  /** Takes the lease, or renews it for its holder, for `ms`; false while another has it. */
  lease(holder: string, ms: number): Promise<boolean>;
  /** Gives the lease up, if `holder` has it. */
  yield(holder: string): Promise<void>;
}

export function createSweep({ scripts, keys }: Context): Sweep {
  return {
    lease: async (holder, ms) => (await scripts.run('lease', keys.sweep, holder, ms)) === 1,
    async yield(holder) {
      await scripts.run('yield', keys.sweep, holder);
    },
  };
}
