import type { Reply } from './exchange.ts';
import { JSON_TYPE } from './exchange.ts';
import { asObject, InvalidSetting } from './profile.ts';
import { applyConfig, applyFaults, configOf, countsOf } from './state.ts';
import type { SimulatorState } from './state.ts';

/*
 * The simulator's own endpoints; vLLM has none under /admin.
 *   GET    /admin/counts              totals
 *   GET    /admin/requests[?bodies=1] the request log
 *   GET    /admin/config              profile and log settings;  POST changes some of them
 *   GET    /admin/faults              active faults with their hits;  POST replaces, DELETE clears them
 *   (but nothing undoes drain_silently, and only a connection that was busy then still gets here)
 */

function json(value: unknown, status = 200): Reply {
  return { status, type: JSON_TYPE, payload: JSON.stringify(value) };
}

function parse(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString());
  } catch (error) {
    throw new InvalidSetting(`the body is no JSON: ${String(error)}`);
  }
}

const ROUTES: Record<string, (state: SimulatorState, body: Buffer, query: string) => unknown> = {
  'GET /admin/counts': (state) => countsOf(state),
  'GET /admin/requests': (state, _, query) => {
    const bodies = new URLSearchParams(query).get('bodies') === '1';
    return { requests: state.log.entries(bodies) };
  },
  'GET /admin/config': (state) => configOf(state),
  'POST /admin/config': (state, body) => {
    applyConfig(state, asObject(parse(body), 'the body'));
    return configOf(state);
  },
  'GET /admin/faults': (state) => ({ faults: state.faults.report() }),
  'POST /admin/faults': (state, body) => {
    applyFaults(state, parse(body));
    return { faults: state.faults.report() };
  },
  'DELETE /admin/faults': (state) => {
    state.faults.set([]);
    return { faults: [] };
  },
};

/** Answers a request under /admin: 404 for an unknown one, 400 with the reason for bad input. */
export function adminReply(
  state: SimulatorState,
  method: string,
  path: string,
  query: string,
  body: Buffer,
): Reply {
  const route = ROUTES[`${method} ${path}`];
  if (route === undefined) {
    return json({ error: `no ${method} ${path}; there is ${Object.keys(ROUTES).join(', ')}` }, 404);
  }
  try {
    return json(route(state, body, query));
  } catch (error) {
    if (error instanceof InvalidSetting) return json({ error: error.message }, 400);
    throw error;
  }
}
