import type { EngineConnection } from './engine.ts';
import type { WindowSample } from './window-state.ts';

/** What an engine says of itself; counters are what came since it was read before. */
export type EngineMetrics = NonNullable<WindowSample['metrics']>;

/** Reads the metrics of one engine. */
export interface MetricsReader {
  /** Null where the engine has none, or does not show them now. Never throws. */
  read(): Promise<EngineMetrics | null>;
}

/** A reading is worth nothing later than the next is due. */
const TIMEOUT_MS = 1_000;
/** vLLM writes some 60 kB, an engine with many models a multiple of it. */
const MOST_BYTES = 4 * 1024 * 1024;
/** An engine that has no metrics is asked again so many readings later: what stands before it may have been slow. */
const ASK_AGAIN_AFTER = 60;

/** Of vllm/v1/metrics/loggers.py. The KV use had another name before vLLM 0.11. */
const RUNNING = 'vllm:num_requests_running';
const WAITING = 'vllm:num_requests_waiting';
const KV_USE = 'vllm:kv_cache_usage_perc';
const OLD_KV_USE = 'vllm:gpu_cache_usage_perc';
const PREEMPTIONS = 'vllm:num_preemptions_total';
const GENERATED = 'vllm:generation_tokens_total';
const PREFIX = 'vllm:';

/** Reads vLLM's metrics over the engine's own connection. */
export function createMetricsReader(connection: EngineConnection): MetricsReader {
  let before: AllSeries | null = null;
  let skip = 0;
  // Asked once: it is the engine's for as long as it lives.
  let path: string | null = null;

  return {
    async read() {
      if (skip > 0) {
        skip -= 1;
        return null;
      }
      path ??= await pathOf(connection);
      if (path === null) return null;
      const { isAbsent, text } = await fetchMetrics(connection, path);
      const now = text === null ? null : parseMetrics(text);
      const metrics = now === null ? null : metricsOf(now, before);
      if (metrics === null && (isAbsent || now !== null)) skip = ASK_AGAIN_AFTER;
      before = metrics === null ? null : now;
      return metrics;
    },
  };
}

async function pathOf({ metricsPath }: EngineConnection): Promise<string | null> {
  if (metricsPath === undefined) return '/metrics';
  try {
    return await metricsPath();
  } catch {
    return null; // whatever it is, nobody knows the path now
  }
}

type AllSeries = ReadonlyMap<string, Series>;

/** Null for a page of another engine. */
function metricsOf(now: AllSeries, before: AllSeries | null): EngineMetrics | null {
  const running = now.get(RUNNING);
  const waiting = now.get(WAITING);
  if (running === undefined || waiting === undefined) return null;
  return {
    running: running.sum,
    waiting: waiting.sum,
    kvUse: (now.get(KV_USE) ?? now.get(OLD_KV_USE))?.most ?? 0,
    preemptions: since(now, before, PREEMPTIONS),
    generationTokens: since(now, before, GENERATED),
  };
}

/** A counter that fell began anew with its engine. */
function since(now: AllSeries, before: AllSeries | null, name: string): number {
  const total = now.get(name)?.sum ?? 0;
  const last = before?.get(name)?.sum;
  if (last === undefined) return 0;
  return total < last ? total : total - last;
}

interface Page {
  text: string | null;
  /** The server answers, but has no such page. */
  isAbsent: boolean;
}

async function fetchMetrics(
  { dispatcher, origin, pathPrefix, headers }: EngineConnection,
  metricsPath: string,
): Promise<Page> {
  try {
    const { statusCode, body } = await dispatcher.request({
      origin,
      path: `${pathPrefix}${metricsPath}`,
      method: 'GET',
      headers: Object.entries(headers).flat(),
      headersTimeout: TIMEOUT_MS,
      bodyTimeout: TIMEOUT_MS,
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    if (statusCode !== 200) {
      await body.dump();
      return { text: null, isAbsent: statusCode >= 400 && statusCode < 500 };
    }
    const chunks: Buffer[] = [];
    let length = 0;
    for await (const chunk of body as AsyncIterable<Buffer>) {
      length += chunk.length;
      if (length > MOST_BYTES) return { text: null, isAbsent: true };
      chunks.push(chunk);
    }
    return { text: Buffer.concat(chunks).toString(), isAbsent: false };
  } catch {
    return { text: null, isAbsent: false }; // any failure to answer means the same: nothing is known now
  }
}

/** All series of one name: an engine has one for each of its data-parallel ranks and models. */
interface Series {
  sum: number;
  most: number;
}

/**
 * vLLM's series by their whole names: some names are the beginnings of others. Lines that are no Prometheus text, and
 * values that are no number, are left out.
 */
function parseMetrics(text: string): AllSeries {
  const all = new Map<string, Series>();
  for (const line of text.split('\n')) {
    if (!line.startsWith(PREFIX)) continue;
    const end = line.search(/[{ ]/);
    const labels = line.lastIndexOf('}');
    const value = Number(
      line
        .slice(Math.max(end, labels + 1))
        .trim()
        .split(' ', 1)[0],
    );
    if (end < 0 || !Number.isFinite(value)) continue;
    const name = line.slice(0, end);
    const known = all.get(name);
    all.set(name, {
      sum: (known?.sum ?? 0) + value,
      most: Math.max(known?.most ?? value, value),
    });
  }
  return all;
}
