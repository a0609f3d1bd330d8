import { describe, expect, test } from 'vitest';
import { renderDeployment, renderService } from '../../src/resources/kubernetes/deployment.ts';
import type { EngineTerms } from '../../src/resources/kubernetes/engine-container.ts';
import type { Changes } from '../support/template-spec.ts';
import { makeSpec } from '../support/template-spec.ts';

const TERMS: EngineTerms = {
  resource: 'nvidia.com/gpu',
  productLabel: 'nvidia.com/gpu.product',
  modelCache: null,
  objectStore: () => null,
};
const ORDER = { name: 'sl-1-engine', namespace: 'batch' };

function render(
  change: Changes = {},
  { terms = {}, regions = [] }: { terms?: Partial<EngineTerms>; regions?: string[] } = {},
) {
  const spec = makeSpec(change);
  const engine = { spec, servingName: 'm' };
  const { count } = spec.accelerator;
  const gpu = { product: 'NVIDIA-L4', count, regions };
  const deployment = renderDeployment({ ...ORDER, engine, gpu }, { ...TERMS, ...terms });
  const { spec: pod } = deployment.spec.template;
  const [container = {}] = pod.containers;
  return { deployment, pod, container };
}

describe('the Deployment of a template', () => {
  test('names, labels and one pod, whose successor does not wait beside it', () => {
    const { deployment } = render();
    expect(deployment.metadata).toMatchObject({ name: 'sl-1-engine', namespace: 'batch' });
    expect(deployment.spec).toMatchObject({ replicas: 1, strategy: { type: 'Recreate' } });
    const { matchLabels } = deployment.spec.selector;
    expect(deployment.spec.template.metadata.labels).toMatchObject(matchLabels);
  });

  test('the engine’s image, command and arguments', () => {
    const { container } = render();
    expect(container['command']).toHaveLength(1);
    expect(container['args']).toEqual(expect.arrayContaining(['--host', '0.0.0.0']));
    expect(container['args']).toEqual(expect.arrayContaining(['--port', '8000']));
  });

  test('GPUs by requests and limits, on nodes that have this one', () => {
    const spec = makeSpec();
    const accelerator = { ...spec.accelerator, count: 2 };
    const { container, pod } = render({
      accelerator,
      parallelism: { ...spec.parallelism, tp: 2 },
    });
    const amount = { 'nvidia.com/gpu': '2' };
    expect(container['resources']).toEqual({ requests: amount, limits: amount });
    expect(pod).toMatchObject({ nodeSelector: { 'nvidia.com/gpu.product': 'NVIDIA-L4' } });
    expect(pod.tolerations).toContainEqual(expect.objectContaining({ key: 'nvidia.com/gpu' }));
  });

  test('no GPU for the type cpu', () => {
    const engine = { spec: makeSpec(), servingName: 'm' };
    const gpu = { product: 'cpu', count: 1, regions: [] };
    const { spec } = renderDeployment({ ...ORDER, engine, gpu }, TERMS).spec.template;
    expect(spec.containers[0]).not.toHaveProperty('resources');
    expect(spec).not.toHaveProperty('nodeSelector');
  });

  test('regions and zones', () => {
    expect(render().pod).not.toHaveProperty('affinity');
    const text = JSON.stringify(render({}, { regions: ['eu-west-1a'] }).pod.affinity);
    expect(text).toContain('topology.kubernetes.io/zone');
    expect(text).toContain('eu-west-1a');
  });

  test('/dev/shm in memory, and the claim that keeps weights', () => {
    const { pod, container } = render({}, { terms: { modelCache: 'weights' } });
    expect(pod.volumes).toEqual([
      expect.objectContaining({ emptyDir: expect.objectContaining({ medium: 'Memory' }) }),
      { name: 'models', persistentVolumeClaim: { claimName: 'weights' } },
    ]);
    expect(container['volumeMounts']).toContainEqual({ name: 'dshm', mountPath: '/dev/shm' });
  });

  test('a token comes out of a Secret, and is nowhere in the manifest', () => {
    const spec = makeSpec();
    const source = { ...spec.model_source, auth_secret_ref: 'hf' };
    const { container } = render({ model_source: source });
    expect(container['env']).toContainEqual({
      name: 'HF_TOKEN',
      valueFrom: { secretKeyRef: { name: 'hf', key: 'token' } },
    });
  });

  test('it may take as long as the template says until it is ready', () => {
    const spec = makeSpec();
    const engine = { ...spec.engine, ready_timeout_seconds: 1_800, health_endpoint: '/up' };
    const { container } = render({ engine });
    expect(container['startupProbe']).toMatchObject({
      httpGet: { path: '/up', port: 8000 },
      periodSeconds: 5,
      failureThreshold: 360,
    });
    expect(container['readinessProbe']).toMatchObject({ httpGet: { path: '/up', port: 8000 } });
  });

  test('no token of the cluster is in the pod', () => {
    expect(render().pod).toMatchObject({ automountServiceAccountToken: false });
  });
});

test('the Service leads to the pod, and goes with the Deployment', () => {
  const { deployment } = render();
  const service = renderService(ORDER, 'uid-1');
  expect(service.spec.selector).toEqual(deployment.spec.selector.matchLabels);
  expect(service.metadata.ownerReferences).toEqual([
    { apiVersion: 'apps/v1', kind: 'Deployment', name: 'sl-1-engine', uid: 'uid-1' },
  ]);
});
