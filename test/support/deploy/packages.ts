import { copyFileSync, linkSync, mkdirSync, readdirSync, readlinkSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import * as v from 'valibot';
import { errorCode } from '../../../src/domain/errors.ts';
import { readText, ROOT } from './manifests.ts';

const flag = v.optional(v.boolean(), false);
const lock = v.pipe(
  v.string(),
  v.parseJson(),
  v.object({
    packages: v.record(v.string(), v.object({ dev: flag, optional: flag, devOptional: flag })),
  }),
);

/** Folders that `npm ci --omit=dev --omit=optional` makes, parents before what lies in them. */
function productionFolders(): string[] {
  const { packages } = v.parse(lock, readText('package-lock.json'));
  return Object.entries(packages)
    .filter(([path, each]) => path !== '' && !each.dev && !each.optional && !each.devOptional)
    .map(([path]) => path)
    .toSorted();
}

/** The same file under another name, which costs nothing; a copy where the other name is on another disk. */
export function linkFile(source: string, target: string): void {
  try {
    linkSync(source, target);
  } catch (error) {
    if (!['EXDEV', 'EPERM', 'EMLINK'].includes(errorCode(error) ?? '')) throw error;
    copyFileSync(source, target);
  }
}

/** A folder with all that is in it but packages of its own. */
function linkFolder(source: string, target: string): void {
  mkdirSync(target, { recursive: true });
  for (const entry of readdirSync(source, { withFileTypes: true })) {
    const [from, to] = [join(source, entry.name), join(target, entry.name)];
    if (entry.isSymbolicLink()) symlinkSync(readlinkSync(from), to);
    else if (entry.isFile()) linkFile(from, to);
    else if (entry.name !== 'node_modules') linkFolder(from, to);
  }
}

/** Lays down what production needs out of the packages that are installed here. */
export function layProductionPackages(folder: string): void {
  for (const path of productionFolders()) {
    // Its binary is what its install script fetches, and scripts are off.
    if (path === 'node_modules/node') {
      mkdirSync(join(folder, path), { recursive: true });
      linkFile(join(ROOT, path, 'package.json'), join(folder, path, 'package.json'));
    } else linkFolder(join(ROOT, path), join(folder, path));
  }
}
