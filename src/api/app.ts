import { Hono } from 'hono';
import { jobRoutes } from './console/jobs.ts';
import type { JobsDeps } from './console/jobs.ts';
import { answerError } from './errors.ts';
import { batchRoutes } from './openai/batches.ts';
import { fileRoutes } from './openai/files.ts';
import type { FilesDeps } from './openai/files.ts';
import { mountBoard, opsRoutes } from './ops.ts';
import type { OpsDeps } from './ops.ts';
import { eachRequest } from './requests.ts';
import type { RequestsDeps } from './requests.ts';
import { addRoutes, unknownUrl } from './routes.ts';
import type { ApiEnv } from './routes.ts';

/** All that the HTTP interface needs of the rest; whoever composes it wires this. */
export interface ApiDeps extends JobsDeps, FilesDeps, OpsDeps, RequestsDeps {
  store: JobsDeps['store'] & FilesDeps['store'];
  limits: FilesDeps['limits'];
}

/** The whole HTTP interface, to be served by `@hono/node-server`: it reads requests from Node's own stream. */
export function createApp(deps: ApiDeps): Hono<ApiEnv> {
  // Not strict: `/v1/files/` is `/v1/files`.
  const app = new Hono<ApiEnv>({ strict: false });
  app.use(eachRequest(deps));
  app.onError(answerError);
  app.notFound((c) => answerError(unknownUrl(c), c));
  addRoutes(app, [
    ...fileRoutes(deps),
    ...batchRoutes(deps),
    ...jobRoutes(deps),
    ...opsRoutes(deps),
  ]);
  mountBoard(app, deps.queues);
  return app;
}
