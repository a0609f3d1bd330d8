import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import * as v from 'valibot';
import { createCluster } from '../../src/resources/kubernetes/cluster.ts';
import type { Cluster } from '../../src/resources/kubernetes/cluster.ts';
import { checkCluster } from '../../src/resources/kubernetes/rights.ts';
import { startKubernetes } from '../simulators/kubernetes/simulator.ts';
import type { KubernetesSimulator } from '../simulators/kubernetes/simulator.ts';
import { render, whyNoKustomize } from '../support/deploy/kustomize.ts';
import { kubectl } from '../support/kubernetes.ts';

const why = whyNoKustomize();
const reviewed = v.looseObject({ status: v.looseObject({ allowed: v.boolean() }) });

describe.skipIf(why !== undefined)(`the account of the example ${why ?? ''}`, () => {
  let simulator: KubernetesSimulator;
  let cluster: Cluster;

  async function run(args: readonly string[], input = ''): Promise<string> {
    const { code, stdout, stderr } = await kubectl(simulator, args, input);
    if (code !== 0) throw new Error(`kubectl ${args.join(' ')}: ${stderr}`);
    return stdout.trim();
  }

  async function mayAll(
    resource: string,
    verbs: readonly string[],
    group = '',
  ): Promise<boolean[]> {
    const path = '/apis/authorization.k8s.io/v1/selfsubjectaccessreviews';
    const ask = async (verb: string) => {
      const resourceAttributes = { namespace: 'sluice', verb, group, resource };
      const body = {
        apiVersion: 'authorization.k8s.io/v1',
        kind: 'SelfSubjectAccessReview',
        spec: { resourceAttributes },
      };
      const review = await cluster.api.ask({ method: 'POST', path, body });
      return v.parse(reviewed, review).status.allowed;
    };
    return Promise.all(verbs.map(ask));
  }

  beforeAll(async () => {
    simulator = await startKubernetes({ pods: 'none' });
    const kinds = /^(?:Namespace|ServiceAccount|(?:Cluster)?Role(?:Binding)?)$/;
    const objects = render('docker/kubernetes/overlays/example')
      .filter(({ kind }) => kinds.test(kind))
      .map(({ source: _source, ...object }) => object);
    const list = { apiVersion: 'v1', kind: 'List', items: objects };
    await run(['apply', '-f', '-'], JSON.stringify(list));
    const token = await run(['create', 'token', 'sluice', '-n', 'sluice']);
    const { url: server, ca } = simulator;
    const authorization = async () => `Bearer ${token}`;
    const access = { server, namespace: null, isInCluster: true, tls: { ca }, source: 'the test' };
    cluster = createCluster({
      open: async () => ({ ...access, authorization }),
      namespaces: ['sluice'],
    });
  });
  afterAll(async () => {
    await cluster.close();
    await simulator[Symbol.asyncDispose]();
  });

  test('may do what engines of a cluster take, as doctor looks', async () => {
    const found = await checkCluster(cluster, { isProxied: false });
    expect(found).toEqual([{ state: 'ok', message: expect.stringContaining('sluice') }]);
  });

  test('may run batches as Jobs', async () => {
    const verbs = ['create', 'get', 'list', 'watch', 'patch', 'delete'];
    expect(await mayAll('jobs', verbs, 'batch')).toEqual(verbs.map(() => true));
  });

  test('may read no secrets, and look at nodes only', async () => {
    expect(await mayAll('secrets', ['get', 'list', 'create'])).toEqual([false, false, false]);
    expect(await mayAll('pods', ['create', 'delete', 'patch'])).toEqual([false, false, false]);
    expect(await mayAll('nodes', ['list', 'patch', 'delete'])).toEqual([true, false, false]);
  });
});
