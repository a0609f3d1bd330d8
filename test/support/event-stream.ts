import { once } from 'node:events';
import { request } from 'node:http';
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http';
import { until } from './until.ts';

/** One message as a browser's EventSource would hand it out. */
export interface StreamMessage {
  event: string;
  id: string | null;
  data: Record<string, unknown>;
}

/** A stream of Server-Sent Events that is being read. */
export interface EventStream extends Disposable {
  status: number;
  headers: IncomingHttpHeaders;
  messages: StreamMessage[];
  comments: string[];
  /** What the server said of coming back, ms. */
  retry: number | null;
  /** `end`: by the server, whole; `cut`: broken off. */
  over: 'end' | 'cut' | null;
  of(event: string): StreamMessage[];
  /** Waits until the condition holds. */
  until(condition: (stream: EventStream) => boolean, timeoutMs?: number): Promise<void>;
  untilOver(timeoutMs?: number): Promise<void>;
}

/** Opens one and reads it as it comes; disposing hangs up. */
export async function openEvents(
  url: string,
  headers: Record<string, string> = {},
): Promise<EventStream> {
  const outgoing = request(url, {
    headers: { accept: 'text/event-stream', ...headers },
    agent: false,
  }).end();
  const [incoming] = (await once(outgoing, 'response')) as [IncomingMessage];
  outgoing.on('error', () => undefined); // told by `over`
  const stream: EventStream = {
    status: incoming.statusCode ?? 0,
    headers: incoming.headers,
    messages: [],
    comments: [],
    retry: null,
    over: null,
    of: (event) => stream.messages.filter((message) => message.event === event),
    async until(condition, timeoutMs = 10_000) {
      try {
        await until(() => condition(stream), { timeoutMs, what: 'the condition of a stream' });
      } catch (error) {
        const found = JSON.stringify([stream.over, stream.messages]).slice(0, 2_000);
        throw new Error(`${String(error)}; it has ${found}`, { cause: error });
      }
    },
    untilOver: (timeoutMs) => stream.until(({ over }) => over !== null, timeoutMs),
    [Symbol.dispose]: () => outgoing.destroy(),
  };
  let text = '';
  incoming.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
    const blocks = text.split('\n\n');
    text = blocks.pop() ?? '';
    for (const block of blocks) take(stream, block);
  });
  incoming.on('error', () => undefined); // told by `over`
  incoming.on('close', () => (stream.over = incoming.complete ? 'end' : 'cut'));
  return stream;
}

function take(stream: EventStream, block: string): void {
  const message: Omit<StreamMessage, 'data'> = { event: 'message', id: null };
  let data: string | null = null;
  for (const line of block.split('\n')) {
    const [, name = '', value = ''] = /^(\w*): ?(.*)$/.exec(line) ?? [];
    if (name === '') stream.comments.push(value);
    else if (name === 'retry') stream.retry = Number(value);
    else if (name === 'event') message.event = value;
    else if (name === 'id') message.id = value;
    else if (name === 'data') data = value;
  }
  if (data !== null) stream.messages.push({ ...message, data: JSON.parse(data) });
}
