import type { Settings } from '../../../config/schema.ts';
import { invalidInput, transient } from '../../domain/errors.ts';
import type { Logger } from '../../observability/log.ts';
import type { Look } from '../../runtimes/contract.ts';
import { lookThrough } from '../../runtimes/look.ts';
import { clock } from '../clock.ts';
import type { EngineDoor } from './engine-door.ts';

const LOOK_EVERY_MS = 1_000;
const WATCH_EVERY_MS = 5_000;
const SAY_EVERY_MS = 5_000;
const REFUSAL = 'set ENGINE_API_KEY to the key that it was started with';

export interface EngineWait {
  door: EngineDoor;
  settings: Pick<Settings, 'engineApiKey' | 'llmReadyTimeout'>;
  log: Logger;
  /** Hears why it waits; empty once it need not. */
  onReason(reason: string): void;
}

/** One look at the engine. `models` are those that it is to serve, one of which is enough; none: any will do. */
export async function lookAtEngine(
  { door, settings }: Pick<EngineWait, 'door' | 'settings'>,
  models: readonly string[],
  signal: AbortSignal,
): Promise<Look> {
  const { engineApiKey: key } = settings;
  const headers: Record<string, string> =
    key === undefined ? {} : { authorization: `Bearer ${key}` };
  return lookThrough(
    { name: door.url, url: door.url, headers, refusal: REFUSAL },
    { models, healthPath: door.readyPath },
    signal,
  );
}

/**
 * Waits until the engine is ready, and says for what every few seconds. Rejects with `engine.unavailable` (Transient)
 * after LLM_READY_TIMEOUT, with `engine.unfit` (InvalidInput) where it refuses us, and with the signal's reason.
 */
export async function awaitEngine(wait: EngineWait, signal: AbortSignal): Promise<void> {
  const { door, settings, log, onReason } = wait;
  const begun = clock.now();
  let saidAt = begun;
  for (;;) {
    const look = await lookAtEngine(wait, [], signal);
    if (look.is === 'healthy') break;
    if (look.is === 'unfit') throw invalidInput('engine.unfit', `The engine: ${look.reason}`);
    const waitedMs = clock.now() - begun;
    if (waitedMs > settings.llmReadyTimeout) throw tooLate(door, waitedMs, look.reason);
    onReason(`Waiting for the engine: ${look.reason}`);
    if (clock.now() - saidAt >= SAY_EVERY_MS || saidAt === begun) {
      saidAt = clock.now() + 1;
      log.info(
        { endpoint: `${door.url}${door.readyPath}`, waitedMs, reason: look.reason },
        'waiting for the engine',
      );
    }
    await clock.sleep(LOOK_EVERY_MS, signal);
    signal.throwIfAborted();
  }
  onReason('');
  log.info({ endpoint: door.url, waitedMs: clock.now() - begun }, 'engine is ready');
}

function tooLate({ url, readyPath }: EngineDoor, ms: number, reason: string) {
  const message = `The engine was not ready for ${Math.round(ms / 1_000)} s (LLM_READY_TIMEOUT): ${reason}. See the log of its container (kubectl logs POD -c llm-engine), and whether LLM_READY_ENDPOINT, ${url}${readyPath}, is where it listens.`;
  return transient('engine.unavailable', message);
}

/** Looks at the engine until `signal`; resolves with the error once it was away for longer than LLM_READY_TIMEOUT. */
export async function watchEngine(wait: EngineWait, signal: AbortSignal): Promise<Error | null> {
  const { door, settings, log, onReason } = wait;
  let downSince: number | null = null;
  for (;;) {
    await clock.sleep(WATCH_EVERY_MS, signal);
    if (signal.aborted) return null;
    let look: Look;
    try {
      look = await lookAtEngine(wait, [], signal);
    } catch (error) {
      if (signal.aborted) return null;
      throw error;
    }
    if (look.is === 'healthy') {
      if (downSince !== null) onReason('');
      downSince = null;
      continue;
    }
    downSince ??= clock.now();
    const awayMs = clock.now() - downSince;
    onReason(`Waiting for the engine: ${look.reason}`);
    log.warn({ endpoint: door.url, awayMs, reason: look.reason }, 'engine is away');
    if (awayMs > settings.llmReadyTimeout) return tooLate(door, awayMs, look.reason);
  }
}
