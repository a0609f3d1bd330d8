import type OpenAI from 'openai';

/** A whole answer. */
export interface Answered {
  status: number;
  headers: Headers;
  text: string;
}

/** How `ask` asks: a chat completion unless it says otherwise. */
export interface Asked {
  path?: string;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

/** POSTs a body (a string as it is) and reads the whole answer, whatever its status. */
export async function ask(url: string, body: unknown, options: Asked = {}): Promise<Answered> {
  const { path = '/v1/chat/completions', headers = {}, signal } = options;
  const answer = await fetch(url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
    ...(signal === undefined ? {} : { signal }),
  });
  return { status: answer.status, headers: answer.headers, text: await answer.text() };
}

/** A chat request with one user message. */
export function chat(content: string, more: Record<string, unknown> = {}): Record<string, unknown> {
  return { model: 'sim-model', messages: [{ role: 'user', content }], ...more };
}

/** The text of a chat answer's first choice. */
export function contentOf(text: string): string {
  const answer = JSON.parse(text) as OpenAI.ChatCompletion;
  return answer.choices[0]?.message.content ?? '';
}

/** The value of one exact series name in /metrics, summed over its labels; throws if it is not there. */
export async function metric(url: string, name: string): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  const lines = text.split('\n').filter((line) => line.startsWith(`${name}{`));
  if (lines.length === 0) throw new Error(`${name} is not in /metrics`);
  let sum = 0;
  for (const line of lines) sum += Number(line.slice(line.lastIndexOf(' ')));
  return sum;
}

/** Error, cause and code of work that must fail. */
export async function failure(work: Promise<unknown>): Promise<string> {
  try {
    await work;
  } catch (error) {
    const { message, cause } = error as Error & { cause?: Error & { code?: string } };
    return `${message} ${cause?.code ?? ''} ${cause?.message ?? ''}`;
  }
  throw new Error('it should have failed');
}
