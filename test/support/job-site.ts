import { chmod, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as v from 'valibot';
import { parseAllDocuments } from 'yaml';
import { startClusterSite } from './cluster-site.ts';
import type { ClusterSite, ClusterSiteOptions } from './cluster-site.ts';
import { createObjects, namespaceObject } from './kube-admin.ts';

const FOLDER = new URL('../../config/kubernetes/', import.meta.url);
const PATHS: Readonly<Record<string, string>> = {
  ServiceAccount: '/api/v1/namespaces/NAMESPACE/serviceaccounts',
  Role: '/apis/rbac.authorization.k8s.io/v1/namespaces/NAMESPACE/roles',
  RoleBinding: '/apis/rbac.authorization.k8s.io/v1/namespaces/NAMESPACE/rolebindings',
};
const anyKind = v.looseObject({ kind: v.string() });

/** Lets workers of a namespace read their Jobs, as config/kubernetes/job-rbac.yaml does. */
async function applyRoles(cluster: ClusterSite['cluster'], namespace: string): Promise<void> {
  const text = await readFile(new URL('job-rbac.yaml', FOLDER), 'utf8');
  const own = text.replaceAll('namespace: default', `namespace: ${namespace}`);
  const objects = parseAllDocuments(own).map((document) => {
    const body = v.parse(anyKind, document.toJS());
    return { path: (PATHS[body.kind] ?? '').replace('NAMESPACE', namespace), body };
  });
  await createObjects(cluster, objects);
}

/**
 * A server that has its jobs run as Jobs of a simulated cluster, whose pods have its folder as their storage. The
 * namespace `team` is there beside `default`.
 */
export async function startJobSite(options: ClusterSiteOptions = {}): Promise<ClusterSite> {
  const site = await startClusterSite({
    ...options,
    async prepare(folder) {
      const data = join(folder, 'data');
      const text = await readFile(new URL('job-template.yaml', FOLDER), 'utf8');
      const template = join(folder, 'job.yaml');
      const volume = `- name: data\n          hostPath: { path: '${data}' }`;
      const shared = text
        .replace('- name: data\n          emptyDir: {}', volume)
        .replaceAll('value: AUTO', 'value: LOCAL')
        // The folder is root's, as the server of a test is.
        .replaceAll('runAsNonRoot: true', 'runAsNonRoot: false')
        .replaceAll('runAsUser: 1000', 'runAsUser: 0');
      await writeFile(template, shared);
      await chmod(folder, 0o777);
      return {
        KUBERNETES_RUNTIME: 'job',
        KUBERNETES_NAMESPACE: 'default,team',
        KUBERNETES_JOB_TEMPLATE: template,
      };
    },
  });
  await createObjects(site.cluster, [namespaceObject('team')]);
  for (const namespace of ['default', 'team']) await applyRoles(site.cluster, namespace);
  return site;
}
