import { chmod, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { whyNoNamespaces } from '../simulators/kubernetes/simulator.ts';
import { startClusterSite } from '../support/cluster-site.ts';
import type { ClusterSite, ClusterSiteOptions } from '../support/cluster-site.ts';
import { createJob, expectJobExact, leaseInput, untilStatus } from '../support/leases.ts';
import { until } from '../support/until.ts';

const why = await whyNoNamespaces();
const LIMIT = { timeout: 120_000 };

test.skipIf(why !== undefined)('a job is run as a Job', LIMIT, async () => {
  await using site = await startJobSite();
  const input = leaseInput(300);
  const id = await createJob(site.url, await site.template(), input);
  const job = await untilStatus(site.url, id, 'completed', 9_000).catch((e) => {
    console.log(JSON.stringify(site.sluice.logs().slice(-10)));
    for (const pod of site.cluster.control.pods()) for (const c of ['batch-worker', 'llm-engine']) { try { console.log(c, site.cluster.control.logs(pod.metadata.name, c).slice(-20).join('\n')); } catch (x) { console.log(String(x)); } }
    throw e;
  });
  await expectJobExact(site.url, job, input);
  console.log(JSON.stringify(job.events.map((e) => e.message), null, 1));
  await until(() => site.cluster.control.jobs().length === 0, { what: 'no Jobs' });
});

/** A server whose Jobs share its folder as their storage. */
async function startJobSite(options: ClusterSiteOptions = {}): Promise<ClusterSite> {
  return startClusterSite({
    ...options,
    async prepare(folder) {
      const file = new URL('../../config/kubernetes/job-template.yaml', import.meta.url);
      const text = await readFile(file, 'utf8');
      const template = join(folder, 'job.yaml');
      const data = join(folder, 'data');
      const shared = text
        .replace('- name: data\n          emptyDir: {}', `- name: data\n          hostPath: { path: '${data}' }`)
        .replaceAll('value: AUTO', 'value: LOCAL');
      await writeFile(template, shared);
      await chmod(folder, 0o777);
      return { KUBERNETES_RUNTIME: 'job', KUBERNETES_JOB_TEMPLATE: template };
    },
  });
}
