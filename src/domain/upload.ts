import type { UploadPurpose } from './file.ts';

/** OpenAI's statuses of an upload; all but `pending` are final. */
export const UPLOAD_STATUSES = ['pending', 'completed', 'cancelled', 'expired'] as const;
export type UploadStatus = (typeof UPLOAD_STATUSES)[number];
export type UploadEnd = Exclude<UploadStatus, 'pending'>;

/** OpenAI's rule: an upload that is not completed an hour after its creation is over. */
export const UPLOAD_LIFE_MS = 3_600_000;
/** OpenAI's largest part; its SDKs cut their files into parts of this size. */
export const MAX_PART_BYTES = 64 * 1024 * 1024;
/** Bounds what one record holds; the ids of so many parts fit into the JSON body that completes the upload. */
export const MAX_PARTS = 10_000;

/** What an upload became: a file whose bytes are whole in storage. */
export interface UploadResult {
  fileId: string;
  /** Hex digests of all bytes. */
  sha256: string;
  md5: string;
  /** Tells the list of parts that made it from another one. */
  list: string;
}

/** A file that comes in parts. Times are Redis time in ms since 1970. */
export interface UploadRecord {
  id: string;
  status: UploadStatus;
  filename: string;
  purpose: UploadPurpose;
  mimeType: string;
  /** How many were announced, and must come. */
  bytes: number;
  /** How long its file is kept; null: until somebody deletes it. */
  expiresAfterMs: number | null;
  createdAt: number;
  expiresAt: number;
  /** Until when somebody joins the parts, unless it says so again. */
  busyUntil: number;
  /** When it came to a final status. */
  endedAt: number | null;
  /** Of a completed one. */
  result: UploadResult | null;
  /** Whether its file's record was written; whoever deletes the file is not to see it come back. */
  isFileMade: boolean;
}

export interface UploadPart {
  id: string;
  bytes: number;
  createdAt: number;
}

/** An upload's status at a time: past its hour it is over, unless its parts are just being joined. */
export function uploadStatus(upload: UploadRecord, now: number): UploadStatus {
  const isOver = upload.expiresAt <= now && upload.busyUntil <= now;
  return upload.status === 'pending' && isOver ? 'expired' : upload.status;
}

/** Where the parts of an upload lie; ends in a slash. */
export function partsPrefix(uploadId: string): string {
  return `uploads/${uploadId}/`;
}

export function partKey(uploadId: string, partId: string): string {
  return `${partsPrefix(uploadId)}${partId}`;
}
