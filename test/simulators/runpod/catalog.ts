/** What RunPod rents, as its catalog of late 2026 has it: ids from its documents, prices of a third party. */
export interface GpuType {
  id: string;
  name: string;
  pool: string | null;
  manufacturer: 'NVIDIA' | 'AMD';
  /** GB, as the catalog says; `memoryMib` is what nvidia-smi says. */
  memory: number;
  memoryMib: number;
  /** USD an hour for one; null: not rented there. */
  secure: number | null;
  community: number | null;
  maxCount: number;
}

type Row = [string, string, string | null, number, number, number | null, number | null, number];

const ROWS: Row[] = [
  ['NVIDIA H100 80GB HBM3', 'H100 SXM', 'ADA_80_PRO', 80, 81_559, 3.99, 2.69, 8],
  ['NVIDIA H100 PCIe', 'H100 PCIe', 'ADA_80_PRO', 80, 81_559, 2.89, 1.99, 8],
  ['NVIDIA H100 NVL', 'H100 NVL', 'ADA_80_PRO', 94, 95_830, 3.07, 2.59, 8],
  ['NVIDIA H200', 'H200 SXM', 'HOPPER_141', 141, 143_771, 4.59, 3.59, 8],
  ['NVIDIA B200', 'B200', 'BLACKWELL_180', 180, 183_359, 5.98, null, 8],
  ['NVIDIA A100-SXM4-80GB', 'A100 SXM', 'AMPERE_80', 80, 81_920, 1.79, 1.39, 8],
  ['NVIDIA A100 80GB PCIe', 'A100 PCIe', 'AMPERE_80', 80, 81_920, 1.64, 1.19, 8],
  ['NVIDIA L40S', 'L40S', 'ADA_48_PRO', 48, 46_068, 0.86, 0.79, 8],
  ['NVIDIA L4', 'L4', 'AMPERE_24', 24, 23_034, 0.43, 0.39, 8],
  ['NVIDIA A40', 'A40', 'AMPERE_48', 48, 46_068, 0.4, 0.35, 8],
  ['NVIDIA GeForce RTX 4090', 'RTX 4090', 'ADA_24', 24, 24_564, 0.69, 0.34, 8],
  ['NVIDIA GeForce RTX 5090', 'RTX 5090', 'ADA_32_PRO', 32, 32_607, 0.94, 0.69, 8],
  ['NVIDIA RTX 6000 Ada Generation', 'RTX 6000 Ada', 'ADA_48_PRO', 48, 49_140, 0.77, 0.74, 8],
  ['NVIDIA RTX PRO 6000 Blackwell Server Edition', 'RTX PRO 6000', null, 96, 97_887, 1.84, null, 8],
  ['AMD Instinct MI300X OAM', 'MI300X', null, 192, 196_592, 2.49, null, 8],
];

export const GPU_TYPES: readonly GpuType[] = ROWS.map(
  ([id, name, pool, memory, memoryMib, secure, community, maxCount]) => ({
    id,
    name,
    pool,
    manufacturer: id.startsWith('AMD') ? 'AMD' : 'NVIDIA',
    memory,
    memoryMib,
    secure,
    community,
    maxCount,
  }),
);

/** A few that the v1 document lists as well and nobody here rents. */
export const OTHER_V1_GPU_IDS: readonly string[] = [
  'NVIDIA RTX A5000',
  'NVIDIA GeForce RTX 3090',
  'NVIDIA RTX A4500',
  'NVIDIA RTX A6000',
  'NVIDIA RTX A4000',
  'NVIDIA L40',
  'NVIDIA H200 NVL',
  'NVIDIA A30',
  'Tesla T4',
  'Tesla V100-SXM2-16GB',
];

export interface DataCenter {
  id: string;
  name: string;
  region: string;
  country: string;
}

const PLACES: [string, string, string, string][] = [
  ['EU-RO-1', 'Romania 1', 'EUROPE', 'RO'],
  ['EU-SE-1', 'Sweden 1', 'EUROPE', 'SE'],
  ['EU-CZ-1', 'Czechia 1', 'EUROPE', 'CZ'],
  ['EU-NL-1', 'Netherlands 1', 'EUROPE', 'NL'],
  ['EUR-IS-1', 'Iceland 1', 'EUROPE', 'IS'],
  ['US-KS-2', 'US Kansas 2', 'NORTH_AMERICA', 'US'],
  ['US-TX-3', 'US Texas 3', 'NORTH_AMERICA', 'US'],
  ['US-CA-2', 'US California 2', 'NORTH_AMERICA', 'US'],
  ['US-GA-2', 'US Georgia 2', 'NORTH_AMERICA', 'US'],
  ['CA-MTL-1', 'Canada Montreal 1', 'NORTH_AMERICA', 'CA'],
  ['AP-JP-1', 'Japan 1', 'ASIA', 'JP'],
  ['OC-AU-1', 'Australia 1', 'OCEANIA', 'AU'],
];

export const DATA_CENTERS: readonly DataCenter[] = PLACES.map(([id, name, region, country]) => ({
  id,
  name,
  region,
  country,
}));

/** Driver versions that its hosts report. */
export const CUDA_VERSIONS = ['12.4', '12.8', '13.0'] as const;
