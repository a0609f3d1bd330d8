import { request } from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { RunPodState } from './state.ts';

/** Cloudflare gives up on an answer that has not begun by then (RunPod's documentation of exposed ports). */
const LIMIT_MS = 100_000;

interface Proxied {
  podId: string;
  port: number;
  path: string;
}

/**
 * Which request is one of RunPod's public proxy: of host `{pod}-{port}.proxy.runpod.net`, or, for clients
 * that cannot choose their Host, below `/_proxy/{pod}-{port}`.
 */
export function proxied(req: IncomingMessage): Proxied | undefined {
  const host = /^([a-z0-9]+)-(\d+)\.proxy\.runpod\.net(?::\d+)?$/.exec(req.headers.host ?? '');
  if (host !== null) return { podId: host[1] ?? '', port: Number(host[2]), path: req.url ?? '/' };
  const below = /^\/_proxy\/([a-z0-9]+)-(\d+)(\/.*)?$/.exec(req.url ?? '');
  if (below === null) return undefined;
  return { podId: below[1] ?? '', port: Number(below[2]), path: below[3] ?? '/' };
}

function fail(res: ServerResponse, status: number, title: string): void {
  if (res.headersSent) {
    res.destroy();
    return;
  }
  res.writeHead(status, { 'content-type': 'text/html' });
  res.end(`<html><head><title>${title}</title></head><body>${title}</body></html>`);
}

/**
 * Passes a request on to what the pod has bound to all its addresses, without asking for any key. A
 * port that is not exposed is 404, one that nobody listens on 502, an answer that does not begin 524.
 */
export function proxyRequest(
  state: RunPodState,
  to: Proxied,
  req: IncomingMessage,
  res: ServerResponse,
): void {
  const pod = state.fleet.find(to.podId);
  const address = pod?.machine?.address;
  if (pod === undefined || !pod.extra.ports.includes(`${to.port}/http`)) {
    fail(res, 404, 'Not Found');
    return;
  }
  if (address === undefined || pod.phase !== 'up') {
    fail(res, 502, 'Bad Gateway');
    return;
  }
  const { host: _, ...headers } = req.headers;
  const onward = request(
    { host: address, port: to.port, path: to.path, method: req.method, headers, agent: false },
    (answer) => {
      clearTimeout(timer);
      res.writeHead(answer.statusCode ?? 502, answer.headers);
      answer.pipe(res);
    },
  );
  const timer = setTimeout(() => {
    fail(res, 524, 'A timeout occurred');
    onward.destroy();
  }, LIMIT_MS);
  onward.on('error', () => {
    clearTimeout(timer);
    fail(res, 502, 'Bad Gateway');
  });
  res.on('close', () => {
    clearTimeout(timer);
    onward.destroy();
  });
  req.pipe(onward);
}
