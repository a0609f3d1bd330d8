import type { Readable } from 'node:stream';
import type { Settings } from '../../../config/schema.ts';
import { Dispatcher } from '../../dispatcher/dispatcher.ts';
import type { DispatcherDeps } from '../../dispatcher/dispatcher.ts';
import { describeError, SluiceError } from '../../domain/errors.ts';
import type { Usage } from '../../domain/job.ts';
import type { Ledger } from '../../domain/kubernetes/ledger.ts';
import { sequenceName } from '../../domain/kubernetes/run-record.ts';
import type { RunPlan, RunWriter } from '../../domain/kubernetes/run-record.ts';
import type { Logger } from '../../observability/log.ts';
import { createEndpointRuntime } from '../../runtimes/endpoint.ts';
import type { Storage } from '../../storage/contract.ts';
import { clock } from '../clock.ts';
import { missingInput } from './answer.ts';
import { createBuckets } from './buckets.ts';
import type { RunRecord } from './record.ts';

/** What the dispatcher of a run is made of. */
export interface RunDispatching {
  settings: Settings;
  log: Logger;
  record: RunRecord;
  plan: RunPlan;
  writer: RunWriter;
  /** Reads inputs. */
  storage: Storage;
  /** Base URL of the one engine. */
  engine: string;
  ledger(): Ledger;
  onAnswered(kind: 'output' | 'error', usage: Usage): void;
  onTrouble: DispatcherDeps['onTrouble'];
  onEngineDown(reason: string): void;
  /** Storage takes no answers; null: it does again. */
  onRefused(reason: string | null): void;
}

/** A dispatcher whose answers go into the record of a run. Nobody else sends to its engine, so that it asks nobody. */
export function createRunDispatcher(run: RunDispatching): Dispatcher {
  const { settings, log, engine } = run;
  const runtime = createEndpointRuntime({ ...settings, engineUrls: [engine] });
  // It may have answered before storage lost some of that.
  let sequence = run.ledger().commitsOf(run.writer.name);
  return new Dispatcher({
    clock,
    log,
    memoryBudget: settings.memoryBudget,
    maxResponseBytes: settings.maxResponseBytes,
    timeouts: {
      connect: settings.connectTimeout,
      firstByte: settings.requestTimeout,
      betweenBytes: settings.byteTimeout,
      answer: settings.answerTimeout,
    },
    maxLineBytes: settings.maxLineBytes,
    connect: (address) => runtime.connect(address),
    weightOf: () => 1,
    processes: () => 1,
    share: async () => ({ processes: 1, rank: 0, limit: null, others: [] }),
    isolation: { take: async () => true, giveBack: () => undefined },
    limits: {
      engineLimits: {
        requestsPerSecond: settings.engineRequestsPerSecond ?? null,
        tokensPerMinute: settings.engineTokensPerMinute ?? null,
      },
      keyLimits: {
        requestsPerSecond: settings.keyRequestsPerSecond ?? null,
        tokensPerMinute: settings.keyTokensPerMinute ?? null,
      },
      draw: createBuckets(() => clock.now()),
    },
    openInput: async (key, range) => openInput(run.storage, key, range),
    // Its number is what tells that none is missing: segments of a job are written one after the other.
    newSegmentId: () => sequenceName((sequence += 1)),
    ...createSink(run),
    crashApartMs: settings.crashApart,
    markAlone: async () => true,
    onRetry: () => undefined,
    onAnswered: run.onAnswered,
    onTrouble: run.onTrouble,
    onEngineDown(address, reason) {
      log.warn({ address, reason }, 'engine does not answer, sending stopped');
      run.onEngineDown(reason);
    },
  });
}

/** Stores segments, and their commits after them. */
function createSink(run: RunDispatching): Pick<DispatcherDeps, 'putSegment' | 'commit'> {
  const { record, plan, writer, onRefused, log } = run;
  return {
    async putSegment(_jobId, segmentId, chunks) {
      try {
        const stored = await record.putSegment(writer.name, Number(segmentId), chunks);
        onRefused(null);
        return stored;
      } catch (error) {
        onRefused(`Answers cannot be stored: ${describeError(error)}`);
        throw error;
      }
    },
    async commit(_jobId, { id, bytes, sha256 }, parts) {
      const ledger = run.ledger();
      const sequence = Number(id);
      // A shard that was forgotten is committed again, with its own parts only.
      if (sequence > ledger.commitsOf(writer.name)) {
        const own = parts.map(({ token: _token, engines = [], ...part }) => ({ ...part, engines }));
        const commit = { sequence, bytes, sha256, parts: own };
        await record.putCommit(writer.name, commit, plan);
        ledger.add(writer, commit);
        const { completed, failed } = ledger;
        log.debug({ segment: sequence, bytes, completed, failed }, 'answers stored');
      }
      return parts.map(({ n }) => ({ outcome: 'committed', left: ledger.leftOf(n) }) as const);
    },
  };
}

async function openInput(
  storage: Storage,
  key: string,
  range: { start: number; end: number },
): Promise<Readable> {
  try {
    return await storage.get(key, range);
  } catch (error) {
    const isMissing = error instanceof SluiceError && error.kind === 'NotFound';
    throw isMissing ? missingInput() : error;
  }
}
