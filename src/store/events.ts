import type { JobEvent } from '../domain/job.ts';
import { parseJobEvent } from './job-record.ts';
import { jobKey } from './keys.ts';
import type { Context } from './records.ts';

/** The histories of jobs, for those who follow them as they grow. */
export interface Events {
  /**
   * The entries behind `id` (`0-0`: all), oldest first. A history keeps its last thousand or so, so that what is
   * returned is bounded. A damaged entry is `store.damaged_record` (Permanent).
   */
  after(jobId: string, id: string): Promise<JobEvent[]>;
}

export function createEvents({ redis }: Pick<Context, 'redis'>): Events {
  return {
    async after(jobId, id) {
      const entries = await redis.xrange(jobKey(jobId, 'EVENTS'), `(${id}`, '+');
      return entries.map(([entry, fields]) => parseJobEvent(jobId, entry, fields));
    },
  };
}
