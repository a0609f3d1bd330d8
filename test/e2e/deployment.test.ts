import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { startKubernetes, whyNoNamespaces } from '../simulators/kubernetes/simulator.ts';
import type { KubernetesSimulator } from '../simulators/kubernetes/simulator.ts';
import { expectExact, makeInput, submit, untilFinal } from '../support/batch.ts';
import { ROOT } from '../support/deploy/manifests.ts';
import { kubectl } from '../support/kubernetes.ts';
import { startRedis } from '../support/redis.ts';
import { ANY_KEYS, startS3Server } from '../support/s3-server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import { LONG } from '../support/chaos.ts';

const why = await whyNoNamespaces();

/** The URL by which pods reach what listens on this machine's loopback. */
async function openToPods({ control }: KubernetesSimulator, url: string): Promise<string> {
  const { port, host } = new URL(url);
  const place = await control.publish(Number(port));
  return url.replace(host, `${place.host}:${place.port}`);
}

async function run(
  cluster: KubernetesSimulator,
  args: readonly string[],
  object?: object,
): Promise<string> {
  const input = object === undefined ? '' : JSON.stringify(object);
  const { code, stdout, stderr } = await kubectl(cluster, ['-n', 'sluice', ...args], input);
  if (code !== 0) throw new Error(`kubectl ${args.join(' ')}: ${stderr}`);
  return stdout;
}

describe.skipIf(why !== undefined)(`kubectl apply -k ${why ?? ''}`, () => {
  test.runIf(LONG)(
    'deploys Sluice, which answers a batch while its workers are replaced',
    async () => {
      await using redis = await startRedis();
      await using s3 = await startS3Server();
      await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
      await engine.setConfig({ latency_ms: 300 });
      const bucket = await s3.createBucket();
      await using cluster = await startKubernetes({
        nodes: [{ name: 'node-1', cpu: '16', memory: '64Gi' }],
      });
      const settings = {
        REDIS_URL: await openToPods(cluster, redis.url),
        ENGINE_URLS: await openToPods(cluster, engine.url),
        S3_BUCKET: bucket,
        S3_ENDPOINT: await openToPods(cluster, s3.url),
        S3_REGION: 'us-east-1',
        AWS_ACCESS_KEY_ID: ANY_KEYS.accessKeyId,
        AWS_SECRET_ACCESS_KEY: ANY_KEYS.secretAccessKey,
      };
      const own = (kind: string, name: string) => ({ apiVersion: 'v1', kind, metadata: { name } });
      const apply = ['apply', '-f', '-'];
      await run(cluster, apply, own('Namespace', 'sluice'));
      await run(cluster, apply, { ...own('Secret', 'sluice-secrets'), stringData: settings });
      await run(cluster, ['apply', '-k', join(ROOT, 'docker/kubernetes/base')]);
      const rollout = (role: string) => ['rollout', 'status', `deployment/sluice-${role}`];
      for (const role of ['worker', 'sweeper', 'api']) {
        await run(cluster, [...rollout(role), '--timeout=120s']);
      }

      const service = ['get', 'service', 'sluice-api', '-o', 'jsonpath={.spec.clusterIP}'];
      const url = `http://${await run(cluster, service)}:8080`;
      const input = makeInput(2_000);
      const id = await submit(url, input, { maxConcurrency: 64 });
      await until(async () => (await engine.counts()).requests > 200, { what: '200 requests' });
      await run(cluster, ['rollout', 'restart', 'deployment/sluice-worker']);
      await run(cluster, [...rollout('worker'), '--timeout=120s']);
      const batch = await untilFinal(url, id, 120_000);
      expect(batch.status).toBe('completed');
      await expectExact(url, batch, input);
      // Handed back, not lost: no line was asked twice.
      const { repeated, distinct_bodies: distinct } = await engine.counts();
      expect({ repeated, distinct }).toEqual({ repeated: 0, distinct: 2_000 });
    },
  );
});
