import type { JobRecord } from '../../domain/job.ts';
import type { Jobs } from '../../store/jobs.ts';
import type { Nodes } from '../../store/nodes.ts';
import type { Provisions } from '../../store/provisions.ts';
import type { Shards } from '../../store/shards.ts';
import type { SubmitDeps } from '../submit.ts';
import { jobView } from './job-view.ts';

export interface JobsDeps extends SubmitDeps {
  store: SubmitDeps['store'] & {
    jobs: Pick<Jobs, 'get' | 'page' | 'events' | 'active'>;
    provisions: Pick<Provisions, 'ofJob'>;
    shards: Pick<Shards, 'held' | 'accepted'>;
    nodes: Pick<Nodes, 'live'>;
  };
  stopJob(id: string, outcome: 'cancelled'): Promise<JobRecord>;
  /** Each is false where the job has its outcome already, or is gone. */
  pauseJob(id: string, by: string): Promise<boolean>;
  resumeJob(id: string): Promise<boolean>;
  extendJob(job: JobRecord, completionWindow: string, windowMs: number): Promise<boolean>;
  /** Removes all that is of a job that is over, its files among it. */
  eraseJob(id: string): Promise<'erased' | 'running' | 'gone' | { usedBy: string }>;
}

export interface FullViewDeps {
  store: { jobs: Pick<Jobs, 'events'>; provisions: Pick<Provisions, 'ofJob'> };
}

/** The Console's Job message of a record, with its history and provision. */
export async function fullView({ store }: FullViewDeps, job: JobRecord) {
  const [events, provisions] = await Promise.all([
    store.jobs.events(job.id),
    store.provisions.ofJob(job.id),
  ]);
  return jobView(job, events, provisions);
}
