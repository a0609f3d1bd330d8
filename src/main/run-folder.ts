import { createHash, randomBytes } from 'node:crypto';
import { mkdir, readFile, rename, rm, rmdir, stat, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import * as v from 'valibot';
import { errorCode, invalidInput } from '../domain/errors.ts';
import { ensureFolder } from './data-dir.ts';
import { tryLock } from './process-lock.ts';

const noteSchema = v.object({ input: v.string(), batchId: v.string() });

/** The folder that holds everything of one `sluice run` until it is done, so that it can be taken up again. */
export interface RunFolder {
  path: string;
  /** Begins the keys of this folder's records, whose Redis may be a shared one; never used for another folder. */
  namespace: string;
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
  const lock = await lockIn(runs, `${path}.lock`);
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
      namespace: await namespaceOf(path),
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
        // Refused while others are running: the last one takes the folder with it.
        if (done) await rmdir(runs).catch(() => undefined);
      },
    };
  } catch (error) {
    lock.release();
    throw error;
  }
}

/** A run that ends takes the empty folder with it, perhaps just when we want a lock there. */
async function lockIn(runs: string, path: string): Promise<ReturnType<typeof tryLock>> {
  for (let attempt = 1; ; attempt += 1) {
    await ensureFolder(runs);
    try {
      return tryLock(path);
    } catch (error) {
      if (attempt === 3) throw error;
    }
  }
}

async function namespaceOf(path: string): Promise<string> {
  const file = join(path, 'namespace');
  const made = `sluice-run-${randomBytes(8).toString('hex')}`;
  await writeFile(file, made, { flag: 'wx' }).catch((error: unknown) => {
    if (errorCode(error) !== 'EEXIST') throw error;
  });
  return readFile(file, 'utf8');
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
