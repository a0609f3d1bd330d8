import { manifestKey } from './file.ts';

/** What an object of our storage belongs to, by its key alone. */
export type ObjectOwner =
  | { kind: 'segment'; job: string }
  /** `job` reads or writes a file of this id, which is derived from its own; null: no job's. */
  | { kind: 'file'; file: string; job: string | null }
  | { kind: 'manifest'; job: string }
  | { kind: 'part'; upload: string };

/** Where records name objects; all else in the storage is somebody else's business. Each ends in a slash. */
export const OWNED_PREFIXES = ['files/', 'jobs/', 'uploads/'] as const;

const SEGMENT = /^jobs\/(job_[A-Za-z0-9]+)\/segments\/[^/]+$/;
const PART = /^uploads\/(upload_[A-Za-z0-9]+)\/[^/]+$/;
const FILE = /^files\/(file-[A-Za-z0-9_-]+)$/;
const DERIVED = /^file-([A-Za-z0-9]+)-(?:output|error|input)$/;
const MANIFEST = /^files\/file-([A-Za-z0-9]+)-output\./;

/** Null for a key that Sluice does not write. */
export function ownerOfObject(key: string): ObjectOwner | null {
  const job = SEGMENT.exec(key)?.[1];
  if (job !== undefined) return { kind: 'segment', job };
  const upload = PART.exec(key)?.[1];
  if (upload !== undefined) return { kind: 'part', upload };
  const file = FILE.exec(key)?.[1];
  if (file !== undefined) return { kind: 'file', file, job: jobOfFile(file) };
  const manifestOf = `job_${MANIFEST.exec(key)?.[1] ?? ''}`;
  return key === manifestKey(manifestOf) ? { kind: 'manifest', job: manifestOf } : null;
}

function jobOfFile(fileId: string): string | null {
  const name = DERIVED.exec(fileId)?.[1];
  return name === undefined ? null : `job_${name}`;
}

/** Where all objects lie that belong to a job alone; ends in a slash. */
export function jobPrefix(jobId: string): string {
  return `jobs/${jobId}/`;
}

/** Where a storage remembers which records it was collected by. */
export const CENSUS_KEY = 'gc/census.json';
