import type { Processor } from '../queues/worker.ts';
import type { QueueName } from '../src/domain/job.ts';
import type { Deps } from './deps.ts';
import { dispatch } from './dispatch.ts';
import { planning } from './planning.ts';
import { provisioning } from './provisioning.ts';
import { release } from './release.ts';
import { submission } from './submission.ts';

/** A queue without a processor does not compile. */
export const processors: { readonly [Q in QueueName]: Processor<Deps> } = {
  planning,
  provisioning,
  submission,
  dispatch,
  release,
};
