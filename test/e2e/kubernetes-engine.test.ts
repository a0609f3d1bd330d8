import { expect, test } from 'vitest';
import { whyNoNamespaces } from '../simulators/kubernetes/simulator.ts';
import { startClusterSite } from '../support/cluster-site.ts';
import type { ClusterSite, ClusterSiteOptions } from '../support/cluster-site.ts';
import {
  cancelJob,
  createJob,
  expectJobExact,
  leaseInput,
  untilJob,
  untilStatus,
} from '../support/leases.ts';
import type { LeaseJob } from '../support/leases.ts';
import { until } from '../support/until.ts';
import { LONG } from '../support/chaos.ts';

const why = await whyNoNamespaces();
const LIMIT = { timeout: 120_000 };

/** An engine that takes a while for each answer, so that something can happen meanwhile. */
const SLOW: ClusterSiteOptions = {
  env: { MAX_CONCURRENCY: '32' },
  cluster: { knobs: { engine: { profile: 'zero', set: { latency_ms: 200 } } } },
};

async function untilNothingLeft({ cluster: { control } }: ClusterSite): Promise<void> {
  await until(() => control.pods().length === 0, { what: 'no pods' });
}

async function untilAnswered(site: ClusterSite, id: string, count: number): Promise<void> {
  const some = ({ request_counts: counts }: LeaseJob) => (counts?.completed ?? 0) >= count;
  await untilJob(site.url, id, some, {
    timeoutMs: 30_000,
    what: `${count} answers`,
    hopeless: /failed|expired|cancelled/,
  });
}

test.skipIf(why !== undefined)(
  'a job gets a Deployment with a Service, is answered there, and nothing is left of them',
  LIMIT,
  async () => {
    await using site = await startClusterSite();
    const { control } = site.cluster;
    const input = leaseInput(300);
    const id = await createJob(site.url, await site.template(), input);
    const job = await untilStatus(site.url, id, 'completed', 60_000);
    await expectJobExact(site.url, job, input);
    expect(job.provision).toMatchObject({ provider: 'kubernetes', region: 'node-1' });
    expect(job.events.map(({ message }) => message).join('\n')).toContain(
      'Pod sl-', // what kubelet was at while the engine started
    );
    await untilNothingLeft(site);
    const counts = control.counts();
    expect(counts['create deployments']).toBe(1);
    // Lines go through the API server, each once.
    expect(counts['create services/proxy']).toBe(300);
  },
);

test.skipIf(why !== undefined)(
  'several replicas are an engine each, and all of them answer',
  LIMIT,
  async () => {
    const nodes = ['a', 'b'].map((name) => ({ name, gpus: 1 }));
    await using site = await startClusterSite({ ...SLOW, cluster: { ...SLOW.cluster, nodes } });
    const input = leaseInput(600);
    const more = { resource_request: { replicas: 2 } };
    const id = await createJob(site.url, await site.template(), input, more);
    await until(() => site.cluster.control.pods().length === 2, { what: 'two pods' });
    const job = await untilStatus(site.url, id, 'completed', 90_000);
    await expectJobExact(site.url, job, input);
    await untilNothingLeft(site);
    const names = new Set(
      site.cluster.control
        .asked()
        .filter(({ verb, resource }) => verb === 'create' && resource === 'services/proxy')
        .map(({ path }) => /services\/([^/:]+)/.exec(path)?.[1]),
    );
    expect(names.size).toBe(2);
  },
);

test.skipIf(why !== undefined)(
  'an engine that is killed in mid-run is started again, and every line is answered once',
  LIMIT,
  async () => {
    await using site = await startClusterSite(SLOW);
    const { control } = site.cluster;
    const input = leaseInput(1_000);
    const id = await createJob(site.url, await site.template(), input);
    await untilAnswered(site, id, 100);
    const [pod] = control.pods();
    control.kill(pod?.metadata.name ?? '', 'llm-engine', 'SIGKILL', 'OOMKilled');
    const job = await untilStatus(site.url, id, 'completed', 90_000);
    await expectJobExact(site.url, job, input);
    const said = job.events.map(({ message }) => message).join('\n');
    expect(said).toContain('OOMKilled');
    await untilNothingLeft(site);
  },
);

test.skipIf(why !== undefined || !LONG)(
  'a node that is lost is left, and the engine comes back on another',
  LIMIT,
  async () => {
    const nodes = ['a', 'b'].map((name) => ({ name, gpus: 1 }));
    await using site = await startClusterSite({ ...SLOW, cluster: { ...SLOW.cluster, nodes } });
    const { control } = site.cluster;
    const input = leaseInput(1_000);
    const id = await createJob(site.url, await site.template(), input);
    await untilAnswered(site, id, 100);
    const [pod] = control.pods();
    await control.deleteNode(pod?.spec.nodeName ?? '');
    const job = await untilStatus(site.url, id, 'completed', 90_000);
    await expectJobExact(site.url, job, input);
    await untilNothingLeft(site);
  },
);

test.skipIf(why !== undefined || !LONG)(
  'while the API server is away nothing is lost, and the job goes on when it is back',
  LIMIT,
  async () => {
    await using site = await startClusterSite(SLOW);
    const { control } = site.cluster;
    const input = leaseInput(1_000);
    const id = await createJob(site.url, await site.template(), input);
    await untilAnswered(site, id, 100);
    await control.setApiAway(true);
    const stuck = ({ status }: LeaseJob) => status !== 'in_progress';
    const waiting = await untilJob(site.url, id, stuck, { what: 'the loss to be noticed' });
    expect(waiting.status).toBe('submitting');
    await control.setApiAway(false);
    const job = await untilStatus(site.url, id, 'completed', 90_000);
    await expectJobExact(site.url, job, input);
    expect(control.counts()['create deployments']).toBe(1);
    await untilNothingLeft(site);
  },
);

test.skipIf(why !== undefined || !LONG)(
  'a server that is killed while an engine starts finds it again by its name',
  LIMIT,
  async () => {
    const knobs = { engine: { profile: 'zero', startDelayMs: 2_000 } };
    await using site = await startClusterSite({ cluster: { knobs } });
    const { control } = site.cluster;
    const input = leaseInput(100);
    const id = await createJob(site.url, await site.template(), input);
    await until(() => control.pods().length === 1, { what: 'a pod' });
    await site.sluice.kill();
    const next = await site.start();
    const job = await untilStatus(next.url, id, 'completed', 90_000);
    await expectJobExact(next.url, job, input);
    expect(control.counts()['create deployments']).toBe(1);
    await untilNothingLeft(site);
  },
);

test.skipIf(why !== undefined)('a cancelled job gives its engine back', LIMIT, async () => {
  await using site = await startClusterSite(SLOW);
  const input = leaseInput(5_000);
  const id = await createJob(site.url, await site.template(), input);
  await untilAnswered(site, id, 50);
  await cancelJob(site.url, id);
  const job = await untilStatus(site.url, id, 'cancelled', 60_000);
  await expectJobExact(site.url, job, input);
  await untilNothingLeft(site);
});

test.skipIf(why !== undefined || !LONG)(
  'an engine that no job needs goes to the next one of its template (KEEP_WARM_SECONDS)',
  LIMIT,
  async () => {
    await using site = await startClusterSite({ env: { KEEP_WARM_SECONDS: '60' } });
    const template = await site.template();
    for (const name of ['first', 'second']) {
      const input = leaseInput(50, name);
      const id = await createJob(site.url, template, input);
      const job = await untilStatus(site.url, id, 'completed', 60_000);
      await expectJobExact(site.url, job, input);
    }
    expect(site.cluster.control.counts()['create deployments']).toBe(1);
  },
);
