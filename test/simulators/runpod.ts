import { runCloud } from './cloud/main.ts';
import { startRunPod } from './runpod/simulator.ts';

if (import.meta.main) {
  await runCloud('RunPod', 'runpod-key', 'public key of the account', startRunPod);
}
