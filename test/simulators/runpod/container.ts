import type { MachineKnobs } from '../machines/knobs.ts';
import type { MachineSpec } from '../machines/machine.ts';
import { GPU_TYPES } from './catalog.ts';
import type { Pod, PodExtra, RunPodState } from './state.ts';

/** What an image starts with and has in it. */
interface Image {
  entrypoint: readonly string[];
  cmd: readonly string[];
  sshd: boolean;
}

/** Start script of RunPod's own images: sshd for PUBLIC_KEY, then nothing (runpod/containers, start.sh). */
const RUNPOD_START = `if [ -n "$PUBLIC_KEY" ]; then
  mkdir -p ~/.ssh /run/sshd; chmod 700 ~/.ssh
  echo "$PUBLIC_KEY" >>~/.ssh/authorized_keys; chmod 600 ~/.ssh/authorized_keys
  /usr/sbin/sshd
fi
exec sleep infinity`;

function imageOf(name: string): Image {
  if (name.startsWith('runpod/'))
    return { entrypoint: ['/bin/bash', '-c'], cmd: [RUNPOD_START], sshd: true };
  if (name.startsWith('vllm/')) return { entrypoint: ['vllm', 'serve'], cmd: [], sshd: false };
  // A shell without a terminal ends at once, and so does the container.
  return { entrypoint: [], cmd: ['/bin/bash'], sshd: /ssh/.test(name) };
}

/** `args` is the command as a shell would split it, or both parts as JSON. */
function fromArgs(args: string): { entrypoint: string[]; cmd: string[] } {
  if (args.trimStart().startsWith('{')) {
    const parsed = JSON.parse(args) as { entrypoint?: string[]; cmd?: string[] }; // the document's form
    return { entrypoint: parsed.entrypoint ?? [], cmd: parsed.cmd ?? [] };
  }
  return { entrypoint: [], cmd: args.trim() === '' ? [] : args.trim().split(/\s+/) };
}

/** Entrypoint and command as the container runs them: an entrypoint of the request drops the image's command. */
function argvOf(extra: Pick<PodExtra, 'image' | 'args' | 'entrypoint' | 'cmd'>): string[] {
  const image = imageOf(extra.image);
  const given = extra.args === '' ? { entrypoint: [], cmd: [] } : fromArgs(extra.args);
  const entrypoint = extra.entrypoint.length > 0 ? extra.entrypoint : given.entrypoint;
  const cmd = extra.cmd.length > 0 ? extra.cmd : given.cmd;
  if (entrypoint.length > 0) return [...entrypoint, ...cmd];
  return [...image.entrypoint, ...(cmd.length > 0 ? cmd : image.cmd)];
}

function envOf({ sshKeys, draw }: RunPodState, pod: Pod): Record<string, string> {
  const { env, startSsh } = pod.extra;
  const keys = startSsh && env['PUBLIC_KEY'] === undefined && sshKeys.length > 0;
  return {
    RUNPOD_POD_ID: pod.id,
    RUNPOD_DC_ID: pod.region,
    RUNPOD_GPU_COUNT: String(pod.gpus),
    RUNPOD_API_KEY: `rpa_${draw(20).toUpperCase()}`,
    RUNPOD_PUBLIC_IP: '127.213.0.1',
    ...(keys ? { PUBLIC_KEY: sshKeys.join('\n') } : {}),
    ...env,
  };
}

/** What runs for a pod. Volumes keep their content from machine to machine. */
export async function podSpec(
  state: RunPodState,
  pod: Pod,
  knobs: MachineKnobs,
): Promise<MachineSpec> {
  const { extra } = pod;
  const gpu = GPU_TYPES.find(({ id }) => id === pod.type);
  const one = { name: pod.type, memoryMib: gpu?.memoryMib ?? 0 };
  const mounts: { from: string; to: string }[] = [];
  if (extra.network !== null && state.yard !== undefined) {
    mounts.push({ from: await state.yard.volume(extra.network.volumeId), to: extra.network.path });
  }
  if (extra.persistent !== null && state.yard !== undefined) {
    mounts.push({ from: await state.yard.volume(`pod-${pod.id}`), to: extra.persistent.path });
  }
  return {
    id: pod.id,
    gpus: Array.from({ length: pod.gpus }, () => one),
    diskGb: extra.disk,
    mounts,
    knobs,
    boot: {
      kind: 'container',
      argv: argvOf(extra),
      env: envOf(state, pod),
      sshdInstalled: knobs.sshd_installed ?? imageOf(extra.image).sshd,
    },
  };
}
