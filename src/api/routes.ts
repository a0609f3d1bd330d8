import type { HttpBindings } from '@hono/node-server';
import type { Context, Hono } from 'hono';
import type { Logger } from 'pino';
import { SluiceError } from '../domain/errors.ts';

/** What every handler finds in its context. `route` is the matched pattern: a label with few values. */
export interface ApiEnv {
  Bindings: HttpBindings;
  Variables: {
    log: Logger;
    requestId: string;
    route: string;
    /** Of a POST that may come again: what it creates gets its id from this. */
    creationKey?: string;
  };
}
export type ApiContext = Context<ApiEnv>;
export type Handler = (c: ApiContext) => Response | Promise<Response>;

/** A path with its handlers; HEAD is answered wherever GET is. */
export interface Route {
  path: string;
  get?: Handler;
  post?: Handler;
  put?: Handler;
  patch?: Handler;
  delete?: Handler;
}

export const METHODS = ['get', 'post', 'put', 'patch', 'delete'] as const;

/** Adds routes so that a method which a path lacks is answered 405 with `Allow`, not 404. */
export function addRoutes(app: Hono<ApiEnv>, routes: readonly Route[]): void {
  for (const route of routes) {
    for (const method of METHODS) {
      const handler = route[method];
      if (handler !== undefined) app.on(method.toUpperCase(), route.path, within(route, handler));
    }
    app.all(
      route.path,
      within(route, (c) => refuseMethod(c, route)),
    );
  }
}

function within(route: Route, handler: Handler): Handler {
  function run(c: ApiContext): Response | Promise<Response> {
    c.set('route', route.path);
    return handler(c);
  }
  return run;
}

function refuseMethod(c: ApiContext, route: Route): never {
  const allowed = METHODS.filter((method) => route[method] !== undefined).map((method) =>
    method === 'get' ? 'GET, HEAD' : method.toUpperCase(),
  );
  c.header('Allow', allowed.join(', '));
  throw new SluiceError(
    'InvalidInput',
    'method_not_allowed',
    `${c.req.method} is not allowed on ${route.path}; allowed are ${allowed.join(', ')}.`,
    { status: 405 },
  );
}

/** What is said of a path that no route has. */
export function unknownUrl(c: ApiContext): SluiceError {
  return new SluiceError(
    'NotFound',
    'unknown_url',
    `Unknown URL: ${c.req.method} ${c.req.path}. /openapi.json lists all that this server answers, ` +
      '/docs shows it as a page.',
  );
}

/** The `:id` of the matched path. */
export function pathId(c: ApiContext): string {
  return c.req.param('id') ?? '';
}
