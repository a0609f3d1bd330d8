/**
 * A worker process of WORKER_PROCESSES: started by a supervisor, which sends it a WorkOrder. It stops by itself when
 * the supervisor's end of the channel is gone, which the kernel closes even on SIGKILL.
 */
import { on } from 'node:events';

// Ctrl-C in a terminal reaches the whole group; when to stop is the supervisor's to say.
process.on('SIGINT', () => undefined);
// Nothing is in hand yet that would need a grace.
const leave = (): void => process.exit(1);
process.once('disconnect', leave);
// It keeps what comes before it is read.
const inbox = on(process, 'message');
const { work } = await import('./worker-work.ts');
await work(inbox, () => process.off('disconnect', leave));
process.exit();
