import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { V1ContainerStatus, V1Pod, V1PodSpec } from '@kubernetes/client-node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startKubernetes, whyNoNamespaces } from '../simulators/kubernetes/simulator.ts';
import type { KubernetesSimulator } from '../simulators/kubernetes/simulator.ts';
import { kubectl, kubernetesClients, refusalOf } from '../support/kubernetes.ts';
import type { KubernetesClients } from '../support/kubernetes.ts';
import { until } from '../support/until.ts';

/* What the simulated kubelet does with the containers of a pod. */

const why = await whyNoNamespaces();
/** Why a group is skipped stands behind its name. */
const skipped = why === undefined ? '' : ` (${why})`;

const namespace = 'default';
let cluster: KubernetesSimulator;
let clients: KubernetesClients;

beforeAll(async () => {
  if (why !== undefined) return;
  cluster = await startKubernetes({
    knobs: { probeScale: 0.1, crashLoopMs: 50, pullBackoffMs: 100 },
  });
  clients = kubernetesClients(cluster);
});

afterAll(async () => {
  await cluster?.[Symbol.asyncDispose]();
});

const sh = (name: string, script: string, more: Record<string, unknown> = {}) => ({
  name,
  image: 'busybox',
  command: ['sh', '-c', script],
  ...more,
});

async function make(
  name: string,
  spec: V1PodSpec,
  annotations: Record<string, string> = {},
): Promise<void> {
  await clients.core.createNamespacedPod({
    namespace,
    body: {
      metadata: { name, annotations, labels: { app: name } },
      spec: Object.assign({ restartPolicy: 'Never', terminationGracePeriodSeconds: 2 }, spec),
    },
  });
}

async function podNamed(name: string): Promise<V1Pod> {
  return clients.core.readNamespacedPod({ namespace, name });
}

async function phase(name: string, wanted: string): Promise<V1Pod> {
  return until(
    async () => {
      const pod = await podNamed(name);
      return pod.status?.phase === wanted ? pod : undefined;
    },
    { what: `pod ${name} ${wanted}` },
  );
}

async function statusOf(name: string, container: string): Promise<V1ContainerStatus | undefined> {
  const { status } = await podNamed(name);
  return [...(status?.initContainerStatuses ?? []), ...(status?.containerStatuses ?? [])].find(
    (one) => one.name === container,
  );
}

async function waiting(
  name: string,
  container: string,
  reason: string,
): Promise<V1ContainerStatus> {
  return until(
    async () => {
      const status = await statusOf(name, container);
      return status?.state?.waiting?.reason === reason ? status : undefined;
    },
    { what: `${reason} of ${container}` },
  );
}

const logs = (name: string, container = 'main'): string[] => cluster.control.logs(name, container);

describe.skipIf(why !== undefined)(`containers${skipped}`, () => {
  test('start one after the other, sidecars outlive the main ones and end in reverse order', async () => {
    const folder = await mkdtemp(path.join(tmpdir(), 'sluice-order-'));
    const volumeMounts = [{ name: 'shared', mountPath: '/shared' }];
    const sidecar = (name: string) =>
      sh(
        name,
        `echo ${name} begins >>/shared/log; touch /shared/${name}; trap 'echo ${name} ends >>/shared/log; exit 0' TERM; while :; do sleep 0.05; done`,
        {
          restartPolicy: 'Always',
          volumeMounts,
          startupProbe: {
            exec: { command: ['test', '-e', `/shared/${name}`] },
            periodSeconds: 1,
            failureThreshold: 100,
          },
        },
      );
    await make('ordered', {
      initContainers: [
        sidecar('one'),
        sh('plain', 'sleep 0.1; echo plain >>/shared/log', { volumeMounts }),
        sidecar('two'),
      ],
      containers: [sh('main', 'echo main >>/shared/log; exit 7', { volumeMounts })],
      volumes: [{ name: 'shared', hostPath: { path: folder } }],
    });
    const { status } = await phase('ordered', 'Failed');
    expect((await readFile(path.join(folder, 'log'), 'utf8')).trim().split('\n')).toEqual([
      'one begins',
      'plain',
      'two begins',
      'main',
      'two ends',
      'one ends',
    ]);
    expect(status?.containerStatuses?.[0]?.state?.terminated).toMatchObject({
      exitCode: 7,
      reason: 'Error',
    });
    expect(status?.initContainerStatuses?.map(({ state }) => state?.terminated?.exitCode)).toEqual([
      0, 0, 0,
    ]);
    await rm(folder, { recursive: true });
  });

  test('wait until a sidecar is ready to serve, and start it again when it ends', async () => {
    await make('served', {
      initContainers: [
        {
          name: 'engine',
          image: 'aibrix/vllm-mock:nightly',
          restartPolicy: 'Always',
          startupProbe: {
            httpGet: { path: '/ready', port: 8000 },
            periodSeconds: 1,
            failureThreshold: 300,
          },
        },
      ],
      containers: [
        sh('main', 'curl -s localhost:8000/v1/models; echo; while :; do sleep 0.05; done'),
      ],
    });
    await until(async () => logs('served').length > 0);
    expect(logs('served')[0]).toContain('"sim-model"');
    cluster.control.kill('served', 'engine', 'SIGKILL', 'OOMKilled');
    const restarted = await until(async () => {
      const status = await statusOf('served', 'engine');
      return status?.restartCount === 1 && status.started === true ? status : undefined;
    });
    expect(restarted.lastState?.terminated).toMatchObject({ exitCode: 137, reason: 'OOMKilled' });
    expect((await podNamed('served')).status?.phase).toBe('Running');
    expect(cluster.control.logs('served', 'engine', true).join('\n')).toContain(
      'Application startup complete',
    );
    await clients.core.deleteNamespacedPod({ namespace, name: 'served' });
  });

  test('get SIGTERM, and SIGKILL after their grace', async () => {
    await make('stubborn', {
      terminationGracePeriodSeconds: 1,
      containers: [sh('main', "trap 'echo told' TERM; echo begun; while :; do sleep 0.05; done")],
    });
    await until(async () => (await phase('stubborn', 'Running')) && logs('stubborn').length > 0);
    const begun = Date.now();
    const { status } = await clients.core.deleteNamespacedPod({ namespace, name: 'stubborn' });
    expect(status).toBeDefined();
    const last = await until(() =>
      logs('stubborn').includes('told') ? logs('stubborn') : undefined,
    );
    expect(last).toEqual(['begun', 'told']);
    await until(
      async () => (await refusalOf(podNamed('stubborn')).catch(() => undefined))?.code === 404,
    );
    expect(Date.now() - begun).toBeGreaterThan(900);
    expect(cluster.control.events('pod/stubborn').at(-1)).toMatchObject({
      reason: 'Killing',
      message: 'Stopping container main',
    });
  });

  test('that are told to end while they are being started do end', async () => {
    const names = Array.from({ length: 6 }, (_, at) => `early-${at}`);
    const forever = sh('main', "trap 'exit 0' TERM; while :; do sleep 0.05; done");
    for (const name of names) await make(name, { containers: [forever] });
    const created = (name: string): boolean =>
      cluster.control.events(`pod/${name}`).some(({ reason }) => reason === 'Created');
    await Promise.all(
      names.map(async (name) => {
        // Between the two events it is being started.
        await until(() => created(name), { everyMs: 1 });
        await clients.core.deleteNamespacedPod({ namespace, name });
        await until(() => cluster.control.pods().every(({ metadata }) => metadata.name !== name));
      }),
    );
    expect(cluster.control.pods().map(({ metadata }) => metadata.name)).not.toContain('early-0');
  });

  test('that crash are started again ever later, and their last log is kept', async () => {
    await make('crashing', {
      restartPolicy: 'Always',
      containers: [sh('main', 'echo run; exit 2')],
    });
    const status = await until(async () => {
      const found = await waiting('crashing', 'main', 'CrashLoopBackOff');
      return found.restartCount > 1 ? found : undefined;
    });
    expect(status.state?.waiting?.message).toMatch(
      /^back-off \d.*s restarting failed container=main pod=crashing_default\([0-9a-f-]+\)$/,
    );
    expect(status.lastState?.terminated).toMatchObject({ exitCode: 2, reason: 'Error' });
    expect(cluster.control.logs('crashing', 'main', true)).toEqual(['run']);
    expect(
      cluster.control.events('pod/crashing').find(({ reason }) => reason === 'BackOff')?.count,
    ).toBeGreaterThan(0);
    await clients.core.deleteNamespacedPod({ namespace, name: 'crashing' });
  });

  test('that their probe finds dead are started again', async () => {
    await make('dying', {
      restartPolicy: 'Always',
      containers: [
        sh('main', 'touch /tmp/alive; sleep 0.5; rm /tmp/alive; while :; do sleep 0.05; done', {
          livenessProbe: {
            exec: { command: ['test', '-e', '/tmp/alive'] },
            periodSeconds: 1,
            failureThreshold: 2,
            initialDelaySeconds: 2,
          },
        }),
      ],
    });
    await until(async () => ((await statusOf('dying', 'main'))?.restartCount ?? 0) > 0);
    const events = cluster.control.events('pod/dying').map(({ message }) => message);
    expect(events).toContain('Container main failed liveness probe, will be restarted');
    expect(events).toContain('Liveness probe failed: ');
    await clients.core.deleteNamespacedPod({ namespace, name: 'dying' });
  });

  test('of images that cannot be pulled wait for them', async () => {
    cluster.set({ missingImages: [/private/] });
    await make('unpulled', {
      containers: [sh('main', 'echo here', { image: 'registry/private:1' })],
    });
    const status = await waiting('unpulled', 'main', 'ImagePullBackOff');
    expect(status.state?.waiting?.message).toContain('Back-off pulling image "registry/private:1"');
    const reasons = cluster.control
      .events('pod/unpulled')
      .map(({ reason, message }) => `${reason}: ${message.split(':')[0]}`);
    expect(reasons).toEqual(
      expect.arrayContaining([
        'Pulling: Pulling image "registry/private',
        'Failed: Failed to pull image "registry/private',
        'Failed: Error',
        'BackOff: Back-off pulling image "registry/private',
      ]),
    );
    cluster.set({ missingImages: [] });
    // Nobody maps it to a program either.
    await waiting('unpulled', 'main', 'ErrImagePull');
    await clients.core.deleteNamespacedPod({ namespace, name: 'unpulled' });
  });

  test('see the namespaces of their pod, and those of other containers only where they share them', async () => {
    for (const [name, shareProcessNamespace] of [
      ['apart', false],
      ['together', true],
    ] as const) {
      await make(name, {
        shareProcessNamespace,
        containers: [
          sh('other', 'exec sleep 12.5'),
          sh('main', 'sleep 0.5; echo $$$$; ps ax | grep -c "[s]leep 12.5"; hostname; exit 0'),
        ],
      });
    }
    await until(() => logs('apart').length === 3 && logs('together').length === 3);
    expect(logs('apart')).toEqual(['1', '0', 'apart']);
    expect(logs('together').slice(1)).toEqual(['1', 'together']);
    await Promise.all(
      ['apart', 'together'].map(async (name) =>
        clients.core.deleteNamespacedPod({ namespace, name, gracePeriodSeconds: 0 }),
      ),
    );
  });
});

describe.skipIf(why !== undefined)(`what a container is given${skipped}`, () => {
  test('are its variables, files and rights, and its way to the API server', async () => {
    const { core } = clients;
    await core.createNamespacedConfigMap({
      namespace,
      body: { metadata: { name: 'given' }, data: { color: 'red', 'file.txt': 'text' } },
    });
    await core.createNamespacedSecret({
      namespace,
      body: { metadata: { name: 'given' }, stringData: { password: 's3cret' } },
    });
    const fieldRef = (fieldPath: string) => ({ valueFrom: { fieldRef: { fieldPath } } });
    const script = `
      echo "$PLAIN $EXPANDED $COLOR $PASSWORD $NOTE $LABEL $NAME $MEMORY [$ABSENT] $PREFIX_color"
      cat /config/file.txt; echo; cat /secret/password; echo; id -u; id -G
      touch /denied 2>/dev/null || echo read-only; echo x >/scratch/x && echo written
      cat /var/run/secrets/kubernetes.io/serviceaccount/namespace; echo
      curl -s --cacert /var/run/secrets/kubernetes.io/serviceaccount/ca.crt -H "Authorization: Bearer $(cat /var/run/secrets/kubernetes.io/serviceaccount/token)" https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/version | grep -o v1.34
      echo "last words" >/dev/termination-log`;
    await make(
      'given',
      {
        securityContext: { fsGroup: 2000 },
        containers: [
          sh('main', script, {
            env: [
              { name: 'PLAIN', value: 'plain' },
              { name: 'EXPANDED', value: '<$(PLAIN) $(NOBODY) $$(PLAIN)>' },
              { name: 'COLOR', valueFrom: { configMapKeyRef: { name: 'given', key: 'color' } } },
              { name: 'PASSWORD', valueFrom: { secretKeyRef: { name: 'given', key: 'password' } } },
              { name: 'NOTE', ...fieldRef("metadata.annotations['note']") },
              { name: 'LABEL', ...fieldRef("metadata.labels['app']") },
              { name: 'NAME', ...fieldRef('metadata.name') },
              {
                name: 'MEMORY',
                valueFrom: { resourceFieldRef: { resource: 'limits.memory', divisor: '1Mi' } },
              },
              {
                name: 'ABSENT',
                valueFrom: { secretKeyRef: { name: 'nothing', key: 'x', optional: true } },
              },
            ],
            envFrom: [{ prefix: 'PREFIX_', configMapRef: { name: 'given' } }],
            resources: { limits: { memory: '64Mi' } },
            securityContext: { runAsUser: 1000, readOnlyRootFilesystem: true },
            volumeMounts: [
              { name: 'config', mountPath: '/config' },
              { name: 'secret', mountPath: '/secret' },
              { name: 'scratch', mountPath: '/scratch' },
            ],
          }),
        ],
        volumes: [
          { name: 'config', configMap: { name: 'given' } },
          { name: 'secret', secret: { secretName: 'given' } },
          { name: 'scratch', emptyDir: {} },
        ],
      },
      { note: 'a note' },
    );
    const { status } = await phase('given', 'Succeeded');
    expect(logs('given')).toEqual([
      'plain <plain $(NOBODY) $(PLAIN)> red s3cret a note given given 64 [] red',
      'text',
      's3cret',
      '1000',
      '1000 2000',
      'read-only',
      'written',
      'default',
      'v1.34',
    ]);
    expect(status?.containerStatuses?.[0]?.state?.terminated?.message).toBe('last words\n');
  });

  test('is waited for where it is missing', async () => {
    const { core } = clients;
    await make('lacking', {
      containers: [
        sh('main', 'echo "$KEY"', {
          env: [{ name: 'KEY', valueFrom: { secretKeyRef: { name: 'later', key: 'key' } } }],
        }),
      ],
    });
    const status = await waiting('lacking', 'main', 'CreateContainerConfigError');
    expect(status.state?.waiting?.message).toBe('secret "later" not found');
    await make('unmounted', {
      containers: [
        sh('main', 'cat /later/key', { volumeMounts: [{ name: 'later', mountPath: '/later' }] }),
      ],
      volumes: [{ name: 'later', secret: { secretName: 'later' } }],
    });
    await until(() =>
      cluster.control
        .events('pod/unmounted')
        .some(
          ({ message }) =>
            message === 'MountVolume.SetUp failed for volume "later" : secret "later" not found',
        ),
    );
    await core.createNamespacedSecret({
      namespace,
      body: { metadata: { name: 'later' }, stringData: { key: 'found' } },
    });
    await Promise.all([phase('lacking', 'Succeeded'), phase('unmounted', 'Succeeded')]);
    expect([logs('lacking'), logs('unmounted')]).toEqual([['found'], ['found']]);
  });
});

describe.skipIf(why !== undefined)(`logs${skipped}`, () => {
  test('are followed, cut, and refused where there are none', async () => {
    const { core } = clients;
    await make('talking', {
      containers: [
        sh('main', 'for i in 1 2 3; do echo line $i; sleep 0.1; done'),
        sh('other', 'echo other'),
      ],
    });
    await phase('talking', 'Running');
    expect(
      await refusalOf(core.readNamespacedPodLog({ namespace, name: 'talking' })),
    ).toMatchObject({
      code: 400,
      message: 'a container name must be specified for pod talking, choose one of: [main other]',
    });
    const read = async (more: object) =>
      core.readNamespacedPodLog({ namespace, name: 'talking', container: 'main', ...more });
    expect(await read({ follow: true })).toBe('line 1\nline 2\nline 3\n');
    expect(await read({ tailLines: 1 })).toBe('line 3\n');
    expect(await read({ timestamps: true, tailLines: 1 })).toMatch(
      /^\d{4}-\d\d-\d\dT[\d:.]+Z line 3\n$/,
    );
    expect((await refusalOf(read({ previous: true }))).message).toBe(
      'previous terminated container "main" in pod "talking" not found',
    );
  });
});

describe.skipIf(why !== undefined)(`a simulator that is killed${skipped}`, () => {
  test('takes all that runs in its pods with it', async () => {
    const program = fileURLToPath(new URL('../simulators/kubernetes.ts', import.meta.url));
    const child = spawn(process.execPath, [program], { stdio: ['ignore', 'pipe', 'inherit'] });
    const [line] = (await once(createInterface({ input: child.stdout }), 'line')) as [string];
    const { kubeconfig } = JSON.parse(line) as { kubeconfig: string }; // its own words
    const seconds = `${process.pid}.25`;
    const pod = {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name: 'left' },
      spec: { containers: [sh('main', `sleep ${seconds} & exec sleep ${seconds}`)] },
    };
    const applied = await kubectl({ kubeconfig }, ['apply', '-f', '-'], JSON.stringify(pod));
    expect(applied).toMatchObject({ code: 0 });
    const running = (): string[] =>
      readdirSync('/proc').filter((pid) => {
        try {
          return readFileSync(`/proc/${pid}/cmdline`, 'utf8') === `sleep\0${seconds}\0`;
        } catch {
          return false; // no process, or one that has just ended
        }
      });
    await until(() => running().length === 2, { what: 'two processes in the pod' });
    child.kill('SIGKILL');
    // At once: after a while the next simulator sweeps what a dead one has left, which is not meant.
    await until(() => running().length === 0, { timeoutMs: 5_000, what: 'no process of the pod' });
  });
});
