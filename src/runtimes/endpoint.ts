import { ClientPool } from './client-pool.ts';
import type { Connection, Runtime } from './contract.ts';
import { lookThrough } from './look.ts';

const REFUSAL = 'only engines of ENGINE_URLS are sent ENGINE_API_KEY';

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
    look: async (address, models, signal) =>
      lookThrough(
        { name: address, url: address, headers: headersFor(address), refusal: REFUSAL },
        { models },
        signal,
      ),
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
