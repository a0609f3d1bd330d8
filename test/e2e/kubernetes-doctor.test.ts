import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import * as v from 'valibot';
import { startKubernetes } from '../simulators/kubernetes/simulator.ts';
import type { KubernetesSimulator } from '../simulators/kubernetes/simulator.ts';
import { asAdmin, createObjects } from '../support/kube-admin.ts';
import { startRedis } from '../support/redis.ts';
import type { TestRedis } from '../support/redis.ts';
import { makeFolder, requireNothingLeft, runCli, startSluice } from '../support/server.ts';
import type { Environment, TestFolder } from '../support/server.ts';
import { until } from '../support/until.ts';

let redis: TestRedis;
let folder: TestFolder;
let cluster: KubernetesSimulator;
beforeAll(async () => {
  [redis, folder, cluster] = await Promise.all([
    startRedis(),
    makeFolder(),
    startKubernetes({ pods: 'none', nodes: [{ name: 'one', gpus: 1 }] }),
  ]);
});
afterAll(async () => {
  await Promise.all([redis.stop(), cluster[Symbol.asyncDispose]()]);
  await folder[Symbol.asyncDispose]();
  requireNothingLeft();
});

const reportSchema = v.object({
  checks: v.array(v.object({ check: v.string(), state: v.string(), message: v.string() })),
});

/** What the doctor says of the cluster, a line a finding. */
async function said(more: Environment = {}): Promise<string[]> {
  const env = {
    REDIS_URL: redis.url,
    DATA_DIR: folder.path,
    PROVISIONER: 'kubernetes',
    KUBECONFIG: cluster.kubeconfig,
    ...more,
  };
  const { stdout } = await runCli(['doctor', '--json'], env);
  const { checks } = v.parse(reportSchema, JSON.parse(stdout));
  return checks
    .filter(({ check }) => check === 'kubernetes')
    .map(({ state, message }) => `${state} ${message}`);
}

/** A kubeconfig with another token. */
async function withToken(name: string, token: string): Promise<Environment> {
  const path = join(folder.path, name);
  const config = {
    'current-context': 'c',
    clusters: [
      {
        name: 'c',
        cluster: {
          server: cluster.url,
          'certificate-authority-data': Buffer.from(cluster.ca).toString('base64'),
        },
      },
    ],
    users: [{ name: 'u', user: { token } }],
    contexts: [{ name: 'c', context: { cluster: 'c', user: 'u', namespace: 'default' } }],
  };
  await writeFile(path, JSON.stringify(config));
  return { KUBECONFIG: path };
}

test('a cluster that can be used: its version, where the credentials are from, and what is free', async () => {
  const lines = (await said()).join('\n');
  expect(lines).toContain(`ok Kubernetes v1.34.1 at ${cluster.url} (context simulator of`);
  expect(lines).toContain('the catalog has 2 kinds of machines, 2 of them to be had now');
});

test('a namespace that is missing', async () => {
  expect(await said({ KUBERNETES_NAMESPACE: 'nowhere' })).toEqual([
    'fail the namespace nowhere is not there: kubectl create namespace nowhere, or mend KUBERNETES_NAMESPACE',
  ]);
});

test('credentials that nobody knows (401)', async () => {
  const [line] = await said(await withToken('unknown', 'nonsense'));
  expect(line).toContain('fail Kubernetes does not know these credentials (401)');
});

test('rights that are missing are named with verb and resource (403)', async () => {
  const metadata = { name: 'poor', namespace: 'default' };
  const body = { apiVersion: 'v1', kind: 'ServiceAccount', metadata };
  await createObjects(cluster, [{ path: '/api/v1/namespaces/default/serviceaccounts', body }]);
  await using api = asAdmin(cluster);
  const answer = await api.ask({
    method: 'POST',
    path: '/api/v1/namespaces/default/serviceaccounts/poor/token',
    body: { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec: {} },
  });
  const { status } = v.parse(v.object({ status: v.object({ token: v.string() }) }), answer);
  const [line] = await said(await withToken('poor', status.token));
  expect(line).toContain('our account may not list nodes of all namespaces');
  expect(line).toContain('create, get, list, delete deployments.apps in default');
  expect(line).toContain('get, create services/proxy in default');
  expect(line).not.toContain('jobs.batch');
  const env = { ...(await withToken('poor', status.token)), KUBERNETES_RUNTIME: 'job' };
  const [other] = await said(env);
  expect(other).toContain('create, get, list, watch, patch, delete jobs.batch in default');
});

test('a context that is not there, a file that is not there', async () => {
  expect(await said({ KUBERNETES_CONTEXT: 'other' })).toEqual([
    expect.stringContaining("has no context 'other', but simulator: mend KUBERNETES_CONTEXT"),
  ]);
  expect(await said({ KUBECONFIG: join(folder.path, 'none') })).toEqual([
    expect.stringContaining('fail No credentials for Kubernetes: there is no kubeconfig at'),
  ]);
});

test('no node with a GPU', async () => {
  const lines = await said({ KUBERNETES_GPU_RESOURCE: 'amd.com/gpu' });
  expect(lines.join('\n')).toContain('warn no node of the cluster has GPUs (amd.com/gpu)');
});

test('an API server that is away is told, and at the start of a server, too', async () => {
  await cluster.control.setApiAway(true);
  try {
    expect(await said()).toEqual([
      expect.stringContaining(
        `fail The API server of Kubernetes at ${cluster.url} cannot be reached`,
      ),
    ]);
    const env = { PROVISIONER: 'kubernetes', KUBECONFIG: cluster.kubeconfig };
    await using sluice = await startSluice({
      dataDir: join(folder.path, 'data'),
      redisUrl: redis.url,
      env,
    });
    const told = () =>
      sluice.logs().find(({ msg }) => msg === 'engines cannot run in Kubernetes yet');
    expect(JSON.stringify(await until(told, { what: 'the log line' }))).toContain(
      'cannot be reached',
    );
  } finally {
    await cluster.control.setApiAway(false);
  }
});
