import { createHash } from 'node:crypto';
import OpenAI, { APIConnectionError, APIError } from 'openai';
import { expect } from 'vitest';
import { until } from './until.ts';

/** A batch's input and what is to be found again in its answers. */
export interface Input {
  text: string;
  /** In input order. */
  customIds: string[];
  /** Of each line, how the simulator's answer to its body begins: an answer proves its request. */
  marks: Map<string, string>;
}

export interface InputOptions {
  /** Begins every custom_id, and makes the bodies differ from those of other inputs. */
  name?: string;
  model?: string;
  /** Bytes that pad each line. */
  padding?: number;
}

/** So many chat requests, each with a body of its own. */
export function makeInput(
  count: number,
  { name = 'line', model = 'sim-model', padding = 0 }: InputOptions = {},
): Input {
  const lines: string[] = [];
  const customIds: string[] = [];
  const marks = new Map<string, string>();
  const pad = padding === 0 ? '' : ` ${'x'.repeat(padding)}`;
  for (let n = 0; n < count; n += 1) {
    const customId = `${name}-${n}`;
    const messages = [{ role: 'user', content: `Question ${n} of ${name}.${pad}` }];
    const body = JSON.stringify({ model, messages });
    customIds.push(customId);
    marks.set(customId, markOf(body));
    lines.push(requestLine(customId, body));
  }
  return { text: `${lines.join('\n')}\n`, customIds, marks };
}

/** One line of an input file, with a body's own bytes. */
export function requestLine(customId: string, body: string): string {
  return `{"custom_id":${JSON.stringify(customId)},"method":"POST","url":"/v1/chat/completions","body":${body}}`;
}

/** How the simulator's answer to a body begins. */
function markOf(body: string): string {
  return `sim-${createHash('sha256').update(body).digest('hex').slice(0, 16)}`;
}

/** The official SDK, as a user has it: only the base URL differs. */
export function openaiClient(url: string): OpenAI {
  return new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
}

/** Uploads a text as an input file. */
export async function upload(url: string, text: string, filename = 'input.jsonl'): Promise<string> {
  const file = new File([text], filename);
  return (await openaiClient(url).files.create({ file, purpose: 'batch' })).id;
}

export interface BatchOptions {
  maxConcurrency?: number;
  /** The rest of `aibrix.client`. */
  client?: Record<string, unknown>;
  priority?: 'high' | 'normal' | 'low';
  endpoint?: OpenAI.BatchCreateParams['endpoint'];
}

/** Creates a batch over an uploaded file. */
export async function createBatch(
  url: string,
  fileId: string,
  { maxConcurrency, client, priority, endpoint = '/v1/chat/completions' }: BatchOptions = {},
): Promise<OpenAI.Batch> {
  const max = maxConcurrency === undefined ? {} : { max_concurrency: maxConcurrency };
  const extension = { aibrix: { client: { ...max, ...client }, priority } };
  const batch = { input_file_id: fileId, endpoint, completion_window: '24h' as const };
  return openaiClient(url).batches.create({ ...batch, ...extension });
}

/** Uploads an input and starts a batch over it. */
export async function submit(url: string, input: Input, options?: BatchOptions): Promise<string> {
  const { id } = await createBatch(url, await upload(url, input.text), options);
  return id;
}

const FINAL = new Set(['completed', 'failed', 'expired', 'cancelled']);

/** A batch as it is now; null while the server cannot be asked. */
async function readBatch(url: string, id: string): Promise<OpenAI.Batch | null> {
  return openaiClient(url)
    .batches.retrieve(id)
    .catch((error: unknown) => {
      // A server or Redis that is down at this moment is what some tests are about.
      if (error instanceof APIConnectionError) return null;
      if (error instanceof APIError && error.status === 503) return null;
      throw error;
    });
}

/** Polls a batch until the condition holds, and returns it. */
export async function untilBatch(
  url: string,
  id: string,
  condition: (batch: OpenAI.Batch) => boolean,
  { timeoutMs = 60_000, what = 'the condition' } = {},
): Promise<OpenAI.Batch> {
  let last: OpenAI.Batch | null = null;
  try {
    return await until(
      async () => {
        last = (await readBatch(url, id)) ?? last;
        return last !== null && condition(last) ? last : undefined;
      },
      { timeoutMs, what: `${what} of ${id}` },
    );
  } catch (error) {
    throw new Error(`${String(error)}; it is ${JSON.stringify(last)}`, { cause: error });
  }
}

/** Polls a batch until it is over. */
export function untilFinal(url: string, id: string, timeoutMs = 60_000): Promise<OpenAI.Batch> {
  return untilBatch(url, id, ({ status }) => FINAL.has(status), { timeoutMs, what: 'the end' });
}

/** Polls a batch until so many of its lines are answered. */
export function untilAnswered(
  url: string,
  id: string,
  count: number,
  timeoutMs = 60_000,
): Promise<OpenAI.Batch> {
  return untilBatch(url, id, ({ request_counts: counts }) => (counts?.completed ?? 0) >= count, {
    timeoutMs,
    what: `${count} answers`,
  });
}

/** The job of a batch as the Console sees it, with its own states and reasons. */
export async function readJob(url: string, batchId: string): Promise<ConsoleJob> {
  const answer = await fetch(`${url}/api/v1/jobs/${batchId.replace('batch_', 'job_')}`);
  if (!answer.ok) throw new Error(`the job answers ${answer.status}: ${await answer.text()}`);
  return (await answer.json()) as ConsoleJob; // the view's fields are tested with the API
}

export interface ConsoleJob {
  id: string;
  status: string;
  error_message: string;
  events: { status: string; message: string }[];
  provision: { status: string; raw_json: string } | null;
}

/** Shows a measured time beside the test's own result. */
export function say(text: string): void {
  console.log(text);
}

/** One line of an output or error file. */
export interface ResultLine {
  id: string;
  custom_id: string;
  response: { status_code: number; body: OpenAI.ChatCompletion } | null;
  error: { code: string; message: string } | null;
}

/** A file's bytes; an empty text for no file. */
export async function download(url: string, fileId: string | null | undefined): Promise<string> {
  if (!fileId) return '';
  const answer = await openaiClient(url).files.content(fileId);
  return answer.text();
}

export function parseLines(text: string): ResultLine[] {
  if (text === '') return [];
  expect(text.endsWith('\n'), 'the file ends with a line').toBe(true);
  const lines = text.slice(0, -1).split('\n');
  return lines.map((line) => JSON.parse(line) as ResultLine); // each test looks at its fields
}

export interface Results {
  output: ResultLine[];
  error: ResultLine[];
}

/**
 * Reads both files of a finished batch and makes sure of what holds for every one: each custom_id exactly once in
 * output and error together, both in input order, counts equal to lines, and each answer that of its own request.
 */
export async function expectExact(
  url: string,
  batch: OpenAI.Batch,
  input: Input,
): Promise<Results> {
  const output = parseLines(await download(url, batch.output_file_id));
  const error = parseLines(await download(url, batch.error_file_id));
  expectExactLines({ output, error }, input);
  expect(batch.request_counts).toEqual({
    total: input.customIds.length,
    completed: output.length,
    failed: error.length,
  });
  return { output, error };
}

/** The same for files that were read already. */
export function expectExactLines({ output, error }: Results, input: Input): void {
  const place = new Map(input.customIds.map((id, index) => [id, index]));
  const seen = [...output, ...error].map(({ custom_id: id }) => place.get(id) ?? -1);
  expect(
    seen.toSorted((a, b) => a - b),
    'every line exactly once',
  ).toEqual(input.customIds.map((_id, index) => index));
  for (const file of [output, error]) {
    const indexes = file.map(({ custom_id: id }) => place.get(id) ?? -1);
    expect(indexes, 'in input order').toEqual(indexes.toSorted((a, b) => a - b));
  }
  const wrong = output.filter(({ custom_id: id, response }) => {
    const content = response?.body.choices[0]?.message.content ?? '';
    return !content.startsWith(input.marks.get(id) ?? 'no mark');
  });
  expect(wrong, 'each answer belongs to its request').toEqual([]);
}
