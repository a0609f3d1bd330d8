/* How tests ask a simulated RunPod. */

/** Where a pod is reached. */
export interface Endpoint {
  host: string;
  port: number;
}

/** The fields of a v2 pod that these tests read. */
export interface PodView {
  id: string;
  name: string;
  status: string;
  actions: string[];
  cost: number;
  dataCenterId: string;
  runtime: object | null;
  ssh: { direct: Endpoint | null; proxy: object };
  publicIp: string;
  portMappings: Record<string, number> | null;
}

/** A whole answer, parsed if it is JSON. */
export interface Answer<T> {
  status: number;
  headers: Headers;
  body: T;
}

/** Asks with the default key. */
export async function call<T = PodView>(
  base: string,
  method: string,
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<Answer<T>> {
  const answer = await fetch(base + path, {
    method,
    headers: { authorization: 'Bearer runpod-key', ...headers },
    ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
  });
  const text = await answer.text();
  const json = text.startsWith('{') || text.startsWith('[');
  return {
    status: answer.status,
    headers: answer.headers,
    body: (json ? JSON.parse(text) : text) as T,
  };
}

export const H100 = 'NVIDIA H100 80GB HBM3';
/** Knobs of an account without limits and of machines that boot at once. */
export const FAST = { rate_limits: { minute: null, hour: null, day: null }, boot_ms: [0, 0] };

/** What POST /v2/pods takes, with nothing that would start sshd. */
export function podBody(name: string, more: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    name,
    image: 'vllm/vllm-openai:v0.29.0',
    gpu: { id: H100, count: 1 },
    disk: 120,
    ports: ['22/tcp'],
    ...more,
  };
}
