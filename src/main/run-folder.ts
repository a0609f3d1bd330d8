import { createHash } from 'node:crypto';
import { mkdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import * as v from 'valibot';
import { errorCode, invalidInput } from '../domain/errors.ts';
import { tryLock } from './process-lock.ts';

const noteSchema = v.object({ input: v.string(), batchId: v.string() });

/** The folder that holds everything of one `sluice run` until it is done, so that it can be taken up again. */
export interface RunFolder {
  path: string;
  /** The batch that an interrupted run of the same input left here; null for a fresh start. */
  batchId: string | null;
  /** Remembers the batch, so that the next run of the same files goes on with it. */
  remember(batchId: string): Promise<void>;
  /** Lets go of the folder; `done` removes it, since nothing is left to take up. */
  close(done: boolean): Promise<void>;
}

/**
 * Opens the folder of this output. What an earlier run of another input left in it is removed.
 * Refuses with `run.busy` (InvalidInput) while another process writes the same output.
 */
export async function openRunFolder(
  dataDir: string,
  { input, output }: { input: string; output: string },
): Promise<RunFolder> {
  const name = createHash('sha256').update(resolve(output)).digest('hex');
  const runs = join(resolve(dataDir), 'runs');
  const path = join(runs, name.slice(0, 16));
  await mkdir(runs, { recursive: true });
  const lock = tryLock(`${path}.lock`);
  if (lock === null) {
    const mend = 'wait for it, or name another --output';
    throw invalidInput('run.busy', `Another run is writing ${output}: ${mend}.`);
  }
  try {
    const { size, mtimeMs } = await stat(input);
    const content = `${resolve(input)}, ${size} bytes of ${mtimeMs}`;
    const batchId = await recall(path, content);
    if (batchId === null) await rm(path, { recursive: true, force: true });
    await mkdir(path, { recursive: true });
    return {
      path,
      batchId,
      async remember(id) {
        if (id === batchId) return;
        const note = join(path, 'run.json');
        await writeFile(`${note}.partial`, JSON.stringify({ input: content, batchId: id }));
        // In one step: a note cut short would throw the whole run away.
        await rename(`${note}.partial`, note);
      },
      async close(done) {
        if (done) await rm(path, { recursive: true, force: true, maxRetries: 5 });
        if (done) await rm(`${path}.lock`, { force: true });
        lock.release();
      },
    };
  } catch (error) {
    lock.release();
    throw error;
  }
}

async function recall(path: string, content: string): Promise<string | null> {
  let text: string;
  try {
    text = await readFile(join(path, 'run.json'), 'utf8');
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return null; // no run, or none that got as far as a batch
    throw error;
  }
  const note = v.safeParse(v.pipe(v.string(), v.parseJson(), noteSchema), text);
  return note.success && note.output.input === content ? note.output.batchId : null;
}
