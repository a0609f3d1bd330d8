import { compileCheck } from '../cloud/check.ts';
import { CUDA_VERSIONS, DATA_CENTERS, GPU_TYPES, OTHER_V1_GPU_IDS } from './catalog.ts';

/*
 * The bodies of the operations that this simulator has, by RunPod's OpenAPI documents: v2.0.0 of
 * 2026-08 (with what its text of 2026-10 adds) and v1 0.1.0. v2 refuses keys that it does not know
 * (`unevaluatedProperties: false`); v1's schemas do not, so unknown ones pass.
 */

const text = { type: 'string' };
const filled = { type: 'string', minLength: 1 };
const texts = { type: 'array', items: text };
const flag = { type: 'boolean' };
const positive = { type: 'integer', minimum: 1 };
const cudaVersion = { type: 'string', pattern: '^\\d+\\.\\d+$' };

function closed(properties: object, required: readonly string[] = []): object {
  return { type: 'object', properties, required, additionalProperties: false };
}

function open(properties: object, required: readonly string[] = []): object {
  return { type: 'object', properties, required };
}

const mounts = closed({
  persistent: closed({ size: { type: 'integer', minimum: 10 }, path: text }, ['size', 'path']),
  network: {
    type: 'array',
    maxItems: 1,
    items: closed({ volumeId: text, path: text }, ['volumeId', 'path']),
  },
});

const container = {
  args: text,
  disk: positive,
  env: { type: 'object', additionalProperties: text },
  image: text,
  ports: texts,
  registry: { type: ['string', 'null'] },
  entrypoint: texts,
  cmd: texts,
};

const gpu = closed(
  {
    id: text,
    count: positive,
    allowedCudaVersions: { type: 'array', items: cudaVersion },
    minCudaVersion: cudaVersion,
    minRamPerGpu: positive,
    minVcpuCountPerGpu: positive,
  },
  ['id'],
);

const createPod = {
  ...closed(
    {
      ...container,
      name: filled,
      cloud: { type: 'string', enum: ['SECURE', 'COMMUNITY'] },
      cpu: closed({ id: filled, vcpuCount: { type: 'integer', minimum: 2 } }, ['id', 'vcpuCount']),
      dataCenterIds: texts,
      globalNetworking: flag,
      gpu,
      mounts,
      startJupyter: flag,
      startSsh: flag,
      templateId: filled,
    },
    ['name'],
  ),
  if: { not: { required: ['templateId'] } },
  // oxlint-disable-next-line unicorn/no-thenable -- a keyword of JSON Schema
  then: { required: ['image'] },
};

const updatePod = closed({
  ...container,
  globalNetworking: flag,
  locked: flag,
  mounts,
  name: filled,
  templateId: text,
});

const sshKey = { type: 'string', pattern: '^(ssh|ecdsa|sk)-[^\\s]+ [^\\s]+([ \\t][^\\n\\r]*)?$' };

export const checkV2 = {
  createPod: compileCheck(createPod),
  updatePod: compileCheck(updatePod),
  action: compileCheck(
    closed({ action: { type: 'string', enum: ['start', 'stop', 'restart', 'terminate'] } }, [
      'action',
    ]),
  ),
  sshKeys: compileCheck(closed({ keys: { type: 'array', items: sshKey } }, ['keys'])),
  createVolume: compileCheck(
    closed(
      {
        name: filled,
        size: { type: 'integer', minimum: 10, maximum: 4096 },
        dataCenter: filled,
        type: { type: 'string', enum: ['STANDARD', 'HIGH_PERFORMANCE'] },
      },
      ['name', 'size', 'dataCenter'],
    ),
  ),
  updateVolume: compileCheck(
    closed({ name: filled, size: { type: 'integer', minimum: 10, maximum: 4096 } }),
  ),
};

const priority = { type: 'string', enum: ['availability', 'custom'] };
const gpuIds = [...GPU_TYPES.map(({ id }) => id), ...OTHER_V1_GPU_IDS];
const nullableSize = { type: ['integer', 'null'] };

export const checkV1 = {
  createPod: compileCheck(
    open({
      allowedCudaVersions: {
        type: 'array',
        items: { type: 'string', enum: [...CUDA_VERSIONS, '12.6', '12.1', '11.8'] },
      },
      cloudType: { type: 'string', enum: ['SECURE', 'COMMUNITY'] },
      computeType: { type: 'string', enum: ['GPU', 'CPU'] },
      containerDiskInGb: nullableSize,
      containerRegistryAuthId: text,
      countryCodes: texts,
      dataCenterIds: {
        type: 'array',
        items: { type: 'string', enum: DATA_CENTERS.map(({ id }) => id) },
      },
      dataCenterPriority: priority,
      dockerEntrypoint: texts,
      dockerStartCmd: texts,
      env: { type: 'object' },
      globalNetworking: flag,
      gpuCount: positive,
      gpuTypeIds: { type: 'array', items: { type: 'string', enum: gpuIds } },
      gpuTypePriority: priority,
      imageName: text,
      interruptible: flag,
      locked: flag,
      minRAMPerGPU: { type: 'integer' },
      minVCPUPerGPU: { type: 'integer' },
      name: { type: 'string', maxLength: 191 },
      networkVolumeId: text,
      ports: texts,
      supportPublicIp: flag,
      templateId: text,
      volumeInGb: nullableSize,
      volumeMountPath: text,
    }),
  ),
  createVolume: compileCheck(
    open({ name: text, size: { type: 'integer', minimum: 0, maximum: 4000 }, dataCenterId: text }, [
      'name',
      'size',
      'dataCenterId',
    ]),
  ),
};
