import { Client } from 'undici';

/** One request. */
export interface OneCall {
  method: 'GET' | 'POST' | 'DELETE';
  url: string;
  headers: Record<string, string>;
  body: string | null;
  signal: AbortSignal;
  /** Time for a connection, ms, after which it is not sent any more (undici looks about once a second); missing: 10 s. */
  connectMs?: number;
}

export interface OneAnswer {
  status: number;
  /** Names in lower case. */
  headers: Record<string, string | string[] | undefined>;
  text: string;
}

const CONNECT_MS = 10_000;
const MOST_BYTES = 32 * 1024 * 1024;

/**
 * Carries a request and reads its answer whole; rejects where there is none, or half of one. On a connection of its own:
 * one that was kept and has been closed meanwhile would leave a create in doubt.
 */
export async function askOnce(call: OneCall): Promise<OneAnswer> {
  const { method, headers, body, signal, connectMs = CONNECT_MS } = call;
  const { origin, pathname, search } = new URL(call.url);
  // 0 would be no limit.
  const connectTimeout = Math.max(1, Math.min(CONNECT_MS, Math.ceil(connectMs)));
  const client = new Client(origin, { connectTimeout });
  try {
    const path = pathname + search;
    const answer = await client.request({ method, path, headers, body, signal, reset: true });
    let text = '';
    for await (const chunk of answer.body.setEncoding('utf8')) {
      text += String(chunk);
      if (text.length > MOST_BYTES)
        throw new Error(`the answer has more than ${MOST_BYTES} characters`);
    }
    return { status: answer.statusCode, headers: answer.headers, text };
  } finally {
    await client.destroy();
  }
}
