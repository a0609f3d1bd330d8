import { expect, test } from 'vitest';
import { startKubernetes } from '../simulators/kubernetes/simulator.ts';
import { makeKeyFile, startCloud } from '../support/clouds.ts';
import { cancelJob, createJob, createTemplate, leaseInput } from '../support/leases.ts';
import { startRedis } from '../support/redis.ts';
import { ANY_KEYS, startS3Server } from '../support/s3-server.ts';
import { makeFolder, startSluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { LONG } from '../support/chaos.ts';

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

test.runIf(LONG)(
  'KUBERNETES_RUNTIME unset: batches are Jobs where pods can read the storage, and engines where they cannot',
  async () => {
    await using folder = await makeFolder();
    await using s3 = await startS3Server();
    await using cluster = await startKubernetes({
      pods: 'none',
      nodes: [{ name: 'one', gpus: 4 }],
    });
    const bucket = {
      STORAGE_TYPE: 'S3',
      S3_BUCKET: await s3.createBucket(),
      S3_ENDPOINT: s3.url,
      AWS_ACCESS_KEY_ID: ANY_KEYS.accessKeyId,
      AWS_SECRET_ACCESS_KEY: ANY_KEYS.secretAccessKey,
    };
    const { control } = cluster;
    for (const [storage, more, made] of [
      ['bucket', bucket, 'create jobs'],
      ['folder', {}, 'create deployments'],
    ] as const) {
      const env = { PROVISIONER: 'kubernetes', KUBECONFIG: cluster.kubeconfig, ...more };
      await using redis = await startRedis();
      const place = { dataDir: `${folder.path}/${storage}`, redisUrl: redis.url };
      await using sluice = await startSluice({ ...place, env });
      const template = await createTemplate(sluice.url, 'runpod', {
        accelerator: { type: 'H100' },
      });
      const id = await createJob(sluice.url, template, leaseInput(10));
      await until(() => control.counts()[made] === 1, { what: made });
      await cancelJob(sluice.url, id);
    }
    expect(control.counts()).toMatchObject({ 'create jobs': 1, 'create deployments': 1 });
  },
  90_000,
);
