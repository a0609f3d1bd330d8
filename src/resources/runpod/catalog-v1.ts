import type { Offer } from '../contract.ts';
import { COUNTS, offerOf } from './offers.ts';

/** GPU types that REST v1 takes in a create (`gpuTypeIds`), with GB of memory: it has no catalog to ask. */
const GPU_TYPES: readonly (readonly [id: string, vramGb: number])[] = [
  ['AMD Instinct MI300X OAM', 192],
  ['NVIDIA B200', 180],
  ['NVIDIA H200', 141],
  ['NVIDIA H200 NVL', 143],
  ['NVIDIA H100 80GB HBM3', 80],
  ['NVIDIA H100 NVL', 94],
  ['NVIDIA H100 PCIe', 80],
  ['NVIDIA A100-SXM4-80GB', 80],
  ['NVIDIA A100 80GB PCIe', 80],
  ['NVIDIA RTX PRO 6000 Blackwell Server Edition', 96],
  ['NVIDIA RTX PRO 6000 Blackwell Workstation Edition', 96],
  ['NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition', 96],
  ['NVIDIA L40S', 48],
  ['NVIDIA L40', 48],
  ['NVIDIA RTX 6000 Ada Generation', 48],
  ['NVIDIA RTX A6000', 48],
  ['NVIDIA A40', 48],
  ['NVIDIA RTX 5000 Ada Generation', 32],
  ['NVIDIA GeForce RTX 5090', 32],
  ['Tesla V100-SXM2-32GB', 32],
  ['Tesla V100-PCIE-32GB', 32],
  ['NVIDIA L4', 24],
  ['NVIDIA A30', 24],
  ['NVIDIA RTX A5000', 24],
  ['NVIDIA GeForce RTX 4090', 24],
  ['NVIDIA GeForce RTX 3090', 24],
  ['NVIDIA GeForce RTX 3090 Ti', 24],
  ['NVIDIA RTX A4500', 20],
  ['NVIDIA RTX 4000 Ada Generation', 20],
  ['NVIDIA RTX 4000 SFF Ada Generation', 20],
  ['NVIDIA RTX A4000', 16],
  ['NVIDIA RTX 2000 Ada Generation', 16],
  ['NVIDIA GeForce RTX 4080', 16],
  ['NVIDIA GeForce RTX 4080 SUPER', 16],
  ['NVIDIA GeForce RTX 5080', 16],
  ['Tesla T4', 16],
  ['Tesla V100-PCIE-16GB', 16],
  ['Tesla V100-SXM2-16GB', 16],
  ['Tesla V100-FHHL-16GB', 16],
];

const UNKNOWN = { pricePerHour: null, stock: 'unknown', regions: [] } as const;

/** All that may be asked for; neither price nor stock is known before a create. */
export function fixedCatalog(now: () => number): Offer[] {
  const checkedAt = now();
  return COUNTS.flatMap((count) =>
    GPU_TYPES.map(([gpuType, vramGb]) =>
      offerOf({ gpuType, count }, { ...UNKNOWN, vramGb, checkedAt }),
    ),
  );
}
