import { createKubernetesApi } from '../../src/resources/kubernetes/api.ts';
import type { KubernetesApi } from '../../src/resources/kubernetes/api.ts';
import type { KubernetesSimulator } from '../simulators/kubernetes/simulator.ts';

/** The API of a simulated cluster, as somebody with this token; its administrator unless given. */
export function asAdmin(
  { url, ca, token: admin }: Pick<KubernetesSimulator, 'url' | 'ca' | 'token'>,
  token: string = admin,
): KubernetesApi & AsyncDisposable {
  const api = createKubernetesApi(async () => ({
    server: url,
    namespace: 'default',
    isInCluster: false,
    tls: { ca },
    authorization: async () => `Bearer ${token}`,
    source: 'the test',
  }));
  return { ...api, [Symbol.asyncDispose]: async () => api.close() };
}

/** Creates a namespace and objects in it, each by the path of its kind. */
export async function createObjects(
  cluster: Pick<KubernetesSimulator, 'url' | 'ca' | 'token'>,
  objects: readonly { path: string; body: object }[],
): Promise<void> {
  await using api = asAdmin(cluster);
  for (const { path, body } of objects) await api.ask({ method: 'POST', path, body });
}

/** What makes a namespace. */
export function namespaceObject(name: string) {
  const body = { apiVersion: 'v1', kind: 'Namespace', metadata: { name } };
  return { path: '/api/v1/namespaces', body };
}
