/** What a manifest says of one file. `lines` counts requests: blank lines of an input are none. */
export interface ManifestFile {
  file_id: string;
  filename: string;
  bytes: number;
  /** Hex; empty where nobody has read the file, which lies in a bucket of the user's. */
  sha256: string;
  lines: number;
}

/** Lines of the output file and of the error file that have something in common. */
export interface LineCounts {
  completed: number;
  failed: number;
}

/**
 * What a job wrote, from what, and by whom: stored beside its files when they are, and never changed. Everything in it
 * is on record or in the files, so that whoever writes it again writes the same bytes. Times are unix seconds.
 */
export interface Manifest {
  object: 'batch.manifest';
  schema_version: 1;
  /** What wrote it. */
  tool: { name: 'sluice'; version: string };
  job_id: string;
  batch_id: string;
  /** As the Console calls what the job ended as. */
  status: string;
  endpoint: string;
  created_at: number;
  /** When an engine took the first line; null: none ever did. */
  started_at: number | null;
  /** When the last answer was in. */
  finished_at: number | null;
  input: ManifestFile;
  /** Null where no line went there, so that there is no such file. */
  output: ManifestFile | null;
  error: ManifestFile | null;
  request_counts: { total: number; completed: number; failed: number };
  /** By the HTTP status that an engine answered; null: none answered. */
  status_codes: (LineCounts & { status_code: number | null })[];
  /** By the model that was asked or has answered; null: the line does not tell. */
  models: (LineCounts & { model: string | null })[];
  /**
   * By the engine that answered, `engine-1` being the first that the job had, and the provisions of the job that it
   * was, one after the other; null: no engine answered, or it is not on record which.
   */
  engines: (LineCounts & {
    engine: string | null;
    provider: string | null;
    provision_ids: string[];
  })[];
  usage: {
    input_tokens: number;
    cached_tokens: number;
    output_tokens: number;
    reasoning_tokens: number;
    total_tokens: number;
  };
}

/** As it is stored: people read it, too. */
export function formatManifest(manifest: Manifest): string {
  return `${JSON.stringify(manifest, null, 2)}\n`;
}
