import OpenAI from 'openai';
import * as v from 'valibot';
import * as golden from './openai-schema.ts';

/** The official SDK over a connection that holds every JSON answer against OpenAI's schema. */
export interface GoldenClient {
  openai: OpenAI;
  /** How often each kind of answer was seen and held. */
  seen: Record<string, number>;
  /** What an answer had that OpenAI's has not, or lacked; empty when all is well. */
  faults: string[];
}

const ID = String.raw`/v1/\w+/[^/]+`;
/** What a request is answered with when all goes well, by method and path. */
const KINDS: [method: string, path: RegExp, kind: string, schema: v.GenericSchema][] = [
  ['POST', /^\/v1\/files$/, 'file', golden.openaiFile],
  ['GET', /^\/v1\/files$/, 'file list', golden.openaiFileList],
  ['POST', /^\/v1\/batches$/, 'batch', golden.openaiBatch],
  ['GET', /^\/v1\/batches$/, 'batch list', golden.openaiBatchList],
  ['GET', /^\/v1\/batches\/[^/]+$/, 'batch', golden.openaiBatch],
  ['POST', /^\/v1\/batches\/[^/]+\/cancel$/, 'batch', golden.openaiBatch],
  ['GET', /^\/v1\/files\/[^/]+$/, 'file', golden.openaiFile],
  ['DELETE', /^\/v1\/files\/[^/]+$/, 'deletion', golden.openaiDeletion],
  ['POST', /^\/v1\/uploads$/, 'upload', golden.openaiUpload],
  ['POST', new RegExp(`^${ID}/parts$`), 'upload part', golden.openaiUploadPart],
  ['POST', new RegExp(`^${ID}/(?:complete|cancel)$`), 'upload', golden.openaiUpload],
];

function kindOf(method: string, url: string, status: number): [string, v.GenericSchema] | null {
  if (status >= 400) return ['error', golden.openaiError];
  const { pathname } = new URL(url);
  const found = KINDS.find(([verb, path]) => verb === method && path.test(pathname));
  return found === undefined ? null : [found[2], found[3]];
}

/** Makes the client; it never tries again, so that a test sees each answer. */
export function goldenClient(url: string): GoldenClient {
  const seen: GoldenClient['seen'] = {};
  const faults: string[] = [];
  async function checkedFetch(input: string | URL | Request, init?: RequestInit) {
    const answer = await fetch(input, init);
    const asked = input instanceof Request ? input.url : String(input);
    const method = init?.method ?? 'GET';
    const isJson = answer.headers.get('content-type')?.startsWith('application/json') === true;
    const held = isJson ? kindOf(method.toUpperCase(), asked, answer.status) : null;
    if (held === null) return answer;
    const [kind, schema] = held;
    const parsed = v.safeParse(schema, await answer.clone().json());
    seen[kind] = (seen[kind] ?? 0) + 1;
    if (!parsed.success) faults.push(`${method} ${asked}: ${v.summarize(parsed.issues)}`);
    return answer;
  }
  const openai = new OpenAI({
    baseURL: `${url}/v1`,
    apiKey: 'none',
    maxRetries: 0,
    fetch: checkedFetch,
  });
  return { openai, seen, faults };
}
