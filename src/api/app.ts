import { Hono } from 'hono';
import { catalogRoutes } from './console/catalog.ts';
import type { CatalogDeps } from './console/catalog.ts';
import { configRoutes } from './console/config.ts';
import type { ConfigDeps } from './console/config.ts';
import { jobRoutes } from './console/jobs.ts';
import type { JobsDeps } from './console/jobs.ts';
import { machineRoutes } from './console/machines.ts';
import type { MachinesDeps } from './console/machines.ts';
import { modelRoutes } from './console/models.ts';
import type { ModelsDeps } from './console/models.ts';
import { provisionRoutes } from './console/provisions.ts';
import type { ProvisionsDeps } from './console/provisions.ts';
import { templateRoutes } from './console/templates.ts';
import type { TemplatesDeps } from './console/templates.ts';
import { answerError } from './errors.ts';
import { liveRoutes } from './live.ts';
import type { LiveDeps } from './live.ts';
import { batchRoutes } from './openai/batches.ts';
import { fileRoutes } from './openai/files.ts';
import type { FilesDeps } from './openai/files.ts';
import { uploadRoutes } from './openai/uploads.ts';
import type { UploadsDeps } from './openai/uploads.ts';
import { docsPageRoutes } from './docs-page.ts';
import { openApiRoute } from './openapi.ts';
import { webhookRoutes } from './console/webhooks.ts';
import type { WebhooksDeps } from './console/webhooks.ts';
import { mountBoard, opsRoutes } from './ops.ts';
import type { OpsDeps } from './ops.ts';
import { withIdempotency } from './idempotency.ts';
import type { IdempotencyDeps } from './idempotency.ts';
import { manifestRoutes } from './manifest.ts';
import { partialRoutes } from './partial.ts';
import type { PartialDeps } from './partial.ts';
import { eachRequest } from './requests.ts';
import type { RequestsDeps } from './requests.ts';
import { addRoutes, unknownUrl } from './routes.ts';
import type { ApiEnv, Route } from './routes.ts';
import { validateRoutes } from './validate.ts';
import type { ValidateDeps } from './validate.ts';

/** All that the HTTP interface needs of the rest; whoever composes it wires this. */
export interface ApiDeps
  extends
    ModelsDeps,
    TemplatesDeps,
    CatalogDeps,
    ProvisionsDeps,
    MachinesDeps,
    ConfigDeps,
    JobsDeps,
    FilesDeps,
    UploadsDeps,
    WebhooksDeps,
    OpsDeps,
    RequestsDeps,
    IdempotencyDeps {
  store: ModelsDeps['store'] &
    TemplatesDeps['store'] &
    ProvisionsDeps['store'] &
    JobsDeps['store'] &
    FilesDeps['store'] &
    UploadsDeps['store'] &
    WebhooksDeps['store'] &
    IdempotencyDeps['store'] &
    LiveDeps['store'] &
    ValidateDeps['store'];
  storage: FilesDeps['storage'] & UploadsDeps['storage'];
  limits: ConfigDeps['limits'] & FilesDeps['limits'] & UploadsDeps['limits'];
  live: Omit<LiveDeps, 'store' | 'log'>;
  openPartial: PartialDeps['openPartial'];
  inspectInput: ValidateDeps['inspectInput'];
}

/** The whole HTTP interface, to be served by `@hono/node-server`: it reads requests from Node's own stream. */
export function createApp(deps: ApiDeps): Hono<ApiEnv> {
  // Not strict: `/v1/files/` is `/v1/files`.
  const app = new Hono<ApiEnv>({ strict: false });
  app.use(eachRequest(deps));
  app.onError(answerError);
  app.notFound((c) => answerError(unknownUrl(c), c));
  // Of all routes together: what conversions take, they take of one process.
  const slots = { taken: 0 };
  const routes: Route[] = [
    openApiRoute(() => routes),
    ...docsPageRoutes(),
    ...fileRoutes(deps, slots),
    ...uploadRoutes(deps),
    // Before those of a job or batch, which would take `validate` for its id.
    ...validateRoutes(deps),
    ...batchRoutes(deps),
    ...jobRoutes(deps),
    ...modelRoutes(deps),
    ...templateRoutes(deps),
    ...catalogRoutes(deps),
    ...provisionRoutes(deps),
    ...machineRoutes(deps),
    ...configRoutes(deps),
    ...liveRoutes({ ...deps.live, store: deps.store, log: deps.log }),
    ...partialRoutes(deps, slots),
    ...manifestRoutes(deps),
    ...webhookRoutes(deps),
    ...opsRoutes(deps),
  ];
  addRoutes(app, withIdempotency(deps, routes));
  mountBoard(app, deps.queues);
  return app;
}
