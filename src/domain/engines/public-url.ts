import type { LeaseAttempt } from '../lease.ts';

/** Where engines listen, the same on every machine: each has a loopback of its own. */
export const ENGINE_PORT = 8000;

/** RunPod's own, for machines that were leased behind it when the settings still said so. */
const USUAL_PROXY = 'https://{pod}-{port}.proxy.runpod.net';

/**
 * Where the engine of a machine is reached by the world; null: only through a tunnel. What counts is how the machine was
 * leased, since the settings may have changed while it runs.
 * @param proxy URL with `{pod}` and `{port}` in it; null: RunPod's own
 */
export function publicUrlOf(
  { provider, machine, raw }: Pick<LeaseAttempt, 'provider' | 'machine' | 'raw'>,
  proxy: string | null,
): string | null {
  if (provider !== 'runpod' || machine === null) return null;
  if (!raw.includes(`"${ENGINE_PORT}/http"`)) return null;
  return (proxy ?? USUAL_PROXY)
    .replace('{pod}', encodeURIComponent(machine))
    .replace('{port}', String(ENGINE_PORT));
}
