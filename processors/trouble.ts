import type { Trouble } from '../src/dispatcher/error-guard.ts';
import type { SettleDeps } from './deps.ts';
import { pauseJob } from './pause.ts';
import { stopJob } from './settle.ts';

const MEND = 'Resume it when the cause is mended, or cancel it.';

/**
 * Holds or ends a job whose lines fail for a reason that is not their own, as its user chose; what was answered stays
 * answered. Never rejects: whoever still sends the job's lines finds the same trouble again.
 */
export async function answerTrouble(
  jobId: string,
  { code, message }: Trouble,
  deps: SettleDeps,
): Promise<void> {
  try {
    const job = await deps.store.jobs.get(jobId);
    if (job === null) return;
    deps.log.warn({ jobId, code, reason: message }, 'job in trouble');
    if (job.options.onErrorRate === 'fail') {
      const errors = [{ code, message, line: null, param: null }];
      const event = 'Its requests fail for a reason that is not their own.';
      await stopJob(jobId, { outcome: 'failed', event, reason: message, errors }, deps);
    } else if (await pauseJob(jobId, 'sluice', deps, message)) {
      await deps.store.jobs.note(jobId, `${message} ${MEND}`);
    }
  } catch (error) {
    deps.log.error({ jobId, err: error }, 'a job in trouble could not be held');
  }
}
