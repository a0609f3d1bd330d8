import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { architectureOf, isGpu, parseGpuName } from '../../src/domain/gpu-names.ts';
import type { GpuName } from '../../src/domain/gpu-names.ts';
import { INSTANCE_TYPES } from '../simulators/lambda/catalog.ts';

function named(text: string): GpuName {
  const name = parseGpuName(text);
  if (name === null) throw new Error(`${text} names no GPU`);
  return name;
}

type Row = [text: string, family: string, memoryGb: number | null, form: GpuName['form']];

const NAMES: Row[] = [
  ['H100', 'H100', null, null],
  ['h100', 'H100', null, null],
  ['NVIDIA H100', 'H100', null, null],
  ['H100-SXM5', 'H100', null, 'sxm'],
  ['H100-SXM5-80GB', 'H100', 80, 'sxm'],
  ['A100-SXM4-80GB', 'A100', 80, 'sxm'],
  ['A100-PCIE-40GB', 'A100', 40, 'pcie'],
  ['NVIDIA-A100-SXM4-80GB', 'A100', 80, 'sxm'],
  ['A100 (80GB)', 'A100', 80, null],
  ['A10', 'A10', null, 'pcie'],
  ['NVIDIA A10', 'A10', null, 'pcie'],
  ['NVIDIA H100 80GB HBM3', 'H100', 80, 'sxm'],
  ['H100 80GB PCIe', 'H100', 80, 'pcie'],
  ['A100-SXM-80GB', 'A100', 80, 'sxm'],
  ['H100-SXM-80GB', 'H100', 80, 'sxm'],
  ['H100-SXM', 'H100', null, 'sxm'],
  ['B200 SXM6', 'B200', null, 'sxm'],
  ['NVIDIA-B200', 'B200', null, 'sxm'],
  ['RTX 6000 Ada', 'RTX6000ADA', null, 'pcie'],
  ['NVIDIA RTX 6000 Ada Generation', 'RTX6000ADA', null, 'pcie'],
  ['NVIDIA RTX A6000', 'A6000', null, 'pcie'],
  ['A6000 (48 GB)', 'A6000', 48, 'pcie'],
  ['Tesla-V100-SXM2-16GB', 'V100', 16, 'sxm'],
  ['Tesla V100 (16 GB)', 'V100', 16, null],
  ['H100 NVL', 'H100', null, 'nvl'],
  ['H100_SXM', 'H100', null, 'sxm'],
  ['H100PCIe', 'H100', null, 'pcie'],
  ['h100-pci-e', 'H100', null, 'pcie'],
  ['h100_sxm5gdr', 'H100', null, 'sxm'],
  ['GH200 (96 GB)', 'GH200', 96, null],
  ['NVIDIA GH200 480GB', 'GH200', 96, null],
  ['B200 (180 GB SXM6)', 'B200', 180, 'sxm'],
  ['NVIDIA GeForce RTX 4090', 'RTX4090', null, 'pcie'],
  ['RTX4090', 'RTX4090', null, 'pcie'],
  ['L40S', 'L40S', null, 'pcie'],
  ['Quadro RTX 6000', 'RTX6000', null, 'pcie'],
  ['RTX 6000 (24 GB)', 'RTX6000', 24, 'pcie'],
  ['NVIDIA A100-SXM4-40GB', 'A100', 40, 'sxm'],
  ['AMD Instinct MI300X OAM', 'MI300XOAM', null, null],
];

describe('what a name says', () => {
  test.each(NAMES)('%s', (text, family, memoryGb, form) => {
    expect(parseGpuName(text)).toEqual({ family, memoryGb, form });
  });

  test.each(['', ' ', 'GB', '80GB', 'NVIDIA', 'N/A', 'GPU', 'SXM5', 'PCIe', '80 GB SXM5', '42'])(
    '%j names no GPU',
    (text) => expect(parseGpuName(text)).toBeNull(),
  );

  test.each(['NVIDIA A100-SXM4-80GB MIG 1g.10gb', 'A100 MIG'])('a slice, %s, is no A100', (text) =>
    expect(parseGpuName(text)?.family).not.toBe('A100'),
  );
});

/** The instance types that Lambda Cloud has of a GPU, by the names of its catalog. */
function typesOf(text: string): string[] {
  const asked = named(text);
  const found = [...INSTANCE_TYPES.values()].filter(({ gpu_description: described }) => {
    const offered = parseGpuName(described);
    return offered !== null && isGpu(asked, offered);
  });
  return found.map(({ name }) => name);
}

const H100_SXM = ['gpu_8x_h100_sxm5', 'gpu_4x_h100_sxm5', 'gpu_2x_h100_sxm5', 'gpu_1x_h100_sxm5'];
const A6000 = ['gpu_1x_a6000', 'gpu_2x_a6000', 'gpu_4x_a6000'];

describe('which instance types have a GPU', () => {
  test.each<[string, string[]]>([
    ['NVIDIA H100 80GB HBM3', H100_SXM],
    ['H100-SXM-80GB', H100_SXM],
    ['H100-SXM5', H100_SXM],
    ['H100-SXM', H100_SXM],
    ['H100 80GB PCIe', ['gpu_1x_h100_pcie']],
    ['H100', [...H100_SXM, 'gpu_1x_h100_pcie']],
    ['H100 NVL', []],
    ['A100-SXM-80GB', ['gpu_8x_a100_80gb_sxm4']],
    ['A100-SXM4-80GB', ['gpu_8x_a100_80gb_sxm4']],
    ['A100 (80GB)', ['gpu_8x_a100_80gb_sxm4']],
    ['A100-SXM4-40GB', ['gpu_8x_a100', 'gpu_1x_a100_sxm4']],
    ['A100-PCIE-40GB', ['gpu_4x_a100', 'gpu_2x_a100', 'gpu_1x_a100']],
    ['A10', ['gpu_1x_a10']],
    ['B200 SXM6', ['gpu_8x_b200_sxm6']],
    ['NVIDIA B200', ['gpu_8x_b200_sxm6']],
    ['NVIDIA RTX A6000', A6000],
    ['A6000', A6000],
    ['RTX 6000 Ada', []],
    ['Quadro RTX 6000', ['gpu_1x_rtx6000']],
    ['NVIDIA GH200 480GB', ['gpu_1x_gh200']],
    ['V100 16GB', ['gpu_8x_v100']],
    ['H200', []],
  ])('%s', (text, types) => expect(typesOf(text)).toEqual(types));
});

const FAMILIES = ['H100', 'H200', 'H20', 'A100', 'A10', 'A10G', 'A40', 'A6000', 'L4', 'L40'];
FAMILIES.push('L40S', 'B200', 'GH200', 'V100', 'T4', 'RTX 6000', 'RTX 6000 Ada', 'RTX 4090');

const family = fc.constantFrom(...FAMILIES);
const form = fc.constantFrom('', 'SXM', 'SXM4', 'SXM5', 'PCIe', 'NVL');
const memory = fc.constantFrom('', '16GB', '24 GB', '40GB', '80 GB', '80GB', '141GiB');
const gap = fc.constantFrom(' ', '-', '_', '  ', ' (');
const maker = fc.constantFrom('', 'NVIDIA ', 'nvidia-', 'NVIDIA_');

describe('whatever the spelling', () => {
  test('case, makers and what stands between words make no difference', () => {
    fc.assert(
      fc.property(
        family,
        form,
        memory,
        gap,
        maker,
        fc.boolean(),
        (of, as, with_, by, from, low) => {
          const plain = [of, as, with_].filter(Boolean).join(' ');
          const parts = [from + of.replaceAll(' ', by), with_, as].filter(Boolean).join(by);
          const spelt = low ? parts.toLowerCase() : parts;
          expect(parseGpuName(spelt)).toEqual(parseGpuName(plain));
          expect(isGpu(named(spelt), named(plain)) || named(plain).memoryGb === null).toBe(true);
        },
      ),
    );
  });

  test('no GPU is taken for one of another family, form or memory', () => {
    const asked = fc.tuple(family, form, memory);
    fc.assert(
      fc.property(asked, asked, (one, other) => {
        const [a, b] = [named(one.join(' ')), named(other.join(' '))];
        const isSame =
          one[0] === other[0] &&
          (a.form === null || a.form === b.form) &&
          (a.memoryGb === null || a.memoryGb === b.memoryGb);
        expect(isGpu(a, b)).toBe(isSame);
      }),
    );
  });

  test('a name that was read is read again as the same', () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        const read = parseGpuName(text);
        if (read === null) return;
        const again = `${read.family} ${read.memoryGb ?? ''}${read.memoryGb === null ? '' : 'GB'} ${read.form ?? ''}`;
        expect(parseGpuName(again)?.family).toBe(read.family);
      }),
    );
  });

  test('whatever is asked for, a GPU is what it is', () => {
    fc.assert(
      fc.property(family, form, memory, (of, as, with_) => {
        const name = named(`${of} ${as} ${with_}`);
        expect(isGpu(name, name)).toBe(true);
        expect(isGpu(named(of), { ...name, form: named(of).form })).toBe(true);
      }),
    );
  });
});

test.for([
  ['GH200 (96 GB)', 'arm64'],
  ['NVIDIA GH200 480GB', 'arm64'],
  ['NVIDIA GB200', 'arm64'],
  ['NVIDIA H100 80GB HBM3', 'x86_64'],
  ['B200 (180 GB SXM6)', 'x86_64'],
  ['N/A', null],
] as const)('the processors beside a %s are %s', ([type, architecture]) => {
  expect(architectureOf(parseGpuName(type))).toBe(architecture);
});
