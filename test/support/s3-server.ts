import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const ENTRY = fileURLToPath(new URL('s3-process.ts', import.meta.url));

/** A server that speaks S3, in a process of its own; it believes every signature. */
export interface S3Server extends AsyncDisposable {
  url: string;
  pid: number;
  /** Makes an empty bucket with a new name. */
  createBucket(): Promise<string>;
}

/** Keys that any server without a list of its own takes. */
export const ANY_KEYS = { accessKeyId: 'access', secretAccessKey: 'secret' };

let made = 0;

export async function startS3Server(): Promise<S3Server> {
  const child = spawn(process.execPath, [ENTRY], { stdio: ['pipe', 'pipe', 'inherit'] });
  const exited = once(child, 'exit');
  const line = once(createInterface({ input: child.stdout }), 'line');
  const first = await Promise.race([line, exited.then(() => null)]);
  if (first === null || child.pid === undefined) throw new Error('the S3 server did not start');
  const { listening: url } = JSON.parse(String(first[0])) as { listening: string }; // our own words
  return {
    url,
    pid: child.pid,
    async createBucket() {
      made += 1;
      const bucket = `bucket-${process.pid}-${made}`;
      const { ok, status } = await fetch(`${url}/${bucket}`, { method: 'PUT' });
      if (!ok) throw new Error(`no bucket: ${status}`);
      return bucket;
    },
    async [Symbol.asyncDispose]() {
      child.stdin.end();
      await exited;
    },
  };
}
