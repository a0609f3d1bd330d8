import { request } from 'undici';
import type { Dispatcher } from 'undici';
import * as v from 'valibot';
import { describeError } from '../domain/errors.ts';
import { quoteModels } from '../domain/provision.ts';
import type { Look } from './contract.ts';

/** A busy vLLM answers `/health` late, since its API server shares the CPU with tokenization. */
const LOOK_TIMEOUT_MS = 5_000;
const MOST_LOOK_BYTES = 1024 * 1024;
/** Servers other than vLLM may have none; then the list of models is the sign of life. */
const USUAL_HEALTH_PATH = '/health';

const modelList = v.object({ data: v.array(v.object({ id: v.string() })) });

/** Where a look knocks. */
export interface Door {
  /** What the engine is called where people read it. */
  name: string;
  /** What stands before `/v1` and `/health`. */
  url: string;
  headers: Readonly<Record<string, string>>;
  /** Absent: the way that any address is reached by. */
  dispatcher?: Dispatcher;
  /** Why it may refuse us. */
  refusal: string;
  /** Why there is no way to it, where that is known better than by the request that failed. */
  problem?: () => Error | null;
}

interface LookWish {
  /** One that it serves is enough. */
  models: readonly string[];
  /** Where it says that it is well; absent: where servers do that usually, and some do not. */
  healthPath?: string | undefined;
}

/** Asks an engine whether it is healthy and what it serves. Rejects with the signal's reason only. */
export async function lookThrough(door: Door, wish: LookWish, signal: AbortSignal): Promise<Look> {
  const { name } = door;
  const { healthPath = USUAL_HEALTH_PATH } = wish;
  try {
    const health = await ask(door, healthPath, signal);
    const isAbsent = health.status === 404 && healthPath === USUAL_HEALTH_PATH;
    if (health.status !== 200 && !isAbsent) {
      return { is: 'down', reason: `${name}${healthPath} answers ${health.status}` };
    }
    return await checkModels(door, wish.models, signal);
  } catch (error) {
    signal.throwIfAborted();
    const why = door.problem?.() ?? error;
    return { is: 'down', reason: `${name} does not answer: ${describeError(why)}` };
  }
}

async function checkModels(
  door: Door,
  models: readonly string[],
  signal: AbortSignal,
): Promise<Look> {
  const { name } = door;
  const answer = await ask(door, '/v1/models', signal);
  if (answer.status === 401 || answer.status === 403) {
    return { is: 'unfit', reason: `${name} refuses us (${answer.status}): ${door.refusal}` };
  }
  if (answer.status >= 500) {
    return { is: 'down', reason: `${name}/v1/models answers ${answer.status}` };
  }
  const parsed = v.safeParse(v.pipe(v.string(), v.parseJson(), modelList), answer.text);
  if (answer.status !== 200 || !parsed.success) {
    const what =
      answer.status === 200 ? 'something that is no list of models' : String(answer.status);
    return { is: 'unfit', reason: `${name}/v1/models answers ${what}` };
  }
  const served = parsed.output.data.map((model) => model.id);
  const fit = models.filter((model) => served.includes(model));
  if (fit.length > 0 || models.length === 0) return { is: 'healthy', models: fit };
  return {
    is: 'unfit',
    reason: `${name} serves ${quoteModels(served)}, but the input asks for ${quoteModels(models)}`,
  };
}

/** One small request on a connection of its own: a look must not wait behind lines. */
async function ask(
  { url, headers, dispatcher }: Door,
  path: string,
  signal: AbortSignal,
): Promise<{ status: number; text: string }> {
  const limit = AbortSignal.any([signal, AbortSignal.timeout(LOOK_TIMEOUT_MS)]);
  const { statusCode, body } = await request(`${url}${path}`, {
    headers,
    signal: limit,
    reset: true,
    ...(dispatcher !== undefined && { dispatcher }),
  });
  let text = '';
  for await (const chunk of body.setEncoding('utf8')) {
    text += String(chunk);
    if (text.length > MOST_LOOK_BYTES) throw new Error(`${url}${path} answers more than 1 MiB`);
  }
  return { status: statusCode, text };
}
