import { batchIdOf } from './job.ts';
import type { JobRecord } from './job.ts';

/** Purposes that a file may have; `batch_output` is only ever given by Sluice itself. */
export const UPLOAD_PURPOSES = [
  'assistants',
  'batch',
  'fine-tune',
  'vision',
  'user_data',
  'evals',
] as const;
export const FILE_PURPOSES = [...UPLOAD_PURPOSES, 'batch_output'] as const;
export type UploadPurpose = (typeof UPLOAD_PURPOSES)[number];
export type FilePurpose = (typeof FILE_PURPOSES)[number];

/** A file that the user uploaded or that a job wrote; its bytes lie in storage, under `files/<id>` unless it says so. */
export interface FileRecord {
  id: string;
  bytes: number;
  /** Empty until planning has read an input that is not ours. */
  sha256: string;
  filename: string;
  purpose: FilePurpose;
  createdAt: number;
  /** From when on nobody sees it any more, ms; absent: it stays until somebody deletes it. */
  expiresAt?: number;
  /** As its uploader named it; absent: the purpose says enough. */
  mimeType?: string;
  /** Address of its bytes in a bucket of the user's, pinned to one version; they are not ours to delete. */
  location?: string;
}

/** Of the two files that a job writes. */
export type OutputKind = 'output' | 'error';

/** OpenAI's bounds of `expires_after`: an hour to thirty days. */
export const EXPIRES_AFTER_SECONDS = { min: 3_600, max: 2_592_000 } as const;

/** How long a link to download a file may be good at most: what Amazon's signatures (SigV4) allow in an address. */
export const MOST_LINK_SECONDS = 7 * 24 * 3_600;

/** Whether a file is gone for its users; its bytes may lie there for a while longer. */
export function isExpired(file: Pick<FileRecord, 'expiresAt'>, now: number): boolean {
  return file.expiresAt !== undefined && file.expiresAt <= now;
}

export function fileKey(fileId: string): string {
  return `files/${fileId}`;
}

/** Where the bytes of a file are read. */
export function contentKey({ id, location }: Pick<FileRecord, 'id' | 'location'>): string {
  return location ?? fileKey(id);
}

/** Where the input of a job is read. */
export function inputKey({ input, options }: Pick<JobRecord, 'input' | 'options'>): string {
  return options.inputLocation ?? fileKey(input);
}

/** Where a job's output or error file is written. */
export function outputKey(
  { id, options }: Pick<JobRecord, 'id' | 'options'>,
  kind: OutputKind,
): string {
  if (options.outputPrefix === null) return fileKey(outputFileId(id, kind));
  return `${options.outputPrefix}${batchIdOf(id)}_${kind}.jsonl`;
}

/**
 * Where the manifest of a job's files lies: beside its output file, whether or not there is one. It has no record of
 * its own, and goes with the job.
 */
export function manifestKey(jobId: string): string {
  return `${fileKey(outputFileId(jobId, 'output'))}.manifest.json`;
}

/** Ids of a job's files are derived, so that two assemblers write the same ones. */
export function outputFileId(jobId: string, kind: OutputKind): string {
  return `file-${jobId.slice('job_'.length)}-${kind}`;
}

/** The job that wrote the output or error file of this id; null for the id of any other file. */
export function writerOf(fileId: string): string | null {
  const name = /^file-([A-Za-z0-9]+)-(?:output|error)$/.exec(fileId)?.[1];
  return name === undefined ? null : `job_${name}`;
}

/** Id of the input that a retry of failed lines writes for itself; derived, so that two planners write the same one. */
export function retryInputId(jobId: string): string {
  return `file-${jobId.slice('job_'.length)}-input`;
}

/**
 * Files that a job which is not over reads or writes. `source` is the job whose failed lines it asks again, as long as
 * its own input is still to be written out of that one's files.
 */
export function filesInUse(job: JobRecord, source: JobRecord | null): string[] {
  const files = [job.input, outputFileId(job.id, 'output'), outputFileId(job.id, 'error')];
  if (source !== null && job.state === 'queued') {
    files.push(source.input, ...(source.errorFile === null ? [] : [source.errorFile]));
  }
  return files;
}

export function segmentKey(jobId: string, segmentId: string): string {
  return `jobs/${jobId}/segments/${segmentId}`;
}
