import { expect, test } from 'vitest';
import { startKubernetes } from '../simulators/kubernetes/simulator.ts';
import { makeKeyFile, startCloud } from '../support/clouds.ts';
import { cancelJob, createJob, createTemplate, leaseInput } from '../support/leases.ts';
import { startRedis } from '../support/redis.ts';
import { makeFolder, startSluice } from '../support/server.ts';
import { until } from '../support/until.ts';

test('PROVISIONER=kubernetes,runpod: what no node takes within KUBERNETES_PENDING_WAIT is leased of the next provider', async () => {
  await using redis = await startRedis();
  await using folder = await makeFolder();
  const key = await makeKeyFile(`${folder.path}/keys`);
  await using cloud = await startCloud('runpod', key, { machines: 'none' });
  // Its node has the GPU, and is full as far as the scheduler is concerned.
  const taints = [{ key: 'reserved', effect: 'NoSchedule' }];
  await using cluster = await startKubernetes({
    pods: 'none',
    nodes: [{ name: 'one', gpus: 1, taints }],
  });
  await using sluice = await startSluice({
    dataDir: `${folder.path}/data`,
    redisUrl: redis.url,
    env: {
      ...cloud.env,
      PROVISIONER: 'kubernetes,runpod',
      AIBRIX_BATCH_SSH_KEY_FILE: key.path,
      KUBECONFIG: cluster.kubeconfig,
      KUBERNETES_PENDING_WAIT: '2s',
    },
  });
  const template = await createTemplate(sluice.url, 'runpod', { accelerator: { type: 'H100' } });
  const id = await createJob(sluice.url, template, leaseInput(10));
  const { control } = cluster;
  await until(() => control.counts()['create deployments'], { what: 'an engine in the cluster' });
  const inventory = async () => (await cloud.control.inventory()).length > 0;
  await until(inventory, { what: 'a machine of RunPod' });
  await until(() => control.pods().length === 0, { what: 'nothing left in the cluster' });
  expect(control.counts()['create deployments']).toBe(1);
  await cancelJob(sluice.url, id);
}, 90_000);
