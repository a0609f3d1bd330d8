import * as v from 'valibot';
import { architectureOf, parseGpuName } from '../../domain/gpu-names.ts';
import type { Offer } from '../contract.ts';
import { callError } from './api.ts';
import type { Ask } from './api.ts';

/** An instance type as the catalog shows it now. */
export interface InstanceType {
  name: string;
  gpuDescription: string;
  gpus: number;
  pricePerHour: number;
  storageGib: number;
  /** Where one can be had, in the provider's order. It is no promise: launches are refused although a region is here. */
  regions: readonly string[];
  /** Null: the answer does not say. */
  architecture: 'x86_64' | 'arm64' | null;
}

const item = v.object({
  instance_type: v.object({
    name: v.string(),
    gpu_description: v.string(),
    price_cents_per_hour: v.number(),
    specs: v.object({ storage_gib: v.number(), gpus: v.number() }),
    // API 1.10 does not have it; later answers were seen with it.
    architecture: v.optional(v.unknown()),
  }),
  regions_with_capacity_available: v.array(v.object({ name: v.string() })),
});
const catalog = v.record(v.string(), item);

const ARCHITECTURES = ['x86_64', 'arm64'] as const;

/** Asks for all instance types. */
export async function fetchTypes(ask: Ask): Promise<Map<string, InstanceType>> {
  const outcome = await ask('GET', '/instance-types');
  const parsed = v.safeParse(catalog, outcome.is === 'data' ? outcome.data : undefined);
  if (!parsed.success) throw callError('for its instance types', outcome);
  const types = Object.values(parsed.output).map(toType);
  return new Map(types.map((type) => [type.name, type]));
}

function toType(found: v.InferOutput<typeof item>): InstanceType {
  const { instance_type: type, regions_with_capacity_available: regions } = found;
  return {
    name: type.name,
    gpuDescription: type.gpu_description,
    gpus: type.specs.gpus,
    pricePerHour: type.price_cents_per_hour / 100,
    storageGib: type.specs.storage_gib,
    regions: regions.map(({ name }) => name),
    architecture: ARCHITECTURES.find((each) => each === type.architecture) ?? null,
  };
}

/** One offer a type that has GPUs. */
export function toOffer(type: InstanceType, checkedAt: number): Offer | null {
  if (type.gpus === 0) return null;
  const isAvailable = type.regions.length > 0;
  const gpu = parseGpuName(type.gpuDescription);
  return {
    provider: 'lambdaCloud',
    id: type.name,
    kind: 'machine',
    type: type.gpuDescription,
    count: type.gpus,
    architecture: type.architecture ?? architectureOf(gpu),
    vramGb: gpu?.memoryGb ?? null,
    pricePerHour: type.pricePerHour,
    stock: isAvailable ? 'available' : 'unavailable',
    regions: type.regions,
    address: '',
    models: [],
    error: isAvailable ? '' : 'No region has capacity.',
    checkedAt,
  };
}
