import * as v from 'valibot';
import { transient } from '../../domain/errors.ts';
import { showAddress } from './errors.ts';
import { runScript, SCRIPTS } from './scripts.ts';
import type { Session } from './session.ts';

/** What a machine has, as it says itself. */
export interface Probe {
  /** As nvidia-smi shows them; memory in MiB. */
  gpus: { name: string; memoryMib: number }[];
  /** Why nvidia-smi shows none; '' where it does. */
  gpuProblem: string;
  /** What `cuInit` of the driver returns: 0, or the number of an error; null: it could not be asked. */
  cudaError: number | null;
  /** `x86_64` or `aarch64`. */
  architecture: string;
  /** Of the file system of the folder that was asked for. */
  disk: { bytes: number; freeBytes: number };
  /** How far cloud-init is (`running`, `done`, `error`, …); '' where the machine has none. */
  cloudInit: string;
}

const integer = v.pipe(v.string(), v.regex(/^\d+$/), v.transform(Number));
const probed = v.object({
  'gpu-problem': v.optional(v.string(), ''),
  cuda: v.optional(v.nullable(integer), null),
  architecture: v.string(),
  disk: v.pipe(
    v.string(),
    v.regex(/^\d+ \d+$/),
    v.transform((text) => text.split(' ').map((kib) => Number(kib) * 1024)),
  ),
  'cloud-init': v.optional(v.string(), ''),
});

/** Asks a machine what it has. Changes nothing and may be asked as often as one likes; what is missing is no error. */
export async function probe(session: Session, folder = '/', signal?: AbortSignal): Promise<Probe> {
  const { stdout } = await runScript(session, SCRIPTS.probe, ['probe', folder], {
    timeoutMs: 60_000,
    ...(signal === undefined ? {} : { signal }),
  });
  const text = stdout.toString();
  const found: Record<string, unknown> = {};
  const gpus: Probe['gpus'] = [];
  for (const line of text.trim().split('\n')) {
    const at = line.indexOf(' ');
    const [key, value] = [line.slice(0, at), line.slice(at + 1).trim()];
    const gpu = key === 'gpu' ? /^(.+), *(\d+)$/.exec(value) : null;
    if (gpu !== null) gpus.push({ name: gpu[1] ?? '', memoryMib: Number(gpu[2]) });
    // Such as `No devices were found`.
    else found[key === 'gpu' ? 'gpu-problem' : key] = value;
  }
  const parsed = v.safeParse(probed, found);
  if (!parsed.success) {
    const where = showAddress(session.address);
    throw transient('ssh.probe', `${where} says nonsense of itself: ${text.slice(0, 300)}`);
  }
  const { disk, cuda, architecture } = parsed.output;
  const [bytes = 0, freeBytes = 0] = disk;
  return {
    gpus,
    gpuProblem: parsed.output['gpu-problem'],
    cudaError: cuda,
    architecture,
    disk: { bytes, freeBytes },
    cloudInit: parsed.output['cloud-init'],
  };
}

/** What a job needs of a machine. */
export interface Need {
  gpuCount: number;
  /** Of one GPU, GB as they are sold: an 80 GB card shows 79.6 GiB and less. 0: any. */
  vramGb: number;
  /** Free, GB. */
  diskGb: number;
}

/** Cards show less than they are sold with: 81,559 MiB of 80 GB, 23,028 MiB of 24 GB. */
const SHOWN_OF_SOLD = 0.9;
const MIB_OF_GB = 1000 ** 3 / 1024 ** 2;

/** Why a machine is of no use; null where it is. */
export function whyUnfit(found: Probe, need: Need): string | null {
  const { gpus, cudaError, disk } = found;
  if (found.gpuProblem !== '') return `nvidia-smi fails: ${found.gpuProblem}`;
  if (gpus.length < need.gpuCount) {
    return `it shows ${gpus.length} of ${need.gpuCount} GPUs`;
  }
  if (cudaError !== null && cudaError !== 0) return `CUDA does not start: error ${cudaError}`;
  const least = need.vramGb * MIB_OF_GB * SHOWN_OF_SOLD;
  const small = gpus.find(({ memoryMib }) => memoryMib < least);
  if (small !== undefined) {
    return `its ${small.name} has ${small.memoryMib} MiB, not ${need.vramGb} GB`;
  }
  const freeGb = disk.freeBytes / 1000 ** 3;
  if (freeGb < need.diskGb) {
    return `its disk has ${freeGb.toFixed(1)} GB left, and ${need.diskGb} GB are needed`;
  }
  return null;
}
