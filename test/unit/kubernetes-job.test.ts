import { readFile } from 'node:fs/promises';
import { describe, expect, test } from 'vitest';
import * as v from 'valibot';
import { parse } from 'yaml';
import { renderDeployment, renderService } from '../../src/resources/kubernetes/deployment.ts';
import { renderJob } from '../../src/resources/kubernetes/job-manifest.ts';
import type { JobOrder, JobTerms } from '../../src/resources/kubernetes/job-manifest.ts';
import { faultsOf } from '../support/deploy/schemas.ts';
import { makeSpec } from '../support/template-spec.ts';

const FOLDER = new URL('../../config/kubernetes/', import.meta.url);
const TERMS: Omit<JobTerms, 'template'> = {
  resource: 'nvidia.com/gpu',
  productLabel: 'nvidia.com/gpu.product',
  modelCache: null,
  objectStore: () => null,
  workerImage: null,
  queue: null,
};
const ORDER: JobOrder = {
  name: 'sl-1-job-a',
  namespace: 'batch',
  annotations: { 'batch.job.aibrix.ai/endpoint': '/v1/chat/completions' },
  engine: { spec: makeSpec({ engine: { health_endpoint: '/up' } }), servingName: 'm' },
  gpu: { product: 'NVIDIA-L4', count: 2, regions: ['eu-1b'] },
  replicas: 1,
  seconds: 3_600,
};

const container = v.looseObject({
  name: v.string(),
  image: v.string(),
  command: v.optional(v.array(v.string())),
  args: v.optional(v.array(v.string()), []),
  env: v.optional(v.array(v.looseObject({ name: v.string(), value: v.optional(v.string()) })), []),
  resources: v.optional(v.looseObject({})),
});
const jobSchema = v.looseObject({
  apiVersion: v.string(),
  kind: v.string(),
  metadata: v.looseObject({ name: v.string(), labels: v.record(v.string(), v.string()) }),
  spec: v.looseObject({
    template: v.looseObject({
      spec: v.looseObject({
        initContainers: v.optional(v.array(container), []),
        containers: v.array(container),
      }),
    }),
  }),
});

async function render(
  change: Partial<JobOrder> = {},
  terms: Partial<JobTerms> = {},
  name = 'job-template.yaml',
) {
  const template: unknown = parse(await readFile(new URL(name, FOLDER), 'utf8'));
  const job = v.parse(
    jobSchema,
    renderJob({ ...ORDER, ...change }, { ...TERMS, template, ...terms }),
  );
  const { initContainers, containers } = job.spec.template.spec;
  const find = (wanted: string) =>
    [...initContainers, ...containers].find((each) => each.name === wanted);
  return { job, engine: find('llm-engine'), worker: find('batch-worker') };
}

describe('the Job of a batch', () => {
  test.for(['job-template.yaml', 'job-template-legacy.yaml'])(
    'of %s is one that Kubernetes takes',
    async (name) => {
      const { job } = await render({ replicas: 2 }, { queue: 'q', modelCache: 'weights' }, name);
      expect(await faultsOf({ ...job, source: 'rendered' })).toEqual([]);
    },
  );

  test('has name, namespace and annotations, and keeps what the template says beside', async () => {
    const { job } = await render();
    expect(job.metadata).toMatchObject({
      name: 'sl-1-job-a',
      namespace: 'batch',
      annotations: ORDER.annotations,
      labels: { app: 'aibrix-batch', 'app.kubernetes.io/managed-by': 'sluice' },
    });
    expect(job.spec).toMatchObject({
      parallelism: 1,
      completions: 1,
      podReplacementPolicy: 'Failed',
    });
    expect(job.spec).not.toHaveProperty('completionMode');
    expect(job.spec['activeDeadlineSeconds']).toBe(7_200);
  });

  test('has the engine of the deployment template in its sidecar, and its GPUs', async () => {
    const { engine, worker, job } = await render();
    expect(engine?.image).toBe('vllm/vllm-openai:v0.32.0');
    expect([...(engine?.command ?? []), ...(engine?.args ?? [])]).toContain('Qwen/Qwen3-8B');
    expect(engine?.['restartPolicy']).toBe('Always');
    expect(engine?.resources).toMatchObject({
      requests: { 'nvidia.com/gpu': '2', memory: '8Gi' },
      limits: { 'nvidia.com/gpu': '2' },
    });
    expect(engine).toMatchObject({ livenessProbe: { httpGet: { path: '/up', port: 8000 } } });
    expect(job.spec.template.spec).toMatchObject({
      nodeSelector: { 'nvidia.com/gpu.product': 'NVIDIA-L4' },
    });
    const ready = worker?.env.find(({ name }) => name === 'LLM_READY_ENDPOINT');
    expect(ready?.value).toBe('http://localhost:8000/up');
  });

  test('keeps the wrapper of a template without sidecars', async () => {
    const { engine } = await render({}, {}, 'job-template-legacy.yaml');
    expect(engine?.command?.join(' ')).toContain('"$@"');
    expect(engine?.args).toContain('Qwen/Qwen3-8B');
  });

  test('asks for no GPU where it needs none', async () => {
    const { engine } = await render({ gpu: { product: 'cpu', count: 1, regions: [] } });
    expect(JSON.stringify(engine?.resources)).not.toContain('nvidia.com/gpu');
  });

  test('is Indexed for replicas, has a queue and another image of the worker', async () => {
    const { job, worker } = await render({ replicas: 3 }, { queue: 'team', workerImage: 'w:1' });
    expect(job.spec).toMatchObject({ completionMode: 'Indexed', parallelism: 3, completions: 3 });
    expect(job.metadata.labels['kueue.x-k8s.io/queue-name']).toBe('team');
    expect(worker?.image).toBe('w:1');
  });

  test.for<[string, unknown, string]>([
    ['no Job', { apiVersion: 'v1', kind: 'Pod' }, 'apiVersion'],
    [
      'no worker',
      {
        apiVersion: 'batch/v1',
        kind: 'Job',
        spec: { template: { spec: { containers: [{ name: 'llm-engine' }] } } },
      },
      'it has no container batch-worker',
    ],
  ])('of a template that is %s is refused with what is missing', ([, template, said]) => {
    expect(() => renderJob(ORDER, { ...TERMS, template })).toThrow(said);
  });
});

test('Deployment and Service are such as Kubernetes takes', async () => {
  const { name, namespace, engine, gpu } = ORDER;
  const terms = { ...TERMS, modelCache: 'weights' };
  const deployment = renderDeployment({ name, namespace, engine, gpu }, terms);
  expect(await faultsOf({ ...deployment, source: 'rendered' })).toEqual([]);
  const service = renderService({ name, namespace }, 'uid');
  expect(await faultsOf({ ...service, source: 'rendered' })).toEqual([]);
});
