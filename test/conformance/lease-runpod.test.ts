import type { CallPurpose, LeaseManager } from '../../src/resources/lease-contract.ts';
import { createRunPod } from '../../src/resources/runpod/index.ts';
import type { ApiVersion } from '../../src/resources/runpod/settings.ts';
import { FAST } from '../simulators/runpod/asking.ts';
import { startRunPod } from '../simulators/runpod/simulator.ts';
import { describeLeaseManager } from './lease-suite.ts';
import type { ConnectOptions, LeaseFlags, LeaseWorld, StartWorld } from './lease-world.ts';

/** How a world of either API is started. */
function worldOf(version: ApiVersion): StartWorld {
  return async (knobs = {}): Promise<LeaseWorld> => {
    const cloud = await startRunPod({ machines: 'none', knobs: { ...FAST, ...knobs } });
    const paced: CallPurpose[] = [];

    function connect(options: ConnectOptions = {}): LeaseManager {
      const { apiKey = 'runpod-key', timeoutMs = 20_000, pace = async () => {} } = options;
      const baseUrl = `${cloud.url}/${version}`;
      const account = { cloudType: 'SECURE', dataCenters: [], apiVersion: null } as const;
      return createRunPod({ ...account, apiKey, baseUrl, timeoutMs }, { pace });
    }

    return {
      manager: connect({
        pace: async (purpose) => {
          paced.push(purpose);
        },
      }),
      control: cloud.control,
      connect,
      paced,
      offer: { id: '2x NVIDIA L40S', gpuCount: 2 },
      regions: ['EU-SE-1', 'US-KS-2'],
      [Symbol.asyncDispose]: async () => cloud.stop(),
    };
  };
}

const REFUSALS: LeaseFlags['refusals'] = [
  ['balance', 'Permanent', 'lease.quota'],
  // Its limits of the account are told in the words of missing capacity.
  ['quota', 'NoCapacity', 'lease.no_capacity'],
  ['forbidden', 'NoCapacity', 'lease.no_capacity'],
  ['not_found', 'InvalidInput', 'lease.refused'],
  // It says that something changed meanwhile, not that nothing was made.
  ['conflict', 'Transient', 'lease.unknown'],
  ['unknown', 'Transient', 'lease.unknown'],
];

describeLeaseManager('RunPod v2', worldOf('v2'), {
  pages: true,
  catalog: 'live',
  engine: { form: 'process', cachePath: '/workspace' },
  refusals: REFUSALS,
});
describeLeaseManager('RunPod v1', worldOf('v1'), {
  pages: false,
  catalog: 'fixed',
  engine: { form: 'process', cachePath: '/workspace' },
  refusals: REFUSALS,
});
