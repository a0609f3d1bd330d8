import { request } from 'undici';
import * as v from 'valibot';
import { describeError } from '../domain/errors.ts';
import { quoteModels } from '../domain/provision.ts';
import { ClientPool } from './client-pool.ts';
import type { Connection, Look, Runtime } from './contract.ts';

/** A busy vLLM answers `/health` late, since its API server shares the CPU with tokenization. */
const LOOK_TIMEOUT_MS = 5_000;
const MOST_LOOK_BYTES = 1024 * 1024;

const modelList = v.object({ data: v.array(v.object({ id: v.string() })) });

interface EndpointOptions {
  engineApiKey: string | undefined;
  /** Only these get the key: a batch may name any address, whose owner must not learn it. */
  engineUrls: readonly string[];
  /** How long an engine may take to accept a connection, ms. How long it may take for an answer is the sender's to say. */
  connectTimeout: number;
}

/** Reaches an engine at its own HTTP address: one that runs already. */
export function createEndpointRuntime(options: EndpointOptions): Runtime {
  const { engineApiKey: key, engineUrls, connectTimeout } = options;
  function headersFor(address: string): Record<string, string> {
    return key === undefined || !engineUrls.includes(address)
      ? {}
      : { authorization: `Bearer ${key}` };
  }
  return {
    connect: (address) => connectEndpoint(address, headersFor(address), connectTimeout),
    async look(address, models, signal) {
      const headers = headersFor(address);
      try {
        const health = await ask(`${address}/health`, headers, signal);
        // Servers other than vLLM may have no /health; then the list of models is the sign of life.
        if (health.status !== 200 && health.status !== 404) {
          return { is: 'down', reason: `${address}/health answers ${health.status}` };
        }
        return await checkModels(address, models, headers, signal);
      } catch (error) {
        signal.throwIfAborted();
        return { is: 'down', reason: `${address} does not answer: ${describeError(error)}` };
      }
    },
  };
}

function connectEndpoint(
  address: string,
  headers: Record<string, string>,
  connectTimeout: number,
): Connection {
  const url = new URL(address);
  const pool = new ClientPool(url.origin, {
    connectTimeout,
    // uvicorn closes an idle connection after 5 s: let go of it first, else a request meets the closing socket.
    keepAliveTimeout: 4_000,
    keepAliveMaxTimeout: 4_000,
  });
  return {
    dispatcher: pool,
    origin: url.origin,
    pathPrefix: url.pathname.replace(/\/+$/, ''),
    headers,
    close: async () => pool.destroy(),
  };
}

async function checkModels(
  address: string,
  models: readonly string[],
  headers: Record<string, string>,
  signal: AbortSignal,
): Promise<Look> {
  const answer = await ask(`${address}/v1/models`, headers, signal);
  if (answer.status === 401 || answer.status === 403) {
    return {
      is: 'unfit',
      reason: `${address} refuses us (${answer.status}): only engines of ENGINE_URLS are sent ENGINE_API_KEY`,
    };
  }
  if (answer.status >= 500) {
    return { is: 'down', reason: `${address}/v1/models answers ${answer.status}` };
  }
  const parsed = v.safeParse(v.pipe(v.string(), v.parseJson(), modelList), answer.text);
  if (answer.status !== 200 || !parsed.success) {
    const what =
      answer.status === 200 ? 'something that is no list of models' : String(answer.status);
    return { is: 'unfit', reason: `${address}/v1/models answers ${what}` };
  }
  const served = parsed.output.data.map((model) => model.id);
  const fit = models.filter((model) => served.includes(model));
  if (fit.length > 0 || models.length === 0) return { is: 'healthy', models: fit };
  return {
    is: 'unfit',
    reason: `${address} serves ${quoteModels(served)}, but the input asks for ${quoteModels(models)}`,
  };
}

/** One small request on a connection of its own: a look must not wait behind lines. */
async function ask(
  url: string,
  headers: Record<string, string>,
  signal: AbortSignal,
): Promise<{ status: number; text: string }> {
  const limit = AbortSignal.any([signal, AbortSignal.timeout(LOOK_TIMEOUT_MS)]);
  const { statusCode, body } = await request(url, { headers, signal: limit, reset: true });
  let text = '';
  for await (const chunk of body.setEncoding('utf8')) {
    text += String(chunk);
    if (text.length > MOST_LOOK_BYTES) throw new Error(`${url} answers more than 1 MiB`);
  }
  return { status: statusCode, text };
}
