import { describe, expect, test } from 'vitest';
import { whyNoNamespaces } from '../simulators/kubernetes/simulator.ts';
import { startClusterSite } from '../support/cluster-site.ts';
import { createJob, expectJobExact, leaseInput, untilStatus } from '../support/leases.ts';
import { until } from '../support/until.ts';

const why = await whyNoNamespaces();

describe.skipIf(why !== undefined)('engines in Kubernetes', () => {
  test('a job gets a Deployment with a Service, is answered there, and nothing is left', async () => {
    await using site = await startClusterSite();
    const input = leaseInput(300);
    const id = await createJob(site.url, await site.template(), input);
    const job = await untilStatus(site.url, id, 'completed', 60_000);
    await expectJobExact(site.url, job, input);
    await until(() => site.cluster.control.pods().length === 0, { what: 'no pods' });
    console.log(JSON.stringify(job.events.map((e) => e.message), null, 1));
    console.log(site.cluster.control.counts());
  }, 120_000);
});
