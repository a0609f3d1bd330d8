import { runCloud } from './cloud/main.ts';
import { startLambda } from './lambda/simulator.ts';

if (import.meta.main) {
  const cloud = {
    name: 'Lambda Cloud',
    program: 'test/simulators/lambda.ts',
    defaultKey: 'lambda-key',
    keyFlag: 'public key of the account, named default',
    settings: [
      'PROVISIONER=lambdaCloud',
      'LAMBDA_CLOUD_API_KEY=lambda-key',
      'LAMBDA_CLOUD_SSH_KEYS=default',
      'LAMBDA_CLOUD_BASE_URL=URL/api/v1',
    ],
  };
  await runCloud(cloud, startLambda);
}
