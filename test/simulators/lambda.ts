import { runCloud } from './cloud/main.ts';
import { startLambda } from './lambda/simulator.ts';

if (import.meta.main) {
  await runCloud(
    'Lambda Cloud',
    'lambda-key',
    'public key of the account, named default',
    startLambda,
  );
}
