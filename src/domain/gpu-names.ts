/** How a GPU is built in; GPUs on SXM boards are joined by NVLink, NVL are pairs of cards. */
export type GpuForm = 'sxm' | 'pcie' | 'nvl';

/** What the name of a GPU says. */
export interface GpuName {
  /** The model without maker, brand, memory and form: `H100`, `A6000`, `RTX6000ADA`. */
  family: string;
  /** Memory of one in GB; null where the name does not say. */
  memoryGb: number | null;
  /** Null where the name does not say, and the family is built in several. */
  form: GpuForm | null;
}

/** Makers, brands and words that name no model. */
const NOISE =
  /\b(?:NVIDIA|AMD|TESLA|QUADRO|GEFORCE|INSTINCT|HGX|GPU|GENERATION|TENSOR|CORE|EDITION|GDR)\b/g;

const FORMS: [RegExp, GpuForm][] = [
  // Their generation follows from the family. Lambda Cloud has types called `…_sxm5gdr`.
  [/SXM[2-9]?(?![0-9])/g, 'sxm'],
  [/PCI ?E(?![A-Z0-9])/g, 'pcie'],
  [/NVL(?![A-Z0-9])/g, 'nvl'],
];

const MEMORY = /(?<![A-Z0-9.])(\d{1,3}) ?G(?:I?B)?(?![A-Z0-9])/;

/** Kinds of memory; only an H100 on an SXM board has HBM3 and 80 GB, and nvidia-smi names its form no other way. */
const MEMORY_KIND = /(?<![A-Z0-9])(?:HBM\d[E]?|GDDR\d[X]?)(?![A-Z0-9])/;

/** Families of one form; cards for workstations and inference are all PCIe. */
const SXM_ONLY = /^(?:B200|B300|H20)$/;
const PCIE_ONLY = /^(?:RTX.*|A[2-6]0{3}|A[0-9]0[GM]?|A2|A16|L4|L40S?|T4|T4G|GTX.*|V100S)$/;

/** `NVIDIA GH200 480GB` is how the chip calls itself by the memory of its CPU; its GPU has 96 GB. */
const GH200_CPU_GB = 480;
const GH200_GB = 96;

/**
 * Reads the name of a GPU as people, nvidia-smi and clouds write it; null where it names none (`N/A`, `GB`).
 * `H100-SXM5-80GB`, `NVIDIA H100 80GB HBM3` and `H100 (80 GB SXM5)` are the same GPU.
 */
export function parseGpuName(text: string): GpuName | null {
  const words = ` ${text.toUpperCase().replaceAll(/[^A-Z0-9.]+/g, ' ')} `;
  const { form, rest } = takeForm(words);
  const memoryGb = Number(MEMORY.exec(rest)?.[1] ?? 0) || null;
  const kindless = rest.replace(MEMORY, ' ').replace(MEMORY_KIND, ' ');
  const family = familyOf(kindless.replaceAll(NOISE, ' ').replaceAll(' ', ''));
  if (!/[A-Z]/.test(family) || !/\d/.test(family)) return null;
  const isSxm = family === 'H100' && / HBM3 /.test(rest);
  return {
    family,
    memoryGb: family === 'GH200' && memoryGb === GH200_CPU_GB ? GH200_GB : memoryGb,
    form: form ?? (isSxm ? 'sxm' : onlyForm(family)),
  };
}

function takeForm(words: string): { form: GpuForm | null; rest: string } {
  let form: GpuForm | null = null;
  let rest = words;
  for (const [pattern, each] of FORMS) {
    const without = rest.replaceAll(pattern, ' ');
    if (without !== rest) form ??= each;
    rest = without;
  }
  return { form, rest };
}

/** `RTX A6000` is sold as `A6000`, too, and no other card is called so. */
function familyOf(joined: string): string {
  return /^RTXA\d{4}$/.test(joined) ? joined.slice('RTX'.length) : joined;
}

function onlyForm(family: string): GpuForm | null {
  if (SXM_ONLY.test(family)) return 'sxm';
  return PCIE_ONLY.test(family) ? 'pcie' : null;
}

/** Clouds count 180 or 192 GB of the same B200; no two builds of one family are so near to each other. */
const SAME_MEMORY = 0.07;

/**
 * Whether an offered GPU is the one that is asked for: of the same family, and of the same memory and form where those
 * are asked for. What the offer does not say is not taken for right.
 */
export function isGpu(asked: GpuName, offered: GpuName): boolean {
  if (asked.family !== offered.family) return false;
  if (asked.form !== null && asked.form !== offered.form) return false;
  if (asked.memoryGb === null) return true;
  if (offered.memoryGb === null) return false;
  const apart = Math.abs(asked.memoryGb - offered.memoryGb);
  return apart <= SAME_MEMORY * Math.max(asked.memoryGb, offered.memoryGb);
}

/** Families that stand beside NVIDIA's own processor, Grace, which is an arm64. */
const ON_GRACE = /^G[HB]\d/;

/** What the processors of a machine with this GPU are; null where no GPU was named. */
export function architectureOf(gpu: Pick<GpuName, 'family'> | null): 'x86_64' | 'arm64' | null {
  if (gpu === null) return null;
  return ON_GRACE.test(gpu.family) ? 'arm64' : 'x86_64';
}
