import { createReadStream } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import * as v from 'valibot';
import { manifestSchema } from '../api/docs/manifest.ts';
import { describeError, errorCode, invalidInput } from '../domain/errors.ts';
import { jobIdOf } from '../domain/job.ts';
import type { Manifest, ManifestFile } from '../domain/manifest.ts';
import { connectServer, refusal } from './server-client.ts';
import type { ServerSettings } from './server-client.ts';
import { checkFiles } from './verify-files.ts';
import type { Check, OpenFiles } from './verify-files.ts';

export interface VerifyOptions {
  /** Base URL of the server, without a slash at its end. */
  url?: string;
  /** A folder with the manifest and the files, instead of a server. */
  dir?: string;
  json?: true;
}

/** Where a manifest and its files are read from. */
interface Source {
  manifest(): Promise<string>;
  /** Null where the file is not there. */
  open(file: ManifestFile): Promise<Readable | null>;
}

/**
 * `sluice verify`: checks by its manifest that what a batch wrote is whole, unchanged, and has every request once.
 * Prints a line a check, or with `--json` one object. Returns the exit code: 0 only when every check is right.
 */
export async function verify(
  batch: string | undefined,
  options: VerifyOptions,
  settings: ServerSettings,
): Promise<number> {
  const source =
    options.dir === undefined
      ? serverSource(batch, options, settings)
      : folderSource(options.dir, batch);
  const manifest = parseManifest(await source.manifest());
  const checks = [aboutManifest(manifest, batch), ...(await checkAll(manifest, source))];
  const ok = checks.every((check) => check.ok);
  if (options.json === true) {
    const { batch_id, job_id } = manifest;
    process.stdout.write(`${JSON.stringify({ batch_id, job_id, ok, checks })}\n`);
  } else {
    for (const check of checks) process.stdout.write(lineOf(check));
  }
  return ok ? 0 : 1;
}

function lineOf({ name, ok, detail }: Check): string {
  return `${ok ? 'ok   ' : 'WRONG'}  ${name.padEnd(12)}  ${detail}\n`;
}

async function checkAll(manifest: Manifest, source: Source): Promise<Check[]> {
  const files: OpenFiles = { input: null, output: null, error: null };
  try {
    for (const name of ['input', 'output', 'error'] as const) {
      const file = manifest[name];
      if (file !== null) files[name] = await source.open(file);
    }
    return await checkFiles(manifest, files);
  } finally {
    // A connection that is left open would keep the process alive.
    for (const file of Object.values(files)) file?.destroy();
  }
}

function aboutManifest(manifest: Manifest, batch: string | undefined): Check {
  const { batch_id: id, job_id: job, status, tool } = manifest;
  const ok = batch === undefined || batch === id || batch === job;
  const detail = `${id}, ${status}, written by ${tool.name} ${tool.version}`;
  return { name: 'manifest', ok, detail: ok ? detail : `${detail}: not of ${batch}` };
}

function parseManifest(text: string): Manifest {
  try {
    return v.parse(manifestSchema, JSON.parse(text));
  } catch (error) {
    const why = `This is no manifest that this version reads: ${describeError(error)}.`;
    throw invalidInput('verify.bad_manifest', why);
  }
}

function serverSource(
  batch: string | undefined,
  { url }: VerifyOptions,
  settings: ServerSettings,
): Source {
  const job = batch?.startsWith('job_') === true ? batch : jobIdOf(batch ?? '');
  if (job === null) {
    const mend = 'Name a batch or job, such as batch_abc or job_abc';
    throw invalidInput('verify.no_batch', `${mend}, or a folder with --dir.`);
  }
  const { ask } = connectServer('verify', url, settings);
  return {
    async manifest() {
      const response = await ask(`/api/v1/jobs/${job}/manifest`);
      if (!response.ok) throw await refusal('verify', response);
      return response.text();
    },
    async open({ file_id: id }) {
      const response = await ask(`/v1/files/${id}/content`);
      if (response.status === 404) {
        await response.body?.cancel();
        return null;
      }
      if (!response.ok) throw await refusal('verify', response);
      return response.body === null ? Readable.from([]) : Readable.from(response.body);
    },
  };
}

/** Files under the names that a download gives them, or under their ids. */
function folderSource(dir: string, batch: string | undefined): Source {
  return {
    manifest: async () => readFile(join(dir, await manifestIn(dir, batch)), 'utf8'),
    async open({ filename, file_id: id }) {
      const names = await readdir(dir);
      const found = [filename, id].find((name) => names.includes(name));
      return found === undefined ? null : createReadStream(join(dir, found));
    },
  };
}

async function manifestIn(dir: string, batch: string | undefined): Promise<string> {
  const names = await namesIn(dir);
  const key = batch?.replace(/^(?:batch|job)_/, '') ?? '';
  const found = names.filter((name) => name.endsWith('manifest.json'));
  const [only, ...others] = found.length > 1 ? found.filter((name) => name.includes(key)) : found;
  if (only !== undefined && others.length === 0) return only;
  const what = only === undefined ? 'No manifest' : 'More than one manifest';
  const mend = only === undefined ? 'save it there as manifest.json' : 'name the batch, too';
  throw invalidInput('verify.folder', `${what} is in ${dir}: ${mend}.`);
}

async function namesIn(dir: string): Promise<string[]> {
  try {
    return await readdir(dir);
  } catch (error) {
    if (errorCode(error) !== 'ENOENT' && errorCode(error) !== 'ENOTDIR') throw error;
    throw invalidInput('verify.folder', `--dir ${dir} is no folder.`);
  }
}
