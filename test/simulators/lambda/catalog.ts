/** What Lambda Cloud rents: types recorded in 2025-12, prices in US cents an hour of then. */
export interface InstanceType {
  name: string;
  description: string;
  gpu_description: string;
  price_cents_per_hour: number;
  specs: { vcpus: number; memory_gib: number; storage_gib: number; gpus: number };
}

type Row = [
  name: string,
  gpu: string,
  cents: number,
  vcpus: number,
  memory: number,
  storage: number,
  gpus: number,
];

const ROWS: Row[] = [
  ['gpu_1x_gh200', 'GH200 (96 GB)', 149, 64, 432, 4096, 1],
  ['gpu_8x_b200_sxm6', 'B200 (180 GB SXM6)', 3992, 208, 2900, 22_528, 8],
  ['gpu_8x_h100_sxm5', 'H100 (80 GB SXM5)', 2392, 208, 1800, 22_528, 8],
  ['gpu_4x_h100_sxm5', 'H100 (80 GB SXM5)', 1236, 104, 900, 11_264, 4],
  ['gpu_2x_h100_sxm5', 'H100 (80 GB SXM5)', 638, 52, 450, 5632, 2],
  ['gpu_1x_h100_sxm5', 'H100 (80 GB SXM5)', 329, 26, 225, 2816, 1],
  ['gpu_1x_h100_pcie', 'H100 (80 GB PCIe)', 249, 26, 200, 1024, 1],
  ['gpu_8x_a100_80gb_sxm4', 'A100 (80 GB SXM4)', 1432, 240, 1800, 20_480, 8],
  ['gpu_8x_a100', 'A100 (40 GB SXM4)', 1032, 124, 1800, 6144, 8],
  ['gpu_4x_a100', 'A100 (40 GB PCIe)', 516, 120, 800, 1024, 4],
  ['gpu_2x_a100', 'A100 (40 GB PCIe)', 258, 60, 400, 1024, 2],
  ['gpu_1x_a100', 'A100 (40 GB PCIe)', 129, 30, 200, 512, 1],
  ['gpu_1x_a100_sxm4', 'A100 (40 GB SXM4)', 129, 30, 200, 512, 1],
  ['gpu_1x_a10', 'A10 (24 GB PCIe)', 75, 30, 200, 1400, 1],
  ['gpu_1x_a6000', 'A6000 (48 GB)', 80, 14, 100, 200, 1],
  ['gpu_2x_a6000', 'A6000 (48 GB)', 160, 28, 200, 1024, 2],
  ['gpu_4x_a6000', 'A6000 (48 GB)', 320, 56, 400, 1024, 4],
  ['gpu_1x_rtx6000', 'RTX 6000 (24 GB)', 50, 14, 46, 512, 1],
  ['gpu_8x_v100', 'Tesla V100 (16 GB)', 440, 92, 448, 6041, 8],
  ['cpu_4x_general', 'N/A', 20, 4, 16, 100, 0],
];

export const INSTANCE_TYPES: ReadonlyMap<string, InstanceType> = new Map(
  ROWS.map(([name, gpu, cents, vcpus, memory, storage, gpus]) => [
    name,
    {
      name,
      description: gpus === 0 ? '4x CPU General' : `${gpus}x ${gpu}`,
      gpu_description: gpu,
      price_cents_per_hour: cents,
      specs: { vcpus, memory_gib: memory, storage_gib: storage, gpus },
    },
  ]),
);

export interface Region {
  name: string;
  description: string;
}

const PLACES: [string, string][] = [
  ['us-west-1', 'California, USA'],
  ['us-west-2', 'Arizona, USA'],
  ['us-west-3', 'Utah, USA'],
  ['us-east-1', 'Virginia, USA'],
  ['us-east-2', 'Washington DC, USA'],
  ['us-east-3', 'Washington DC, USA'],
  ['us-south-1', 'Texas, USA'],
  ['us-south-2', 'North Texas, USA'],
  ['us-south-3', 'Central Texas, USA'],
  ['us-midwest-1', 'Illinois, USA'],
  ['us-midwest-2', 'Illinois, USA'],
  ['europe-central-1', 'Germany'],
  ['asia-northeast-1', 'Osaka, Japan'],
  ['asia-northeast-2', 'Tokyo, Japan'],
  ['asia-south-1', 'India'],
  ['me-west-1', 'Israel'],
  ['australia-east-1', 'Australia'],
];

export const REGIONS: ReadonlyMap<string, Region> = new Map(
  PLACES.map(([name, description]) => [name, { name, description }]),
);

/** What nvidia-smi calls the card, by the first words of `gpu_description`. */
const CARDS: [prefix: string, name: string, memoryMib: number][] = [
  ['GH200', 'NVIDIA GH200 480GB', 97_871],
  ['B200', 'NVIDIA B200', 183_359],
  ['H100 (80 GB SXM5)', 'NVIDIA H100 80GB HBM3', 81_559],
  ['H100 (80 GB PCIe)', 'NVIDIA H100 PCIe', 81_559],
  ['A100 (80 GB SXM4)', 'NVIDIA A100-SXM4-80GB', 81_920],
  ['A100 (40 GB SXM4)', 'NVIDIA A100-SXM4-40GB', 40_960],
  ['A100 (40 GB PCIe)', 'NVIDIA A100-PCIE-40GB', 40_960],
  ['A10 ', 'NVIDIA A10', 23_028],
  ['A6000', 'NVIDIA RTX A6000', 49_140],
  ['RTX 6000', 'Quadro RTX 6000', 24_576],
  ['Tesla V100', 'Tesla V100-SXM2-16GB', 16_384],
];

/** The GPUs of an instance type as nvidia-smi shows them. */
export function gpusOf({
  gpu_description: described,
  specs,
}: InstanceType): { name: string; memoryMib: number }[] {
  const card = CARDS.find(([prefix]) => described.startsWith(prefix));
  const [, name = described, memoryMib = 0] = card ?? [];
  return Array.from({ length: specs.gpus }, () => ({ name, memoryMib }));
}

/** Image families of the account, in every region. */
export const FAMILIES: [family: string, architecture: 'x86_64' | 'arm64'][] = [
  ['lambda-stack-22-04', 'x86_64'],
  ['lambda-stack-22-04', 'arm64'],
  ['lambda-stack-24-04', 'x86_64'],
  ['lambda-stack-24-04', 'arm64'],
  ['gpu-base-22-04', 'x86_64'],
  ['gpu-base-24-04', 'x86_64'],
  ['gpu-base-24-04', 'arm64'],
  ['ubuntu-24-04', 'x86_64'],
];
