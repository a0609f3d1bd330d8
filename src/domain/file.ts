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

/** A file that the user uploaded or that a job wrote; its bytes lie in storage under `files/<id>`. */
export interface FileRecord {
  id: string;
  bytes: number;
  sha256: string;
  filename: string;
  purpose: FilePurpose;
  createdAt: number;
}

export function fileKey(fileId: string): string {
  return `files/${fileId}`;
}

/** Ids of a job's files are derived, so that two assemblers write the same ones. */
export function outputFileId(jobId: string, kind: 'output' | 'error'): string {
  return `file-${jobId.slice('job_'.length)}-${kind}`;
}

export function segmentKey(jobId: string, segmentId: string): string {
  return `jobs/${jobId}/segments/${segmentId}`;
}
