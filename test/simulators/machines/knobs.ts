import * as v from 'valibot';
import type { FaultInput } from '../vllm/simulator.ts';

/*
 * What a machine is like, and what goes wrong on it. Every field has a default that is an ordinary,
 * quick machine; times are milliseconds.
 */

const ms = v.pipe(v.number(), v.minValue(0), v.maxValue(86_400_000));

/** Parsed by the engine that gets it. */
const fault = v.custom<FaultInput>((value) => typeof value === 'object' && value !== null);

export const engineKnobs = v.strictObject({
  /** From start to listening, beside the download. */
  load_ms: v.optional(ms, 100),
  /** Once per model and cache folder: a volume that outlives the machine saves it. */
  download_ms: v.optional(ms, 0),
  /** Ends with a traceback and exit code 1 instead of listening. */
  crash: v.optional(v.nullable(v.picklist(['oom', 'arch', 'driver'])), null),
  crash_after_ms: v.optional(ms, 50),
  /** Loads for ever, and says so in its log. */
  never_healthy: v.optional(v.boolean(), false),
  /** HF_TOKEN must be this, or the model is refused as a gated one. */
  gated_token: v.optional(v.nullable(v.string()), null),
  /** Of the vLLM simulator: a name in ../profiles or a file. */
  profile: v.optional(v.string(), 'small'),
  /** Fields that differ from the profile. */
  set: v.optional(v.record(v.string(), v.unknown()), {}),
  /** What goes wrong with requests from the start, as POST /admin/faults takes it. */
  faults: v.optional(v.array(fault)),
  version: v.optional(v.string(), '0.29.0'),
});

export type EngineKnobs = v.InferOutput<typeof engineKnobs>;

export const machineKnobs = v.strictObject({
  engine: v.optional(engineKnobs, {}),
  /** sshd starts so much later than the machine … */
  sshd_delay_ms: v.optional(ms, 0),
  /** … and lets nobody in until then, as while cloud-init still writes the keys. Lambda only. */
  auth_delay_ms: v.optional(ms, 0),
  /** cloud-init goes on so long after sshd is up. Lambda only. */
  cloud_init_ms: v.optional(ms, 0),
  /**
   * `driver`: nvidia-smi and CUDA fail. `cuda802`, `cuda804`: nvidia-smi is fine and CUDA fails with
   * that number, as on most of the H100 that somebody measured on Lambda in 2026.
   */
  gpu_fault: v.optional(v.nullable(v.picklist(['driver', 'cuda802', 'cuda804'])), null),
  /** So many of the GPUs are not there. */
  gpus_missing: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0)), 0),
  /** Size of the file system in GB, whatever was asked for. */
  disk_gb: v.optional(v.nullable(v.pipe(v.number(), v.minValue(0.05))), null),
  /** What each of `apt-get update` and `install openssh-server` takes. */
  apt_ms: v.optional(ms, 0),
  /** false: no package can be fetched. */
  apt_mirrors: v.optional(v.boolean(), true),
  /** null: as the image is said to be; vllm/* has none, others have one. */
  sshd_installed: v.optional(v.nullable(v.boolean()), null),
  /** What the first `docker run` or `pull` of an image takes. */
  image_pull_ms: v.optional(ms, 0),
  /** `docker pull` of anything fails. */
  registry_down: v.optional(v.boolean(), false),
  /** `docker run --gpus` fails until `nvidia-ctk runtime configure` has run. */
  nvidia_runtime: v.optional(v.boolean(), true),
  /** Programs that the machine lacks: `vllm`, `docker`, `nvidia-smi`, … */
  missing_programs: v.optional(v.array(v.string()), []),
});

export type MachineKnobs = v.InferOutput<typeof machineKnobs>;

/** What one engine process leaves in /sim/engines for those who judge a run; times are epoch milliseconds. */
export interface EngineReport {
  pid: number;
  model: string;
  served_names: string[];
  port: number;
  started_at: number;
  /** The weights were there already. */
  weights_cached: boolean;
  healthy_at: number | null;
  first_request_at: number | null;
  last_answer_at: number | null;
  requests: number;
  /** null while it runs, and after SIGKILL. */
  exit_code: number | null;
  ended_at: number | null;
}
