import { createServer } from 'node:https';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { parse as parseYaml } from 'yaml';
import type { Auth, User } from './auth.ts';
import type { Certificates } from './certificates.ts';
import { coreVersions, group, groupList, groupPaths, resourceList, VERSION } from './discovery.ts';
import type { Kind } from './kinds.ts';
import { apiVersionOf, kindOfPath } from './kinds.ts';
import { isRecord } from './objects.ts';
import type { KubeObject } from './objects.ts';
import { openApiV2, openApiV2Protobuf, openApiV3 } from './openapi.ts';
import { decodeProtobuf } from './protobuf.ts';
import type { Ask, Rest } from './rest.ts';
import { badRequest, noSuchPath, StatusError, unauthorized } from './status.ts';
import type { Status } from './status.ts';
import type { Store } from './store.ts';
import { tableOf } from './tables.ts';
import { watch } from './watch.ts';

/** One request that came. */
export interface Asked {
  at: number;
  user: string;
  verb: string;
  /** `jobs`, `pods/log`; empty for discovery. */
  resource: string;
  namespace: string | undefined;
  name: string | undefined;
  method: string;
  path: string;
  userAgent: string;
  status: number;
}

/** Subresources that more than the store is needed for. */
export type SubHandler = (ask: Ask, exchange: Exchange) => Promise<void>;

export interface Exchange {
  request: IncomingMessage;
  response: ServerResponse;
  user: User;
  /** What follows the subresource in the path, with its slash. */
  rest: string;
  method: string;
}

export interface ServerOptions {
  store: Store;
  rest: Rest;
  auth: Auth;
  certificates: Certificates;
  /** 0 takes a free one. */
  port: number;
  /** `pods/log`, `pods/eviction` … */
  subresources: ReadonlyMap<string, SubHandler>;
  bookmarkMs(): number;
  /** Answers instead, as a test wants it: undefined lets the request pass. */
  fault(asked: Asked): Status | 'reset' | undefined;
}

export interface ApiServer {
  port: number;
  asked: Asked[];
  /** Refuses connections and cuts those that are open, until it is told otherwise. */
  setAway(away: boolean): Promise<void>;
  close(): Promise<void>;
}

interface Route {
  kind: Kind;
  namespace: string | undefined;
  name: string | undefined;
  subresource: string | undefined;
  rest: string;
}

/** `/apis/batch/v1/namespaces/default/jobs/x/status`, taken apart. */
function routeOf(path: string): Route | undefined {
  const [root, ...parts] = path.split('/').slice(1).map(decodeURIComponent);
  if (root !== 'api' && root !== 'apis') return undefined;
  const [group = '', version = '', ...rest] = root === 'api' ? ['', ...parts] : parts;
  if (rest[0] === 'watch') rest.shift();
  const isOwn = rest.length <= 2 || ['status', 'finalize'].includes(rest[2] ?? '');
  const inNamespace = rest[0] === 'namespaces' && !isOwn;
  const [namespace] = inNamespace ? rest.splice(0, 2).slice(1) : [];
  const [plural = '', name, subresource, ...more] = rest;
  const kind = kindOfPath(group, version, plural);
  if (kind === undefined || (namespace !== undefined && !kind.namespaced)) return undefined;
  if (subresource !== undefined && !kind.subresources.includes(subresource)) return undefined;
  const tail = more.map((part) => `/${part}`).join('');
  return { kind, namespace, name: name === '' ? undefined : name, subresource, rest: tail };
}

function verbOf(method: string, { name }: Route, isWatch: boolean): string {
  if (method === 'GET' || method === 'HEAD') {
    if (isWatch) return 'watch';
    return name === undefined ? 'list' : 'get';
  }
  if (method === 'POST') return 'create';
  if (method === 'PUT') return 'update';
  if (method === 'PATCH') return 'patch';
  return name === undefined ? 'deletecollection' : 'delete';
}

function entryOf(request: IncomingMessage, route: Route | undefined, verb: string): Asked {
  const { kind, subresource, namespace, name } = route ?? {};
  return {
    at: Date.now(),
    user: '',
    verb,
    resource: [kind?.plural ?? '', ...(subresource === undefined ? [] : [subresource])].join('/'),
    namespace,
    name,
    method: request.method ?? 'GET',
    path: request.url ?? '/',
    userAgent: request.headers['user-agent'] ?? '',
    status: 0,
  };
}

async function readBody(request: IncomingMessage): Promise<unknown> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  const bytes = Buffer.concat(chunks);
  if (bytes.length === 0) return undefined;
  const type = typeOf(request);
  const decoded = type.includes('protobuf') ? decodeProtobuf(bytes) : undefined;
  if (decoded !== undefined) return decoded;
  if (type.includes('protobuf') || type.includes('cbor')) {
    throw new StatusError(
      415,
      'UnsupportedMediaType',
      `the body of the request was in an unknown format - accepted media types include: application/json, application/yaml`,
    );
  }
  const text = bytes.toString();
  try {
    return type.includes('yaml') ? (parseYaml(text) as unknown) : (JSON.parse(text) as unknown);
  } catch (error) {
    throw badRequest(`error decoding the request: ${String(error)}`);
  }
}

const typeOf = (request: IncomingMessage): string =>
  (request.headers['content-type'] ?? 'application/json').split(';')[0]?.trim() ?? '';

export function sendJson(
  response: ServerResponse,
  code: number,
  body: unknown,
  headers: Record<string, string> = {},
): void {
  if (response.headersSent) {
    response.end();
    return;
  }
  const text = `${JSON.stringify(body)}\n`;
  response.writeHead(code, { 'content-type': 'application/json', ...headers });
  response.end(text);
}

export async function startServer(options: ServerOptions): Promise<ApiServer> {
  const { store, rest, auth, certificates, subresources, fault } = options;
  const asked: Asked[] = [];
  const sockets = new Set<Socket>();

  /** A table, if the client prefers one: `application/json;as=Table;v=v1;g=meta.k8s.io`. */
  function wantsTable({ headers }: IncomingMessage): boolean {
    return (headers.accept ?? '')
      .split(',')
      .some((one) => one.includes('as=Table') && one.includes('v=v1;'));
  }

  function wantsMetadata({ headers }: IncomingMessage): boolean {
    return (headers.accept ?? '').includes('as=PartialObjectMetadata');
  }

  function show(ask: Ask, request: IncomingMessage): (object: KubeObject) => unknown {
    if (wantsTable(request)) {
      const include = ask.query.get('includeObject');
      return (object) =>
        tableOf(ask.kind, [object], { resourceVersion: object.metadata.resourceVersion }, include);
    }
    if (wantsMetadata(request)) {
      return ({ metadata }) => ({
        kind: 'PartialObjectMetadata',
        apiVersion: 'meta.k8s.io/v1',
        metadata,
      });
    }
    return (object) => object;
  }

  function sendList(ask: Ask, { request, response }: Exchange): void {
    const { items, version, next, remaining } = rest.list(ask);
    const metadata = {
      resourceVersion: String(version),
      ...(next === undefined ? {} : { continue: next }),
      ...(remaining === undefined ||
      ask.query.has('labelSelector') ||
      ask.query.has('fieldSelector')
        ? {}
        : { remainingItemCount: remaining }),
    };
    const { kind } = ask;
    if (wantsTable(request)) {
      sendJson(response, 200, tableOf(kind, items, metadata, ask.query.get('includeObject')));
      return;
    }
    const isPartial = wantsMetadata(request);
    sendJson(response, 200, {
      kind: isPartial ? 'PartialObjectMetadataList' : `${kind.kind}List`,
      apiVersion: isPartial ? 'meta.k8s.io/v1' : apiVersionOf(kind),
      metadata,
      items: items.map((object) => {
        // Items of a list do not repeat what the list is of.
        const { kind: _kind, apiVersion: _version, ...fields } = object;
        return isPartial ? { metadata: object.metadata } : fields;
      }),
    });
  }

  async function act(verb: string, ask: Ask, exchange: Exchange): Promise<void> {
    const { request, response } = exchange;
    const special = subresources.get(`${ask.kind.plural}/${ask.subresource ?? ''}`);
    if (special !== undefined) {
      await special(ask, exchange);
      return;
    }
    if (verb === 'watch') watch(response, ask, show(ask, request), options);
    else if (verb === 'list') sendList(ask, exchange);
    else if (verb === 'get') sendJson(response, 200, show(ask, request)(rest.get(ask)));
    else if (verb === 'deletecollection') {
      const items = rest.removeAll(ask);
      const { kind } = ask;
      sendJson(response, 200, {
        kind: `${kind.kind}List`,
        apiVersion: apiVersionOf(kind),
        metadata: { resourceVersion: String(store.version()) },
        items,
      });
    } else {
      const does = {
        create: rest.create,
        update: rest.update,
        patch: rest.patch,
        delete: rest.remove,
      }[verb];
      if (does === undefined)
        throw new StatusError(
          405,
          'MethodNotAllowed',
          'the server does not allow this method on the requested resource',
          {},
        );
      const { code, body, warning } = does(ask);
      const shown = body.kind === 'Status' ? body : show(ask, request)(body as KubeObject);
      sendJson(
        response,
        code,
        shown,
        warning === undefined ? {} : { warning: `299 - "${warning}"` },
      );
    }
  }

  async function sendOpenApi(
    path: string,
    { headers }: IncomingMessage,
    response: ServerResponse,
  ): Promise<boolean> {
    if (path === '/openapi/v2') {
      const wants = headers.accept ?? '';
      if (!wants.includes('protobuf')) sendJson(response, 200, await openApiV2());
      else {
        response.writeHead(200, {
          // With a dot where the Accept header has an `@`, which no media type may have.
          'content-type': 'application/com.github.proto-openapi.spec.v2.v1.0+protobuf',
        });
        response.end(await openApiV2Protobuf());
      }
      return true;
    }
    if (path === '/openapi/v3') {
      const paths = groupPaths().map((one) => [
        one,
        { serverRelativeURL: `/openapi/v3/${one}?hash=${VERSION.gitCommit}` },
      ]);
      sendJson(response, 200, { paths: Object.fromEntries(paths) as unknown });
      return true;
    }
    if (!path.startsWith('/openapi/v3/')) return false;
    sendJson(response, 200, await openApiV3(path.slice('/openapi/v3/'.length)));
    return true;
  }

  function discover(path: string): unknown {
    if (path === '/version') return VERSION;
    if (path === '/') return { paths: groupPaths().map((one) => `/${one}`) };
    if (path === '/api') return coreVersions('127.0.0.1');
    if (path === '/apis') return groupList();
    if (path === '/api/v1') return resourceList('', 'v1');
    const [, apis, name = '', version, ...more] = path.split('/');
    if (apis !== 'apis' || more.length > 0) return undefined;
    return version === undefined ? group(name) : resourceList(name, version);
  }

  async function review(body: unknown, user: User, response: ServerResponse): Promise<void> {
    const spec = isRecord(body) && isRecord(body['spec']) ? body['spec'] : {};
    const about = (
      isRecord(spec['resourceAttributes']) ? spec['resourceAttributes'] : {}
    ) as Record<string, string | undefined>;
    const { verb = '', group: of = '', resource = '', subresource, namespace, name } = about;
    const allowed = auth.may(user, {
      verb,
      group: of,
      resource: (subresource ?? '') === '' ? resource : `${resource}/${subresource}`,
      namespace: namespace === '' ? undefined : namespace,
      name: name === '' ? undefined : name,
    });
    sendJson(response, 201, { ...(body as object), status: { allowed } });
  }

  function identify({ headers }: IncomingMessage): User {
    const token = /^Bearer (.+)$/i.exec(headers.authorization ?? '')?.[1];
    const user = token === undefined ? undefined : auth.userOf(token);
    if (user === undefined) throw unauthorized();
    const as = headers['impersonate-user'];
    if (typeof as !== 'string' || !user.groups.includes('system:masters')) return user;
    return auth.named(as);
  }

  async function serveObject(
    route: Route,
    entry: Asked,
    request: IncomingMessage,
    response: ServerResponse,
    query: URLSearchParams,
  ): Promise<void> {
    const user = identify(request);
    entry.user = user.name;
    const { kind, namespace, name, subresource } = route;
    const resource = subresource === undefined ? kind.plural : `${kind.plural}/${subresource}`;
    auth.check(user, kind, { verb: entry.verb, group: kind.group, resource, namespace, name });
    const method = request.method ?? 'GET';
    const hasBody = method !== 'GET' && method !== 'HEAD' && subresource !== 'proxy';
    const body = hasBody ? await readBody(request) : undefined;
    const ask: Ask = {
      kind,
      namespace,
      name,
      subresource,
      query,
      body,
      contentType: typeOf(request),
    };
    await act(entry.verb, ask, { request, response, user, rest: route.rest, method });
  }

  async function serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { pathname, searchParams: query } = new URL(request.url ?? '/', 'https://kubernetes');
    const path = pathname.length > 1 ? pathname.replace(/\/$/, '') : pathname;
    const method = request.method ?? 'GET';
    const route = discover(path) === undefined ? routeOf(path) : undefined;
    const isWatch = ['true', '1'].includes(query.get('watch') ?? '') || path.includes('/watch/');
    const verb = route === undefined ? method.toLowerCase() : verbOf(method, route, isWatch);
    const entry = entryOf(request, route, verb);
    asked.push(entry);
    response.once('close', () => (entry.status = response.statusCode));
    const struck = fault(entry);
    if (struck === 'reset') {
      request.socket.destroy();
      return;
    }
    if (struck !== undefined) {
      sendJson(response, struck.code, struck);
      return;
    }
    if (['/healthz', '/readyz', '/livez'].includes(path)) {
      response.end('ok');
      return;
    }
    if (route !== undefined) {
      await serveObject(route, entry, request, response, query);
      return;
    }
    const user = identify(request);
    entry.user = user.name;
    if (path === '/apis/authorization.k8s.io/v1/selfsubjectaccessreviews') {
      await review(await readBody(request), user, response);
      return;
    }
    if (await sendOpenApi(path, request, response)) return;
    const found = discover(path);
    if (found === undefined) throw noSuchPath();
    sendJson(response, 200, found);
  }

  function answer(request: IncomingMessage, response: ServerResponse): void {
    serve(request, response).catch((error: unknown) => {
      if (error instanceof StatusError) {
        sendJson(response, error.status.code, error.status);
        return;
      }
      const message = `Internal error occurred: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`;
      sendJson(response, 500, new StatusError(500, 'InternalError', message).status);
    });
  }

  let { port } = options;
  async function listen(): Promise<Server> {
    const server = createServer({ cert: certificates.cert, key: certificates.key }, answer);
    server.on('connection', (socket: Socket) => {
      sockets.add(socket);
      socket.once('close', () => sockets.delete(socket));
      socket.on('error', () => {}); // a client that went away is no news
    });
    server.on('tlsClientError', () => {}); // nor is one that does not like the certificate
    const { promise, resolve, reject } = Promise.withResolvers<undefined>();
    server.once('error', reject).listen(port, '127.0.0.1', () => resolve(undefined));
    await promise;
    port = (server.address() as AddressInfo).port; // a TCP server has no other kind of address
    return server;
  }

  async function shut(server: Server): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<undefined>();
    server.close(() => resolve(undefined));
    for (const socket of sockets) socket.destroy();
    await promise;
  }

  let server: Server | undefined = await listen();
  return {
    port,
    asked,
    async setAway(away) {
      if (away && server !== undefined) {
        const open = server;
        server = undefined;
        await shut(open);
      } else if (!away) server ??= await listen();
    },
    async close() {
      if (server !== undefined) await shut(server);
      server = undefined;
    },
  };
}
