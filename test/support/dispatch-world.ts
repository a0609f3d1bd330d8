import { createHash, randomUUID } from 'node:crypto';
import { tmpdir } from 'node:os';
import { Readable } from 'node:stream';
import { isDeepStrictEqual } from 'node:util';
import { Dispatcher } from '../../src/dispatcher/dispatcher.ts';
import type { DispatcherDeps, DispatchJob, TakenShard } from '../../src/dispatcher/dispatcher.ts';
import type { Answer } from '../../src/dispatcher/contract.ts';
import { readPlan } from '../../src/dispatcher/read-plan.ts';
import { readEntries } from '../../src/dispatcher/segments.ts';
import type { Part, PartRange, PartResult, SegmentInfo } from '../../src/domain/segment.ts';
import { createUniqueIds } from '../../src/dispatcher/unique-ids.ts';
import type { Adaptive, Endpoint } from '../../src/domain/job.ts';
import type { ShardPlan } from '../../src/domain/plan.ts';
import type { ServingEngine } from '../../src/domain/provision.ts';
import { NO_LIMITS } from '../../src/domain/rate-limit.ts';
import { DEFAULT_RETRY } from '../../src/domain/retry.ts';
import type { RetryPolicy } from '../../src/domain/retry.ts';
import { createEndpointRuntime } from '../../src/runtimes/endpoint.ts';
import { clock } from '../../src/main/clock.ts';
import { UNDISTURBED } from './fake-engine.ts';

/** A shard as an in-memory ledger keeps it. */
export interface LedgerShard {
  plan: ShardPlan;
  token: string;
  done: Buffer;
  bad: Buffer | null;
  left: number;
  parts: PartRange[];
  ok: number;
  failed: number;
}

/** What stands in for Redis and storage: the same answers as the store's commit gives, in this process. */
export interface Ledger {
  readonly shards: Map<number, LedgerShard>;
  /** How often each segment was stored; a segment is stored once. */
  readonly puts: Map<string, number>;
  readonly commits: { segment: string; parts: readonly Part[] }[];
  /** Called before a segment is stored; may throw or wait. */
  beforePut: () => Promise<void> | void;
  /** Called before a commit; its answer, if any, is given instead. */
  beforeCommit: (
    parts: readonly Part[],
  ) => Promise<readonly PartResult[] | void> | readonly PartResult[] | void;
  /** Called after a commit; `undo` forgets it, as a failover to a late replica does. */
  afterCommit: (undo: () => void) => void;
  take(n: number): TakenShard;
  /** All answers of accepted parts by line of the job; throws when a line has two, or a part is damaged. */
  answers(): Promise<Map<number, Answer>>;
  put: DispatcherDeps['putSegment'];
  commit: DispatcherDeps['commit'];
}

function isSet(bits: Buffer, line: number): boolean {
  return (((bits[line >> 3] ?? 0) >> (line & 7)) & 1) === 1;
}

function commitPart(shard: LedgerShard, segment: SegmentInfo, part: Part): PartResult {
  const again = shard.parts.some((each) => each.segment === segment.id);
  if (again) return { outcome: 'committed', left: shard.left };
  if (shard.token !== part.token) return { outcome: 'stale' };
  if (part.mask.some((byte, at) => (byte & (shard.done[at] ?? 0)) !== 0)) {
    return { outcome: 'overlap', done: shard.done };
  }
  for (const [at, byte] of part.mask.entries()) shard.done[at] = (shard.done[at] ?? 0) | byte;
  shard.left -= part.ok + part.failed;
  shard.ok += part.ok;
  shard.failed += part.failed;
  const { offset, length, crc } = part;
  shard.parts.push({ segment: segment.id, offset, length, crc });
  return { outcome: 'committed', left: shard.left };
}

/** `keepBytes: false` forgets what is stored, for inputs that are larger than a test's memory. */
function createLedger(
  plans: readonly { plan: ShardPlan; bad: Buffer | null }[],
  { keepBytes = true } = {},
): Ledger {
  const segments = new Map<string, Buffer>();
  const ledger: Ledger = {
    shards: new Map(),
    puts: new Map(),
    commits: [],
    beforePut() {},
    beforeCommit() {},
    afterCommit() {},
    take(n) {
      const shard = ledger.shards.get(n);
      if (shard === undefined) throw new Error(`there is no shard ${n}`);
      shard.token = randomUUID();
      const { plan, token, done, bad, left } = shard;
      return { plan, token, done: Buffer.from(done), bad, left, takes: 1, crashed: null };
    },
    async answers() {
      const found = new Map<number, Answer>();
      for (const { plan, parts, done } of ledger.shards.values()) {
        for (const part of parts) {
          const bytes = segments
            .get(part.segment)
            ?.subarray(part.offset, part.offset + part.length);
          for await (const answer of readEntries(Readable.from([bytes]), part)) {
            const line = plan.first + answer.line;
            if (found.has(line)) throw new Error(`line ${line} is answered twice`);
            if (!isSet(done, answer.line)) throw new Error(`line ${line} is not marked as done`);
            found.set(line, answer);
          }
        }
      }
      return found;
    },
    async put(_job, id, chunks) {
      await ledger.beforePut();
      ledger.puts.set(id, (ledger.puts.get(id) ?? 0) + 1);
      const hash = createHash('sha256');
      let bytes = 0;
      for (const chunk of chunks) {
        hash.update(chunk);
        bytes += chunk.length;
      }
      if (keepBytes) segments.set(id, Buffer.concat(chunks));
      return { bytes, sha256: hash.digest('hex') };
    },
    async commit(_job, segment, parts) {
      const instead = await ledger.beforeCommit(parts);
      if (instead !== undefined) return instead;
      const before = structuredClone([...ledger.shards]);
      ledger.commits.push({ segment: segment.id, parts });
      const results = parts.map((part): PartResult => {
        const shard = ledger.shards.get(part.n);
        return shard === undefined ? { outcome: 'stale' } : commitPart(shard, segment, part);
      });
      ledger.afterCommit(() => {
        for (const [n, shard] of before) {
          ledger.shards.set(n, { ...shard, done: Buffer.from(shard.done) });
        }
      });
      return results;
    },
  };
  for (const { plan, bad } of plans) {
    const done = Buffer.alloc(Math.ceil(plan.lines / 8));
    const shard = { plan, token: '', done, bad, left: plan.lines, parts: [], ok: 0, failed: 0 };
    ledger.shards.set(plan.n, shard);
  }
  return ledger;
}

/** One request line of the batch format; `body` may be JSON text, which then goes in as it is. */
export function requestLine(customId: string, body: string | object): string {
  const text = typeof body === 'string' ? body : JSON.stringify(body);
  const head = `{"custom_id":${JSON.stringify(customId)},"method":"POST"`;
  return `${head},"url":"/v1/chat/completions","body":${text}}\n`;
}

/** `count` chat requests, each with a body of its own. */
export function chatLines(count: number, more: Record<string, unknown> = {}): string {
  return Array.from({ length: count }, (_, n) => {
    const messages = [{ role: 'user', content: `question ${n}` }];
    return requestLine(`line-${n}`, { model: 'sim-model', messages, ...more });
  }).join('');
}

export interface DispatchWorldOptions {
  engines: string[];
  /** Which models each serves, by its URL; absent: all. A test may change it. */
  serves?: Map<string, string[]>;
  /** Chat completions unless given. */
  endpoint?: Endpoint;
  /** Those that the job names. */
  models?: string[];
  input: string;
  cutLines?: number;
  /** Takes bad lines, too. */
  lenient?: boolean;
  maxConcurrency?: number;
  adaptive?: Adaptive;
  /** Watch its errors, as if nothing of it had been answered before. */
  guarded?: boolean;
  hedged?: boolean;
  retry?: RetryPolicy;
  /** How long an engine may be silent, before its answer and within it. */
  requestTimeout?: number;
  timeouts?: Partial<DispatcherDeps['timeouts']>;
  /** What the job says of its attempts. */
  attempt?: Partial<Pick<DispatchJob, 'answerTimeoutMs' | 'upstreamStream'>>;
  /** How long a pause of the dispatcher lasts here, as a share of what it asked for. */
  sleepScale?: number;
  /** The same for timers, which close segments. */
  timerScale?: number;
  keepBytes?: boolean;
  deps?: Partial<DispatcherDeps>;
}

/** A dispatcher with everything that it touches, but for the engines: those are the test's. */
export interface DispatchWorld extends AsyncDisposable {
  dispatcher: Dispatcher;
  ledger: Ledger;
  job: DispatchJob;
  /** Base URLs that lines are sent to; a test may change them. */
  engines: string[];
  /** Models that the job has given up; a test may add some. */
  givenUp: string[];
  stop: AbortController;
  abort: AbortController;
  /** What `onRetry` and `onEngineDown` were told, and what was logged as an error. */
  retries: string[];
  downs: string[];
  /** What was found to be wrong with the job as a whole. */
  troubles: string[];
  errors: string[];
  run(n?: number): Promise<'done' | 'lost' | 'stopped'>;
  runAll(): Promise<string[]>;
}

async function planOf(
  input: Buffer,
  endpoint: Endpoint,
  lines: number,
  lenient: boolean,
): Promise<{ plan: ShardPlan; bad: Buffer | null }[]> {
  const plans: ShardPlan[] = [];
  const bad = new Map<number, Buffer>();
  const uniqueIds = createUniqueIds({ directory: tmpdir() });
  const { problems } = await readPlan(Readable.from([input]), {
    endpoint,
    pinnedModel: null,
    cut: { lines, bytes: 8 * 1024 * 1024 },
    maxLines: 1_000_000,
    maxLineBytes: 10 * 1024 * 1024,
    uniqueIds,
    onShards: async (shards) => void plans.push(...shards),
    onBadLines: lenient
      ? async (shards) => {
          for (const shard of shards) bad.set(shard.n, shard.bad);
        }
      : null,
    signal: new AbortController().signal,
  });
  await uniqueIds.close();
  if (problems.length > 0 && !lenient) {
    throw new Error(`the test's input is bad: ${JSON.stringify(problems[0])}`);
  }
  return plans.map((plan) => ({ plan, bad: bad.get(plan.n) ?? null }));
}

/** Plans the input and opens a dispatcher over an in-memory ledger; closing it cuts what is left. */
export async function openDispatchWorld(options: DispatchWorldOptions): Promise<DispatchWorld> {
  const { engines, requestTimeout = 10_000, sleepScale = 1, timerScale = 1 } = options;
  const { endpoint = '/v1/chat/completions' } = options;
  const input = Buffer.from(options.input);
  const plans = await planOf(input, endpoint, options.cutLines ?? 1_000, options.lenient ?? false);
  const ledger = createLedger(plans, { keepBytes: options.keepBytes ?? true });
  const runtime = createEndpointRuntime({
    engineApiKey: undefined,
    engineUrls: [],
    connectTimeout: options.timeouts?.connect ?? 10_000,
  });
  const [stop, abort] = [new AbortController(), new AbortController()];
  const [retries, downs, errors, troubles]: string[][] = [[], [], [], []];
  const dispatcher = new Dispatcher({
    clock: {
      ...clock,
      sleep: (ms, signal) => clock.sleep(ms * sleepScale, signal),
      after: (ms, task) => clock.after(ms * timerScale, task),
    },
    memoryBudget: 128 * 1024 * 1024,
    maxResponseBytes: 64 * 1024 * 1024,
    timeouts: {
      connect: 10_000,
      firstByte: requestTimeout,
      betweenBytes: requestTimeout,
      answer: 3_600_000,
      ...options.timeouts,
    },
    maxLineBytes: 10 * 1024 * 1024,
    connect: (address) => runtime.connect(address),
    weightOf: () => 1,
    processes: () => 1,
    isolation: UNDISTURBED,
    share: async (_address, _tally, limit) =>
      Promise.resolve({ processes: 1, rank: 0, limit, others: [] }),
    openInput: async (_key, { start, end }) => Readable.from([input.subarray(start, end)]),
    newSegmentId: () => randomUUID(),
    putSegment: ledger.put,
    commit: ledger.commit,
    crashApartMs: 0,
    markAlone: async () => Promise.resolve(true),
    onRetry: (reason) => void retries?.push(reason),
    onAnswered() {},
    limits: {
      engineLimits: NO_LIMITS,
      keyLimits: NO_LIMITS,
      draw: async () => Promise.reject(new Error('nothing is limited here')),
    },
    onTrouble: (_job, trouble) => void troubles?.push(trouble.message),
    onEngineDown: (_address, reason) => void downs?.push(reason),
    log: { warn() {}, error: (_fields, message) => void errors?.push(message) },
    ...options.deps,
  });
  const givenUp: string[] = [];
  let known: readonly ServingEngine[] = [];
  function serving(): readonly ServingEngine[] {
    const now = engines.map((address) => {
      return { address, models: options.serves?.get(address) ?? null };
    });
    if (!isDeepStrictEqual(now, known)) known = now;
    return known;
  }
  const job: DispatchJob = {
    id: 'job_test',
    endpoint,
    pinnedModel: null,
    models: options.models ?? ['sim-model'],
    inputKey: 'files/test',
    maxConcurrency: options.maxConcurrency ?? 64,
    adaptive: options.adaptive ?? null,
    rank: 1,
    isGuarded: options.guarded ?? false,
    isFresh: true,
    isHedged: options.hedged ?? false,
    retry: options.retry ?? DEFAULT_RETRY,
    answerTimeoutMs: null,
    limits: NO_LIMITS,
    upstreamStream: 'auto',
    ...options.attempt,
    engines: serving,
    givenUp: () => givenUp,
  };
  const signals = { stop: AbortSignal.any([stop.signal, abort.signal]), abort: abort.signal };
  const run = async (n = 0) => dispatcher.run(ledger.take(n), job, signals);
  return {
    dispatcher,
    ledger,
    job,
    engines,
    givenUp,
    stop,
    abort,
    retries: retries ?? [],
    downs: downs ?? [],
    troubles: troubles ?? [],
    errors: errors ?? [],
    run,
    runAll: async () => Promise.all([...ledger.shards.keys()].map(run)),
    async [Symbol.asyncDispose]() {
      abort.abort(new Error('the test is over'));
      await dispatcher.close();
    },
  };
}
