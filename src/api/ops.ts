import { createBullBoard } from '@bull-board/api';
import { BullMQAdapter } from '@bull-board/api/bullMQAdapter';
import { HonoAdapter } from '@bull-board/hono';
import { serveStatic } from '@hono/node-server/serve-static';
import type { Queue } from 'bullmq';
import type { Hono } from 'hono';
import type { ApiEnv, Route } from './routes.ts';

export interface OpsDeps {
  /** What this process needs to be of use, by name: `ok`, or what is wrong with it. */
  ready(): Promise<Record<string, string>>;
  /** The metrics in Prometheus' text format. */
  metrics(): Promise<{ contentType: string; body: string }>;
  queues: readonly Queue[];
}

const BOARD_PATH = '/admin/queues';

/** What load balancers, Prometheus and Kubernetes ask. `/health` says only that this process answers. */
export function opsRoutes(deps: OpsDeps): Route[] {
  return [
    { path: '/health', get: (c) => c.json({ status: 'ok' }) },
    {
      path: '/ready',
      async get(c) {
        const checks = await deps.ready();
        const isReady = Object.values(checks).every((check) => check === 'ok');
        return c.json({ status: isReady ? 'ok' : 'unavailable', checks }, isReady ? 200 : 503);
      },
    },
    {
      path: '/metrics',
      async get(c) {
        const { contentType, body } = await deps.metrics();
        return c.body(body, 200, { 'Content-Type': contentType });
      },
    },
  ];
}

/** Mounts Bull Board, BullMQ's own view of the five queues, with all that it loads. */
export function mountBoard(app: Hono<ApiEnv>, queues: readonly Queue[]): void {
  app.use(`${BOARD_PATH}/*`, async (c, next) => {
    c.set('route', BOARD_PATH);
    await next();
  });
  const serverAdapter = new HonoAdapter(serveStatic);
  serverAdapter.setBasePath(BOARD_PATH);
  createBullBoard({
    queues: queues.map((queue) => new BullMQAdapter(queue)),
    serverAdapter,
    options: { uiConfig: { boardTitle: 'Sluice' } },
  });
  app.route(BOARD_PATH, serverAdapter.registerPlugin());
}
