import { randomUUID } from 'node:crypto';

/** A file as the service keeps it; one that a batch wrote has no name of its own. */
export interface StoredFile {
  id: string;
  filename: string;
  purpose: string | null;
  createdAt: number;
  content: Buffer;
}

export const OPEN_STATES = ['scheduling', 'validating', 'in_progress', 'cancelling', 'finalizing'];

/** One batch, in the service's own words; times are unix seconds. */
export interface StoredBatch {
  id: string;
  status: string;
  body: Record<string, unknown>;
  createdAt: number;
  times: Record<string, number>;
  total: number;
  completed: number;
  failed: number;
  output: string | null;
  error: string | null;
  errors: { code: string; message: string; line?: number }[];
}

/** How a batch is run: what goes wrong is up to the test. */
export interface RunOptions {
  /** How it ends. */
  status?: 'completed' | 'failed' | 'expired' | 'cancelled';
  /** Which of its lines are answered, by index; the rest is in neither file, as AIBrix leaves them. */
  answers?: (index: number) => 'output' | 'error' | null;
  /** Puts the lines of each file in another order, or more than once. */
  arrange?: (lines: string[]) => string[];
  errors?: StoredBatch['errors'];
}

interface RequestLine {
  custom_id: string;
  body: { model?: string };
}

export function now(): number {
  return Math.floor(Date.now() / 1_000);
}

/** The lines of an input, blank ones left out. */
export function requestsOf(content: Buffer): RequestLine[] {
  const lines = content.toString('utf8').split('\n');
  return lines.filter((line) => line.trim() !== '').map((line) => JSON.parse(line) as RequestLine); // the tests' own
}

/** Python's json.dumps writes spaces between members, and only ASCII. */
function dumps(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(dumps).join(', ')}]`;
  if (typeof value === 'object' && value !== null) {
    const members = Object.entries(value).map(([key, each]) => `${dumps(key)}: ${dumps(each)}`);
    return `{${members.join(', ')}}`;
  }
  return JSON.stringify(value).replaceAll(
    /[\u007f-\uffff]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

/** What the simulated engine says to a request. */
function answerTo(customId: string): object {
  const message = { role: 'assistant', content: `answer to ${customId}` };
  return { id: `chat-${customId}`, object: 'chat.completion', choices: [{ index: 0, message }] };
}

function outputLine(batch: string, index: number, customId: string): string {
  const response = {
    status_code: 200,
    request_id: `${batch}-${index}`,
    body: answerTo(customId),
  };
  return dumps({ id: randomUUID().slice(0, 5), error: null, response, custom_id: customId });
}

function errorLine(customId: string): string {
  const message = '[http_error] http://host:9100: HTTP 400 status=400';
  const error = { code: 'inference_failed', message };
  return dumps({ id: randomUUID().slice(0, 5), error, response: null, custom_id: customId });
}

/** Both files of a batch, in the order of the input unless it is arranged otherwise. */
export function resultsOf(
  batch: string,
  requests: readonly RequestLine[],
  { answers = () => 'output', arrange = (lines) => lines }: RunOptions,
): { output: string[]; error: string[] } {
  const files: Record<'output' | 'error', string[]> = { output: [], error: [] };
  for (const [index, { custom_id: customId }] of requests.entries()) {
    const kind = answers(index);
    if (kind === 'output') files.output.push(outputLine(batch, index, customId));
    if (kind === 'error') files.error.push(errorLine(customId));
  }
  return { output: arrange(files.output), error: arrange(files.error) };
}

/** As the service shows a batch: what is null is left out, and counts while there are none. */
export function batchView(batch: StoredBatch): Record<string, unknown> {
  const { body, total, completed, failed } = batch;
  const isOver = !OPEN_STATES.includes(batch.status);
  const usage = { input_tokens: 3 * completed, output_tokens: 5 * completed };
  const seen = {
    id: batch.id,
    object: 'batch',
    endpoint: body['endpoint'],
    input_file_id: body['input_file_id'],
    completion_window: '1d',
    status: batch.status,
    output_file_id: isOver && completed > 0 ? batch.output : null,
    error_file_id: isOver && failed > 0 ? batch.error : null,
    created_at: batch.createdAt,
    ...batch.times,
    request_counts: total === 0 ? null : { total, completed, failed },
    usage:
      total === 0
        ? null
        : {
            ...usage,
            total_tokens: usage.input_tokens + usage.output_tokens,
            input_tokens_details: { cached_tokens: 0 },
            output_tokens_details: { reasoning_tokens: 0 },
          },
    errors: batch.errors.length === 0 ? null : { object: 'list', data: batch.errors },
    metadata: body['metadata'] ?? null,
    aibrix: body['aibrix'] ?? null,
  };
  return Object.fromEntries(Object.entries(seen).filter(([, value]) => value !== null));
}
