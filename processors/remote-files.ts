import type { Readable } from 'node:stream';
import type { Undone } from '../src/dispatcher/assemble.ts';
import { permanent, SluiceError } from '../src/domain/errors.ts';
import { inputKey } from '../src/domain/file.ts';
import type { Deps } from './deps.ts';
import { serviceOf } from './remote.ts';
import type { RemoteJob } from './remote.ts';
import { writeFiles } from './write-files.ts';
import type { Written } from './write-files.ts';

/** Whether the service has written any file. */
export function hasResults({ remote: { end } }: RemoteJob): boolean {
  return end !== null && (end.output ?? end.error) !== null;
}

/**
 * Writes a job's files of those of its remote batch, in the order of the input, each line of it once. What the batch has
 * not answered is said to be so in the error file, as of any other job.
 */
export async function copyFiles(
  job: RemoteJob,
  undone: Undone | null,
  signal: AbortSignal,
  deps: Deps,
): Promise<Written> {
  // Only the input says which lines there are, and in which order.
  if (undone === null) {
    const { url, end } = job.remote;
    const files = [end?.output, end?.error].filter(Boolean).join(' and ');
    const message = `without the input, which was changed, the remote results cannot be put in order; they are ${files} at ${url}`;
    throw permanent('remote.no_input', message);
  }
  try {
    return await copy(job, undone, signal, deps, { inOrder: true });
  } catch (error) {
    if (!(error instanceof SluiceError) || error.code !== 'remote.unordered') throw error;
    deps.log.warn({ jobId: job.id, err: error }, 'remote results are put in order');
    return copy(job, undone, signal, deps, { inOrder: false });
  }
}

function copy(
  job: RemoteJob,
  undone: Undone,
  signal: AbortSignal,
  deps: Deps,
  { inOrder }: { inOrder: boolean },
): Promise<Written> {
  const { end } = job.remote;
  const assemble: Deps['assemble'] = async ({ shards }, sinks, { jobId, onLine }) => {
    const opened: Readable[] = [];
    async function open(opening: Promise<Readable>): Promise<Readable> {
      const stream = await opening;
      opened.push(stream);
      return stream;
    }
    async function openFile(file: string | null): Promise<Readable | null> {
      return file === null ? null : open(serviceOf(job, deps).open(file, signal));
    }
    try {
      return await deps.assembleRemote(
        {
          shards,
          openInput: () => open(deps.storage.get(inputKey(job))),
          openOutput: () => openFile(end?.output ?? null),
          openError: () => openFile(end?.error ?? null),
        },
        sinks,
        { jobId, undone, inOrder, ...(onLine === undefined ? {} : { onLine }) },
      );
    } finally {
      for (const stream of opened) stream.destroy();
    }
  };
  const shards = deps.store.shards.accepted(job.id, 0, job.shards);
  return writeFiles(job, shards, { undone: () => undone, signal }, { ...deps, assemble });
}
