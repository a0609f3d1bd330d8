import process from 'node:process';
import { connectRedis } from '../../queues/connection.ts';
import { startWorker } from '../../queues/worker.ts';

/** A worker that takes a delivery, says so, and never ends it: to be killed. Arguments: Redis URL, namespace. */
const [url = '', namespace = ''] = process.argv.slice(2);
const connection = connectRedis(url, { patient: true, onError: () => undefined });
startWorker({
  queue: 'planning',
  connection,
  namespace,
  async processor({ id }) {
    console.log(`taken ${id}`);
    return new Promise<never>(() => undefined);
  },
  deps: {},
  stopping: new AbortController().signal,
  onAttempt: () => undefined,
  onError: () => undefined,
});
// It ends with whoever started it.
process.stdin.on('end', () => process.exit(0)).resume();
