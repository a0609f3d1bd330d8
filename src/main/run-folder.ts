import { createHash } from 'node:crypto';
import { mkdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import * as v from 'valibot';
import { invalidInput } from '../domain/errors.ts';

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
 * Opens the folder of this pair of input and output. What an earlier run of another content left is removed.
 * Refuses with `run.busy` (InvalidInput) while another process writes the same output.
 */
export async function openRunFolder(
  dataDir: string,
  { input, output }: { input: string; output: string },
): Promise<RunFolder> {
  const name = createHash('sha256')
    .update(`${resolve(input)}\n${resolve(output)}`)
    .digest('hex');
  const runs = join(resolve(dataDir), 'runs');
  const path = join(runs, name.slice(0, 16));
  await mkdir(runs, { recursive: true });
  const unlock = lock(`${path}.lock`, output);
  try {
    const { size, mtimeMs } = await stat(input);
    const content = `${size} bytes of ${mtimeMs}`;
    const batchId = await recall(path, content);
    if (batchId === null) await rm(path, { recursive: true, force: true });
    await mkdir(path, { recursive: true });
    return {
      path,
      batchId,
      remember: (id) =>
        writeFile(join(path, 'run.json'), JSON.stringify({ input: content, batchId: id })),
      async close(done) {
        if (done) await rm(path, { recursive: true, force: true, maxRetries: 5 });
        if (done) await rm(`${path}.lock`, { force: true });
        unlock();
      },
    };
  } catch (error) {
    unlock();
    throw error;
  }
}

async function recall(path: string, content: string): Promise<string | null> {
  let text: string;
  try {
    text = await readFile(join(path, 'run.json'), 'utf8');
  } catch {
    return null; // no run, or none that got as far as a batch
  }
  const note = v.safeParse(v.pipe(v.string(), v.parseJson(), noteSchema), text);
  return note.success && note.output.input === content ? note.output.batchId : null;
}

/** A lock that the kernel takes back when this process dies: SQLite's on an empty database. */
function lock(path: string, output: string): () => void {
  const database = new DatabaseSync(path, { timeout: 0 });
  try {
    database.exec('BEGIN EXCLUSIVE');
  } catch (error) {
    database.close();
    const busy = error instanceof Error && error.message.includes('locked');
    if (!busy) throw error;
    throw invalidInput(
      'run.busy',
      `Another run is writing ${output}: wait for it, or name another --output.`,
    );
  }
  return () => database.close();
}
