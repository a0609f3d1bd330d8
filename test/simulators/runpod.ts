import { runCloud } from './cloud/main.ts';
import { startRunPod } from './runpod/simulator.ts';

if (import.meta.main) {
  const cloud = {
    name: 'RunPod',
    program: 'test/simulators/runpod.ts',
    defaultKey: 'runpod-key',
    keyFlag: 'public key of the account',
    settings: [
      'PROVISIONER=runpod',
      'RUNPOD_API_KEY=runpod-key',
      'RUNPOD_SSH_PUBLIC_KEY="$(cat KEY.pub)"',
      'RUNPOD_BASE_URL=URL/v2   (or URL/v1)',
    ],
  };
  await runCloud(cloud, startRunPod);
}
