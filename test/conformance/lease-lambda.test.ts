import type { CallPurpose, LeaseManager } from '../../src/resources/lease-contract.ts';
import { createLambdaCloud } from '../../src/resources/lambda-cloud/index.ts';
import { startLambda } from '../simulators/lambda/simulator.ts';
import { createKeyPair } from '../simulators/machines/ssh-client.ts';
import { describeLeaseManager } from './lease-suite.ts';
import { STAMP } from './lease-world.ts';
import type { ConnectOptions, LeaseFlags, LeaseWorld, StartWorld } from './lease-world.ts';

const FAST = { request_interval_ms: 0, launch_interval_ms: 0, boot_ms: [0, 0] };
const account = await createKeyPair();
/** cloud-init is told of the public key, too, which only a key that is one has. */
const host = await createKeyPair();

const startWorld: StartWorld = async (knobs = {}): Promise<LeaseWorld> => {
  const cloud = await startLambda({
    machines: 'none',
    knobs: { ...FAST, ...knobs },
    sshKeys: [account.publicKey],
  });
  const paced: CallPurpose[] = [];

  function connect(options: ConnectOptions = {}, keepMs = 10_000): LeaseManager {
    const { apiKey = 'lambda-key', timeoutMs = 20_000, pace = async () => {} } = options;
    const baseUrl = `${cloud.url}/api/v1`;
    const settings = { apiKey, timeoutMs, keepMs, sshKeyNames: ['default'], baseUrl };
    const manager = createLambdaCloud({ ...settings, stamp: STAMP }, { pace });
    return {
      ...manager,
      async create(wish) {
        const own = { ...wish, hostKey: host.privateKey };
        if (wish.name.startsWith(STAMP)) return manager.create(own);
        // A machine of another deployment: a manager makes none but its own.
        return createLambdaCloud({ ...settings, stamp: wish.name }, { pace }).create(own);
      },
    };
  }

  async function count(purpose: CallPurpose): Promise<void> {
    paced.push(purpose);
  }

  return {
    // A create asks for the catalog before; for the order of turns to be seen it is not kept.
    manager: connect({ pace: count }, 0),
    control: cloud.control,
    connect,
    paced,
    offer: { id: 'gpu_1x_a10', gpuCount: 1 },
    regions: ['us-east-1', 'us-west-1'],
    [Symbol.asyncDispose]: async () => cloud.stop(),
  };
};

const REFUSALS: LeaseFlags['refusals'] = [
  ['balance', 'Permanent', 'lease.unauthorized'],
  ['forbidden', 'Permanent', 'lease.unauthorized'],
  ['quota', 'Permanent', 'lease.quota'],
  ['not_found', 'InvalidInput', 'lease.refused'],
  // Nothing says that it was not done.
  ['conflict', 'Transient', 'lease.unknown'],
  ['unknown', 'Transient', 'lease.unknown'],
];

describeLeaseManager('Lambda Cloud', startWorld, {
  pages: false,
  catalog: 'live',
  // The API mounts file systems below this, /home and /data only.
  engine: { form: 'docker', cachePath: '/lambda/nfs/' },
  refusals: REFUSALS,
});
