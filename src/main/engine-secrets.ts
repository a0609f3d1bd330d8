import { open, readdir } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { errorCode, invalidInput } from '../domain/errors.ts';
import type { SluiceError } from '../domain/errors.ts';

/** Secrets by their names, as templates name them in `model_source.auth_secret_ref`. */
export type SecretReader = (name: string) => Promise<Record<string, string> | null>;

/** As Kubernetes has them, which also keeps a name from leading out of the folder. */
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$/;
/** What Kubernetes mounts begins with two dots: `..data` and the folder that it leads to. */
const ENTRY = /^[A-Za-z0-9_-][A-Za-z0-9._-]*$/;
const MOST_SECRET_BYTES = 64 * 1024;
const GROUP_AND_OTHERS = 0o077;
const OTHERS = 0o007;

/**
 * Reads secrets from a folder that has a folder for each, and a file in that for each entry. They are read anew each
 * time, since what mounts them may renew them. Resolves to null for a secret that is not there; throws InvalidInput
 * `engine.secret_file` for one that others may read too, or that we may not.
 */
export function createSecretReader(folder: string | undefined): SecretReader {
  return async (name) => {
    if (folder === undefined || !NAME.test(name)) return null;
    const place = path.join(folder, name);
    const entries = await namesIn(place);
    if (entries === null) return null;
    const secret: Record<string, string> = {};
    for (const entry of entries) {
      const value = await readEntry(path.join(place, entry));
      if (value !== null) secret[entry] = value;
    }
    return secret;
  };
}

async function namesIn(place: string): Promise<string[] | null> {
  try {
    return (await readdir(place)).filter((name) => ENTRY.test(name));
  } catch (error) {
    const code = errorCode(error);
    if (code === 'ENOENT' || code === 'ENOTDIR') return null;
    if (code !== 'EACCES') throw error;
    throw refused(`this process may not read the folder ${place}: chown it to its user`);
  }
}

/** Null for what is no file. A line's end is no part of a secret: editors and `echo` add it. */
async function readEntry(file: string): Promise<string | null> {
  try {
    await using handle = await open(file);
    const stats = await handle.stat();
    if (!stats.isFile()) return null;
    const { mode, size, uid } = stats;
    if (size > MOST_SECRET_BYTES) throw refused(`${file} is no secret: it has ${size} bytes`);
    // A file of root's that our group may read is how Kubernetes mounts one.
    const isOwn = uid === process.getuid?.();
    if ((mode & (isOwn ? GROUP_AND_OTHERS : OTHERS)) !== 0) {
      const shown = (mode & 0o777).toString(8).padStart(4, '0');
      throw refused(
        `others may read ${file} (mode ${shown}): chmod 600 ${file}, or defaultMode: 0440 where Kubernetes mounts it`,
      );
    }
    return (await handle.readFile('utf8')).replace(/\r?\n$/, '');
  } catch (error) {
    if (errorCode(error) !== 'EACCES') throw error;
    throw refused(`this process may not read ${file}: chown it to its user`);
  }
}

function refused(message: string): SluiceError {
  return invalidInput('engine.secret_file', message, { param: 'model_source.auth_secret_ref' });
}
