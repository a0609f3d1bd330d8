import { makeInformer, PatchStrategy, setHeaderOptions, Watch } from '@kubernetes/client-node';
import type { V1ConfigMap, V1Pod } from '@kubernetes/client-node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startKubernetes } from '../simulators/kubernetes/simulator.ts';
import type { KubernetesSimulator } from '../simulators/kubernetes/simulator.ts';
import { jobOf, kubernetesClients, refusalOf } from '../support/kubernetes.ts';
import type { KubernetesClients } from '../support/kubernetes.ts';
import { until } from '../support/until.ts';

/* What the simulated API server does as the real one, asked by the client that programs here use. */

const namespace = 'default';
let cluster: KubernetesSimulator;
let clients: KubernetesClients;

beforeAll(async () => {
  cluster = await startKubernetes({ pods: 'none' });
  clients = kubernetesClients(cluster);
});

afterAll(async () => {
  await cluster[Symbol.asyncDispose]();
});

const configMap = (
  name: string,
  data: Record<string, string> = {},
  labels: Record<string, string> = {},
): V1ConfigMap => ({
  metadata: { name, labels },
  data,
});

describe('objects', () => {
  test('are created once, read, and deleted', async () => {
    const { core } = clients;
    const made = await core.createNamespacedConfigMap({
      namespace,
      body: configMap('once', { a: '1' }),
    });
    expect(made.metadata?.uid).toMatch(/^[0-9a-f-]{36}$/);
    expect(
      await refusalOf(core.createNamespacedConfigMap({ namespace, body: configMap('once') })),
    ).toEqual({
      code: 409,
      reason: 'AlreadyExists',
      message: 'configmaps "once" already exists',
    });
    expect((await core.readNamespacedConfigMap({ namespace, name: 'once' })).data).toEqual({
      a: '1',
    });
    await core.deleteNamespacedConfigMap({ namespace, name: 'once' });
    expect(await refusalOf(core.readNamespacedConfigMap({ namespace, name: 'once' }))).toEqual({
      code: 404,
      reason: 'NotFound',
      message: 'configmaps "once" not found',
    });
  });

  test('get names made of generateName, and no namespace that is not there', async () => {
    const { core } = clients;
    const body = { metadata: { generateName: 'made-' } };
    const [one, two] = await Promise.all([
      core.createNamespacedConfigMap({ namespace, body }),
      core.createNamespacedConfigMap({ namespace, body }),
    ]);
    expect(one.metadata?.name).toMatch(/^made-[a-z0-9]{5}$/);
    expect(two.metadata?.name).not.toBe(one.metadata?.name);
    expect(
      await refusalOf(core.createNamespacedConfigMap({ namespace: 'nowhere', body })),
    ).toMatchObject({
      code: 404,
      message: 'namespaces "nowhere" not found',
    });
  });

  test('refuse an update of an old version', async () => {
    const { core } = clients;
    const made = await core.createNamespacedConfigMap({
      namespace,
      body: configMap('versions', { a: '1' }),
    });
    await core.replaceNamespacedConfigMap({
      namespace,
      name: 'versions',
      body: Object.assign(structuredClone(made), { data: { a: '2' } }),
    });
    const late = core.replaceNamespacedConfigMap({
      namespace,
      name: 'versions',
      body: Object.assign(structuredClone(made), { data: { a: '3' } }),
    });
    expect(await refusalOf(late)).toEqual({
      code: 409,
      reason: 'Conflict',
      message:
        'Operation cannot be fulfilled on configmaps "versions": the object has been modified; please apply your changes to the latest version and try again',
    });
    expect((await core.readNamespacedConfigMap({ namespace, name: 'versions' })).data).toEqual({
      a: '2',
    });
  });

  test('a dry run changes nothing', async () => {
    const { core } = clients;
    const made = await core.createNamespacedConfigMap({
      namespace,
      body: configMap('dry'),
      dryRun: 'All',
    });
    expect(made.metadata?.uid).toBeDefined();
    expect((await refusalOf(core.readNamespacedConfigMap({ namespace, name: 'dry' }))).code).toBe(
      404,
    );
  });

  test('are patched in four ways', async () => {
    const { core } = clients;
    await core.createNamespacedConfigMap({
      namespace,
      body: configMap('patched', { a: '1', b: '2' }),
    });
    const patch = async (strategy: PatchStrategy, body: unknown) =>
      core.patchNamespacedConfigMap(
        {
          namespace,
          name: 'patched',
          body,
          fieldManager: 'test',
          force: strategy === PatchStrategy.ServerSideApply ? true : undefined,
        } as Parameters<typeof core.patchNamespacedConfigMap>[0],
        setHeaderOptions('Content-Type', strategy),
      );
    expect((await patch(PatchStrategy.MergePatch, { data: { a: null, c: '3' } })).data).toEqual({
      b: '2',
      c: '3',
    });
    expect(
      (await patch(PatchStrategy.JsonPatch, [{ op: 'replace', path: '/data/b', value: 'x' }])).data,
    ).toEqual({ b: 'x', c: '3' });
    const applied = { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'patched' } };
    expect(
      (await patch(PatchStrategy.ServerSideApply, { ...applied, data: { d: '4', e: '5' } })).data,
    ).toEqual({ b: 'x', c: '3', d: '4', e: '5' });
    // What it applied before and does not any more goes.
    expect(
      (await patch(PatchStrategy.ServerSideApply, { ...applied, data: { d: '6' } })).data,
    ).toEqual({ b: 'x', c: '3', d: '6' });

    const env = [
      { name: 'A', value: '1' },
      { name: 'B', value: '2' },
    ];
    await clients.apps.createNamespacedDeployment({
      namespace,
      body: {
        metadata: { name: 'merged' },
        spec: {
          replicas: 0,
          selector: { matchLabels: { app: 'merged' } },
          template: {
            metadata: { labels: { app: 'merged' } },
            spec: { containers: [{ name: 'main', image: 'busybox', env }] },
          },
        },
      },
    });
    const containers = [
      {
        name: 'main',
        env: [
          { name: 'B', value: '3' },
          { name: 'C', value: '4' },
        ],
      },
    ];
    const merged = await clients.apps.patchNamespacedDeployment(
      { namespace, name: 'merged', body: { spec: { template: { spec: { containers } } } } },
      setHeaderOptions('Content-Type', PatchStrategy.StrategicMergePatch),
    );
    expect(merged.spec?.template.spec?.containers[0]).toMatchObject({
      image: 'busybox',
      env: [
        { name: 'A', value: '1' },
        { name: 'B', value: '3' },
        { name: 'C', value: '4' },
      ],
    });
  });

  test('are found by labels and fields, and listed in pages of one state', async () => {
    const { core } = clients;
    for (const name of ['page-1', 'page-2', 'page-3', 'page-4', 'page-5']) {
      const labels = { set: 'pages', odd: String(Number(name.slice(-1)) % 2 === 1) };
      await core.createNamespacedConfigMap({ namespace, body: configMap(name, {}, labels) });
    }
    const names = async (labelSelector: string) =>
      (await core.listNamespacedConfigMap({ namespace, labelSelector })).items.map(
        ({ metadata }) => metadata?.name,
      );
    expect(await names('set=pages,odd=true')).toEqual(['page-1', 'page-3', 'page-5']);
    expect(await names('set in (pages, other),odd!=true')).toEqual(['page-2', 'page-4']);
    expect(await names('set=pages,!odd')).toEqual([]);
    const byField = await core.listNamespacedConfigMap({
      namespace,
      fieldSelector: 'metadata.name=page-2',
    });
    expect(byField.items).toHaveLength(1);
    expect(
      (await refusalOf(core.listNamespacedConfigMap({ namespace, fieldSelector: 'data.a=1' })))
        .message,
    ).toBe('field label not supported: data.a');

    const first = await core.listNamespacedConfigMap({
      namespace,
      labelSelector: 'set=pages',
      limit: 2,
    });
    await core.deleteNamespacedConfigMap({ namespace, name: 'page-3' });
    const next = await core.listNamespacedConfigMap({
      namespace,
      labelSelector: 'set=pages',
      limit: 2,
      _continue: first.metadata?._continue ?? '',
    });
    expect(next.items.map(({ metadata }) => metadata?.name)).toEqual(['page-3', 'page-4']);
    expect(next.metadata?.resourceVersion).toBe(first.metadata?.resourceVersion);
  });
});

describe('watches', () => {
  interface Seen {
    type: string;
    name: string | undefined;
    code?: number;
  }

  async function follow(query: Record<string, unknown>) {
    const seen: Seen[] = [];
    const over = Promise.withResolvers<unknown>();
    const controller = await new Watch(clients.config).watch(
      `/api/v1/namespaces/${namespace}/configmaps`,
      query as Parameters<Watch['watch']>[1],
      (type, object: { metadata?: { name?: string }; code?: number }) => {
        seen.push({
          type,
          name: object.metadata?.name,
          ...(object.code === undefined ? {} : { code: object.code }),
        });
      },
      (error: unknown) => over.resolve(error),
    );
    return { seen, over: over.promise, stop: () => controller.abort() };
  }

  test('begin where the list ended, and see what begins and ceases to match', async () => {
    const { core } = clients;
    const { metadata } = await core.listNamespacedConfigMap({ namespace });
    await core.createNamespacedConfigMap({
      namespace,
      body: configMap('seen', {}, { watched: 'yes' }),
    });
    const { seen, stop } = await follow({
      resourceVersion: metadata?.resourceVersion,
      labelSelector: 'watched=yes',
    });
    const change = async (labels: Record<string, string>) =>
      core.replaceNamespacedConfigMap({
        namespace,
        name: 'seen',
        body: configMap('seen', {}, labels),
      });
    await change({ watched: 'yes', more: '1' });
    await change({ watched: 'no' });
    await change({ watched: 'yes' });
    await core.deleteNamespacedConfigMap({ namespace, name: 'seen' });
    await until(() => seen.length >= 5);
    stop();
    expect(seen.map(({ type }) => type)).toEqual([
      'ADDED',
      'MODIFIED',
      'DELETED',
      'ADDED',
      'DELETED',
    ]);
  });

  test('get bookmarks, end at their time, and are told when the past is forgotten', async () => {
    const { core } = clients;
    cluster.set({ bookmarkMs: 50 });
    const { metadata } = await core.listNamespacedConfigMap({ namespace });
    const resourceVersion = metadata?.resourceVersion;
    const marked = await follow({ resourceVersion, allowWatchBookmarks: true, timeoutSeconds: 1 });
    await until(() => marked.seen.some(({ type }) => type === 'BOOKMARK'));
    await marked.over;

    await core.createNamespacedConfigMap({ namespace, body: configMap('forgotten') });
    cluster.control.compact();
    const late = await follow({ resourceVersion });
    await until(() => late.seen.length > 0);
    expect(late.seen).toMatchObject([{ type: 'ERROR', code: 410 }]);
    late.stop();
  });

  test('an informer lists again after 410 and after the server was away', async () => {
    const { core, config } = clients;
    const names = new Set<string>();
    const informer = makeInformer<V1ConfigMap>(
      config,
      `/api/v1/namespaces/${namespace}/configmaps`,
      async () => core.listNamespacedConfigMap({ namespace }),
    );
    const restart = (): void => void setTimeout(() => void informer.start().catch(restart), 50);
    informer.on('add', ({ metadata }) => names.add(metadata?.name ?? ''));
    informer.on('error', restart);
    await informer.start();
    await core.createNamespacedConfigMap({ namespace, body: configMap('before-away') });
    await until(() => names.has('before-away'));
    await cluster.control.setApiAway(true);
    await expect(core.readNamespacedConfigMap({ namespace, name: 'before-away' })).rejects.toThrow(
      'fetch failed',
    );
    cluster.control.compact();
    await cluster.control.setApiAway(false);
    await core.createNamespacedConfigMap({ namespace, body: configMap('after-away') });
    await until(() => names.has('after-away'));
    await informer.stop();
  });
});

describe('who may do what', () => {
  test('nobody without a token, and service accounts what their roles say', async () => {
    const { core, rbac } = clients;
    const strangers = kubernetesClients(cluster, 'wrong');
    expect(await refusalOf(strangers.core.listNamespacedPod({ namespace }))).toMatchObject({
      code: 401,
      reason: 'Unauthorized',
    });

    await core.createNamespacedServiceAccount({
      namespace,
      body: { metadata: { name: 'reader' } },
    });
    const { status } = await core.createNamespacedServiceAccountToken({
      namespace,
      name: 'reader',
      body: { spec: { audiences: [] } },
    });
    const reader = kubernetesClients(cluster, status?.token);
    await clients.batch.createNamespacedJob({ namespace, body: jobOf('mine', { suspend: true }) });
    expect(await refusalOf(reader.batch.readNamespacedJob({ namespace, name: 'mine' }))).toEqual({
      code: 403,
      reason: 'Forbidden',
      message:
        'jobs.batch "mine" is forbidden: User "system:serviceaccount:default:reader" cannot get resource "jobs" in API group "batch" in the namespace "default"',
    });
    await rbac.createNamespacedRole({
      namespace,
      body: {
        metadata: { name: 'reads' },
        rules: [{ apiGroups: ['batch'], resources: ['jobs'], verbs: ['get'] }],
      },
    });
    await rbac.createNamespacedRoleBinding({
      namespace,
      body: {
        metadata: { name: 'reads' },
        roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name: 'reads' },
        subjects: [{ kind: 'ServiceAccount', name: 'reader', namespace }],
      },
    });
    expect((await reader.batch.readNamespacedJob({ namespace, name: 'mine' })).metadata?.name).toBe(
      'mine',
    );
    expect((await refusalOf(reader.batch.listNamespacedJob({ namespace }))).message).toContain(
      'cannot list resource "jobs"',
    );
    expect(
      (await refusalOf(reader.core.readNamespacedPodLog({ namespace, name: 'x' }))).message,
    ).toContain('cannot get resource "pods/log"');
    await core.deleteNamespacedServiceAccount({ namespace, name: 'reader' });
    expect(
      (await refusalOf(reader.batch.readNamespacedJob({ namespace, name: 'mine' }))).code,
    ).toBe(401);
  });
});

describe('Jobs', () => {
  test('are filled in as Kubernetes does', async () => {
    const { spec, metadata } = await clients.batch.createNamespacedJob({
      namespace,
      body: jobOf('defaults', { suspend: true }),
    });
    expect(spec).toMatchObject({
      backoffLimit: 6,
      completions: 1,
      parallelism: 1,
      completionMode: 'NonIndexed',
      podReplacementPolicy: 'TerminatingOrFailed',
    });
    expect(spec?.selector?.matchLabels).toEqual({
      'batch.kubernetes.io/controller-uid': metadata?.uid,
    });
    expect(spec?.template.metadata?.labels).toMatchObject({
      'job-name': 'defaults',
      'batch.kubernetes.io/job-name': 'defaults',
    });
  });

  test.for([
    [
      'a restart policy that no Job may have',
      { template: { spec: { restartPolicy: 'Always', containers: [{ name: 'a', image: 'b' }] } } },
      'spec.template.spec.restartPolicy: Unsupported value: "Always": supported values: "OnFailure", "Never"',
    ],
    [
      'no containers',
      { template: { spec: { restartPolicy: 'Never', containers: [] } } },
      'spec.template.spec.containers: Required value',
    ],
    [
      'a number below 0',
      { backoffLimit: -1 },
      'spec.backoffLimit: Invalid value: -1: must be greater than or equal to 0',
    ],
    [
      'no completions where it is indexed',
      { completionMode: 'Indexed' },
      'spec.completions: Required value: when completion mode is Indexed',
    ],
    [
      'a container that is not there',
      {
        podFailurePolicy: {
          rules: [
            { action: 'FailJob', onExitCodes: { containerName: 'x', operator: 'In', values: [1] } },
          ],
        },
      },
      'must be one of the container or initContainer names in the pod template',
    ],
  ] as const)('with %s are refused', async ([, more, message]) => {
    const refusal = await refusalOf(
      clients.batch.createNamespacedJob({
        namespace,
        body: jobOf('wrong', more),
      }),
    );
    expect(refusal).toMatchObject({ code: 422, reason: 'Invalid' });
    expect(refusal.message).toContain(
      `Job.batch "wrong" is invalid: ${message.startsWith('must') ? '' : message}`,
    );
    expect(refusal.message).toContain(message);
  });

  test('do not change what they run, but who schedules them may say where while they are suspended', async () => {
    const { batch } = clients;
    await batch.createNamespacedJob({ namespace, body: jobOf('fixed', { suspend: true }) });
    const patch = async (body: unknown) =>
      batch.patchNamespacedJob(
        { namespace, name: 'fixed', body },
        setHeaderOptions('Content-Type', PatchStrategy.StrategicMergePatch),
      );
    const image = {
      spec: { template: { spec: { containers: [{ name: 'main', image: 'other' }] } } },
    };
    expect(await refusalOf(patch(image))).toMatchObject({
      code: 422,
      reason: 'Invalid',
      message: expect.stringContaining('field is immutable') as unknown,
    });
    expect((await refusalOf(patch({ spec: { completions: 3 } }))).message).toContain(
      'spec.completions: Invalid value: 3: field is immutable',
    );
    const where = await patch({ spec: { template: { spec: { nodeSelector: { zone: 'a' } } } } });
    expect(where.spec?.template.spec?.nodeSelector).toEqual({ zone: 'a' });
    await patch({ spec: { suspend: false } });
    await until(
      async () =>
        (await batch.readNamespacedJob({ namespace, name: 'fixed' })).status?.active === 1,
    );
    expect(
      (await refusalOf(patch({ spec: { template: { spec: { nodeSelector: { zone: 'b' } } } } })))
        .code,
    ).toBe(422);
  });

  test('leave their pods when nothing is said about them, and take them with Background and Foreground', async () => {
    const { batch, core } = clients;
    const podsOf = async (name: string): Promise<V1Pod[]> =>
      (await core.listNamespacedPod({ namespace, labelSelector: `job-name=${name}` })).items;
    for (const name of ['orphaning', 'background', 'foreground']) {
      await batch.createNamespacedJob({
        namespace,
        body: jobOf(name, {}, { resources: { limits: { 'nvidia.com/gpu': '9' } } }),
      });
      await until(async () => (await podsOf(name)).length === 1);
    }
    await batch.deleteNamespacedJob({ namespace, name: 'orphaning' });
    await batch.deleteNamespacedJob({
      namespace,
      name: 'background',
      propagationPolicy: 'Background',
    });
    await batch.deleteNamespacedJob({
      namespace,
      name: 'foreground',
      propagationPolicy: 'Foreground',
    });
    await until(
      async () =>
        (await podsOf('background')).length === 0 && (await podsOf('foreground')).length === 0,
    );
    await until(
      async () =>
        (await refusalOf(batch.readNamespacedJob({ namespace, name: 'orphaning' }))).code === 404,
    );
    const [left] = await podsOf('orphaning');
    expect(left?.metadata?.name).toMatch(/^orphaning-/);
    expect(left?.metadata?.ownerReferences).toBeUndefined();
  });
});

test('counts what it was asked, and answers as a test wants it', async () => {
  const { core } = clients;
  const before = cluster.control.counts()['get secrets'] ?? 0;
  const end = cluster.control.fault(({ resource }) =>
    resource === 'secrets'
      ? {
          kind: 'Status',
          apiVersion: 'v1',
          metadata: {},
          status: 'Failure',
          code: 429,
          reason: 'TooManyRequests',
          message: 'slow down',
        }
      : undefined,
  );
  expect(await refusalOf(core.readNamespacedSecret({ namespace, name: 'x' }))).toMatchObject({
    code: 429,
  });
  end();
  expect(await refusalOf(core.readNamespacedSecret({ namespace, name: 'x' }))).toMatchObject({
    code: 404,
  });
  expect(cluster.control.counts()['get secrets']).toBe(before + 2);
});
