import { ClientPool } from '../client-pool.ts';
import type { HostedSite } from '../contract.ts';
import type { Way } from '../late-dispatcher.ts';
import { ProxyDispatcher } from './proxy-dispatcher.ts';

/** As engines' own connections are: uvicorn closes an idle one after 5 s. */
const KEEP_ALIVE_MS = 4_000;

/** This process's own way to an engine that its provider runs. */
export function openHostedWay(
  { url, tls, authorization }: HostedSite,
  connectTimeout: number,
): Way {
  const { origin, pathname } = new URL(url);
  const pool = new ClientPool(origin, {
    connectTimeout,
    keepAliveTimeout: KEEP_ALIVE_MS,
    keepAliveMaxTimeout: KEEP_ALIVE_MS,
    ...(tls === null ? {} : { connect: { ...tls } }),
  });
  const dispatcher = tls === null ? pool : new ProxyDispatcher(pool, authorization);
  return {
    dispatcher,
    origin,
    pathPrefix: pathname.replace(/\/+$/, ''),
    headers: {},
    close: async () => dispatcher.destroy(),
  };
}
