import type { EngineCommand } from '../../domain/engines/contract.ts';
import { engineCommand } from '../../domain/engines/index.ts';
import { ENGINE_PORT } from '../../domain/engines/public-url.ts';
import { invalidInput } from '../../domain/errors.ts';
import type { JobResources } from '../../domain/lease.ts';
import type { TemplateSpec } from '../../domain/template.ts';
import { CPU } from './gpus.ts';
import type { GpuTerms } from './gpus.ts';

/** What an engine is rendered with, beside its template. */
export interface EngineTerms extends Pick<GpuTerms, 'resource' | 'productLabel'> {
  /** Claim of the volume that keeps model weights; null: each pod fetches them. */
  modelCache: string | null;
  /** The S3 interface of the object storage that holds weights; null: that of AWS. */
  objectStore(type: TemplateSpec['model_source']['type']): {
    endpoint: string;
    region: string;
  } | null;
}

/** The GPU of an engine's node as the catalog calls it; `cpu`: none. */
export interface GpuChoice {
  product: string;
  count: number;
  regions: readonly string[];
}

/** What the pod of an engine needs beside its container. */
export interface EnginePod {
  container: Record<string, unknown>;
  volumes: object[];
  nodeSelector: Record<string, string>;
  affinity: object | null;
  tolerations: object[];
  command: EngineCommand;
}

export const ENGINE_CONTAINER = 'llm-engine';
/** vLLM's processes share tensors there; containers get 64 MiB. What is not written costs nothing. */
const SHM_SIZE = '16Gi';
const CACHE_PATH = '/var/cache/sluice';
const PROBE_SECONDS = 5;
/** What a label may have as its value. */
const NAME = /^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$/;

/** Pods of a node that is away are made anew elsewhere after so long, s. */
const LOST_NODE_SECONDS = 30;

/**
 * The engine of a template as a container. Throws InvalidInput as `engineCommand` does, for a template that
 * Kubernetes would refuse, ignore or obey to our harm.
 */
export function engineContainer(
  { spec, servingName }: Pick<JobResources, 'spec' | 'servingName'>,
  gpu: GpuChoice,
  terms: EngineTerms,
): EnginePod {
  const { modelCache, resource } = terms;
  const command = engineCommand(spec, {
    servingName,
    port: ENGINE_PORT,
    modelPath: null,
    cacheDir: modelCache === null ? null : CACHE_PATH,
    apiKeyFile: null,
    secretsFile: 'env',
    objectStore: terms.objectStore(spec.model_source.type),
    listensTo: 'container',
  });
  return {
    command,
    container: containerOf(command, spec.engine.ready_timeout_seconds, gpu, terms),
    volumes: [
      { name: 'dshm', emptyDir: { medium: 'Memory', sizeLimit: SHM_SIZE } },
      ...(modelCache === null
        ? []
        : [{ name: 'models', persistentVolumeClaim: { claimName: modelCache } }]),
    ],
    nodeSelector: nodeSelectorOf(gpu, terms),
    affinity: affinityOf(gpu.regions),
    tolerations: tolerationsOf(gpu, resource),
  };
}

function containerOf(
  command: EngineCommand,
  readySeconds: number,
  gpu: GpuChoice,
  { resource, modelCache }: EngineTerms,
): Record<string, unknown> {
  const [program = '', ...args] = command.argv;
  const amount = { [resource]: String(gpu.count) };
  const httpGet = { path: command.healthPath, port: ENGINE_PORT };
  const probe = { httpGet, periodSeconds: PROBE_SECONDS, timeoutSeconds: PROBE_SECONDS };
  return {
    name: ENGINE_CONTAINER,
    image: command.image,
    imagePullPolicy: 'IfNotPresent',
    command: [program],
    args,
    env: environmentOf(command),
    ports: [{ name: 'http', containerPort: ENGINE_PORT }],
    // The model is loaded by then: until its first answer nothing else is asked of it.
    startupProbe: { ...probe, failureThreshold: Math.ceil(readySeconds / PROBE_SECONDS) },
    // A busy engine answers late, and is no worse for it.
    readinessProbe: { ...probe, failureThreshold: 6 },
    ...(gpu.product === CPU ? {} : { resources: { requests: amount, limits: amount } }),
    // An engine runs code of models, and needs no right for that.
    securityContext: { allowPrivilegeEscalation: false },
    volumeMounts: [
      { name: 'dshm', mountPath: '/dev/shm' },
      ...(modelCache === null ? [] : [{ name: 'models', mountPath: CACHE_PATH }]),
    ],
  };
}

/** Where nodes do not name their GPU, its kind is called by the resource. */
function nodeSelectorOf(
  { product }: GpuChoice,
  { resource, productLabel }: EngineTerms,
): Record<string, string> {
  if (product === CPU || product === resource || !NAME.test(product)) return {};
  return { [productLabel]: product };
}

function tolerationsOf({ product }: GpuChoice, resource: string): object[] {
  const lost = ['not-ready', 'unreachable'].map((state) => ({
    key: `node.kubernetes.io/${state}`,
    operator: 'Exists',
    effect: 'NoExecute',
    tolerationSeconds: LOST_NODE_SECONDS,
  }));
  if (product === CPU) return lost;
  return [{ key: resource, operator: 'Exists', effect: 'NoSchedule' }, ...lost];
}

/** Secrets are Kubernetes' own: what a template names is a Secret of the namespace, and its entry a key of that. */
function environmentOf({ env, secretFiles }: EngineCommand): object[] {
  const secrets = secretFiles.flatMap(({ entries, format, path }) =>
    entries.map(({ name, source }) => {
      if (format !== 'env' || source.kind !== 'named') {
        throw invalidInput('engine.refused', `the engine wants a file ${path} with a secret`);
      }
      const secretKeyRef = { name: source.name, key: source.entry };
      return { name, valueFrom: { secretKeyRef } };
    }),
  );
  return [...Object.entries(env).map(([name, value]) => ({ name, value })), ...secrets];
}

/** A region or a zone, whichever nodes call so. */
function affinityOf(regions: readonly string[]): object | null {
  if (regions.length === 0) return null;
  const terms = ['region', 'zone'].map((kind) => ({
    matchExpressions: [
      { key: `topology.kubernetes.io/${kind}`, operator: 'In', values: [...regions] },
    ],
  }));
  return {
    nodeAffinity: {
      requiredDuringSchedulingIgnoredDuringExecution: { nodeSelectorTerms: terms },
    },
  };
}
