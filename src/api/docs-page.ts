import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { notFound } from '../domain/errors.ts';
import { isKnown } from './etag.ts';
import type { ApiContext, Route } from './routes.ts';
import { streamBody } from './stream-body.ts';

const require = createRequire(import.meta.url);
const PACKAGE = dirname(require.resolve('swagger-ui-dist/package.json'));

/** What the page loads; nothing of it comes from another host. */
const ASSETS: Record<string, string> = {
  'swagger-ui-bundle.js': 'text/javascript; charset=utf-8',
  'swagger-ui.css': 'text/css; charset=utf-8',
  'favicon-32x32.png': 'image/png',
};

/**
 * The page may load from here and ask here, and nowhere else. Swagger UI sets styles on elements, and its style sheet
 * holds its icons as `data:`.
 */
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self' data:",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ');

const PAGE_HEADERS = {
  'Content-Security-Policy': POLICY,
  'X-Content-Type-Options': 'nosniff',
  'Referrer-Policy': 'no-referrer',
  'Cache-Control': 'no-cache',
};

const PAGE = `<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8" />
    <title>Sluice API</title>
    <link rel="stylesheet" href="/docs/swagger-ui.css" />
    <link rel="icon" type="image/png" href="/docs/favicon-32x32.png" />
  </head>
  <body>
    <div id="swagger-ui"></div>
    <noscript>This page needs JavaScript; <a href="/openapi.json">the document</a> does not.</noscript>
    <script src="/docs/swagger-ui-bundle.js"></script>
    <script src="/docs/start.js"></script>
  </body>
</html>
`;

/** A file of its own, because the policy allows no script in the page. */
const START = `window.SwaggerUIBundle({
  url: '/openapi.json',
  dom_id: '#swagger-ui',
  deepLinking: true,
  validatorUrl: null,
  defaultModelsExpandDepth: 0,
});
`;

/** A page for people that shows `/openapi.json` and lets them try it, with all that it loads. */
export function docsPageRoutes(): Route[] {
  return [
    { path: '/docs', get: (c) => text(c, PAGE, 'text/html; charset=utf-8') },
    { path: '/docs/:asset', get: asset },
  ];
}

function text(c: ApiContext, body: string, type: string): Response {
  return c.body(body, 200, { ...PAGE_HEADERS, 'Content-Type': type });
}

async function asset(c: ApiContext): Promise<Response> {
  const name = c.req.param('asset') ?? '';
  if (name === 'start.js') return text(c, START, 'text/javascript; charset=utf-8');
  const type = Object.hasOwn(ASSETS, name) ? ASSETS[name] : undefined;
  if (type === undefined) {
    throw notFound('unknown_url', `There is no '${name.slice(0, 100)}' here; the page is /docs.`);
  }
  const path = join(PACKAGE, name);
  const { size, mtimeMs } = await stat(path);
  const etag = `"${size.toString(36)}-${Math.floor(mtimeMs).toString(36)}"`;
  const headers = { ...PAGE_HEADERS, ETag: etag };
  if (isKnown(c, etag)) return c.body(null, 304, headers);
  const whole = { ...headers, 'Content-Type': type, 'Content-Length': String(size) };
  // Hono answers HEAD through GET's handler and drops the body: a stream opened for it would stay open.
  if (c.req.method === 'HEAD') return c.body(null, 200, whole);
  const body = streamBody(
    c,
    createReadStream(path),
    (err) => c.var.log.error({ err, path }, 'reading a part of the page failed'),
    size,
  );
  return c.body(body, 200, whole);
}
