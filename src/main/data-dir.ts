import { access, constants, mkdir, stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { errorCode, permanent } from '../domain/errors.ts';

/**
 * Makes a folder and what is missing above it, and sees that it can be written; `data_dir.not_writable` (Permanent)
 * says what is wrong. Level by level: Node's own recursive mkdir never ends below /proc.
 */
export async function ensureFolder(path: string): Promise<void> {
  try {
    await make(resolve(path));
    await access(path, constants.W_OK | constants.X_OK);
  } catch (error) {
    const message = `DATA_DIR ${path} cannot be written, set it elsewhere`;
    throw permanent('data_dir.not_writable', message, { cause: error });
  }
}

async function make(path: string): Promise<void> {
  try {
    if ((await stat(path)).isDirectory()) return;
  } catch (error) {
    if (errorCode(error) !== 'ENOENT') throw error;
    if (dirname(path) !== path) await make(dirname(path));
  }
  await mkdir(path).catch(async (error: unknown) => {
    // Another process may have been faster.
    if (errorCode(error) !== 'EEXIST' || !(await stat(path)).isDirectory()) throw error;
  });
}
