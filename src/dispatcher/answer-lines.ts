import type { Pieces } from './contract.ts';

const NEWLINE = 0x0a;
const RETURN = 0x0d;
const ANSWERED_END = '},"error":null}\n';

/**
 * The `id` of a line in the output and error file, derived so that every process that assembles a job writes the same.
 * `index` is the line's index in the whole job, from 0.
 */
export function requestId(jobId: string, index: number): string {
  return `batch_req_${jobId.slice('job_'.length)}_${index}`;
}

/** The same JSON without line breaks, so that one answer is one line; strings cannot hold raw ones (RFC 8259, 7). */
function onOneLine(body: Buffer): Buffer {
  if (!body.includes(NEWLINE) && !body.includes(RETURN)) return body;
  const flat = Buffer.from(body);
  for (let at = 0; at < flat.length; at += 1) {
    if (flat[at] === NEWLINE || flat[at] === RETURN) flat[at] = 0x20;
  }
  return flat;
}

/**
 * A finished line for what the engine answered, whatever its status: OpenAI writes a refusal alike, into the error file.
 * `customId` is the user's raw JSON string, `body` the engine's JSON; both are kept byte by byte, except that line
 * breaks between JSON tokens become spaces.
 */
export function outputLine(answer: {
  id: string;
  customId: Buffer;
  status: number;
  /** The engine's own id of the request, null when it gave none. */
  requestId: string | null;
  body: Buffer;
}): Pieces {
  const response = `{"status_code":${answer.status},"request_id":${JSON.stringify(answer.requestId)}`;
  return [
    `{"id":${JSON.stringify(answer.id)},"custom_id":`,
    answer.customId,
    `,"response":${response},"body":`,
    onOneLine(answer.body),
    ANSWERED_END,
  ];
}

/** A finished line for a request that no engine answered; `customId` is the user's raw JSON string. */
export function errorOnlyLine(failure: {
  id: string;
  customId: Buffer;
  code: string;
  message: string;
}): Buffer {
  const error = JSON.stringify({ code: failure.code, message: failure.message });
  return Buffer.concat([
    Buffer.from(`{"id":${JSON.stringify(failure.id)},"custom_id":`),
    failure.customId,
    Buffer.from(`,"response":null,"error":${error}}\n`),
  ]);
}
