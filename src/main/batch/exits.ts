import { SluiceError } from '../../domain/errors.ts';
import { WORKER_EXITS } from '../../domain/worker-progress.ts';
import type { WorkerExit } from '../../domain/worker-progress.ts';

/** Why a worker is to stop before its batch is over: what signals abort with. */
export interface WorkerStop {
  stop: WorkerExit;
  reason: string;
}

export function isWorkerStop(thrown: unknown): thrown is WorkerStop {
  return typeof thrown === 'object' && thrown !== null && 'stop' in thrown && 'reason' in thrown;
}

const BY_CODE: Readonly<Record<string, WorkerExit>> = {
  'input.missing': 'noInput',
  'input.changed': 'failed',
  'storage.changed': 'failed',
  'kubernetes.denied': 'denied',
  'kubernetes.no_job': 'denied',
  'kubernetes.unavailable': 'unavailable',
  'engine.unavailable': 'unavailable',
  'run.damaged': 'storage',
  'segment.damaged': 'storage',
};

/** What a worker ends with that something went wrong for. */
export function exitOf(error: unknown): WorkerExit {
  if (isWorkerStop(error)) return error.stop;
  if (!(error instanceof SluiceError)) return 'software';
  const known = BY_CODE[error.code];
  if (known !== undefined) return known;
  if (error.kind === 'InvalidInput') return 'usage';
  return error.code.startsWith('storage.') ? 'storage' : 'software';
}

export function codeOfExit(exit: WorkerExit): number {
  return WORKER_EXITS[exit].code;
}
