import {
  AggregatorRegistry,
  collectDefaultMetrics,
  Counter,
  Gauge,
  Histogram,
  Registry,
} from 'prom-client';

/** Everything that a process counts. Labels are bounded: states, queues, routes; never ids. */
export interface Metrics {
  httpSeconds: Histogram<'route' | 'method' | 'status'>;
  attemptSeconds: Histogram<'queue' | 'result'>;
  /** A line is answered; thousands a second are, so that they are added up and counted when somebody looks. */
  answered(kind: 'output' | 'error', tokens: { inputTokens: number; outputTokens: number }): void;
  retries: Counter<'reason'>;
  segments: Counter;
  segmentBytes: Counter;
  inFlight: Gauge;
  budgetBytes: Gauge;
  queued: Gauge<'queue' | 'state'>;
  jobsFinished: Counter<'outcome'>;
  machines: Gauge<'provider' | 'state'>;
  leakedMachines: Gauge<'provider'>;
  /** What this process counted, for another one that renders it; it survives structured cloning. */
  snapshot(): Promise<Snapshot>;
  /** From now on `render` adds what these other processes counted. */
  include(others: () => Promise<Snapshot[]>): void;
  render(): Promise<{ contentType: string; body: string }>;
}

export type Snapshot = Awaited<ReturnType<Registry['getMetricsAsJSON']>>;

/** What stays true of a process that has ended: what it counted, and none of its gauges. */
export async function endedSnapshot(snapshots: readonly Snapshot[]): Promise<Snapshot> {
  const counted = snapshots.map((each) =>
    each.filter(({ type }) => String(type) === 'counter' || String(type) === 'histogram'),
  );
  return AggregatorRegistry.aggregate(counted).getMetricsAsJSON();
}

function createAnswerCounts(registers: Registry[]): Metrics['answered'] {
  const lines = { output: 0, error: 0 };
  const tokens = { input: 0, output: 0 };
  tally('sluice_lines_total', 'Lines answered, by the file they go to.', lines, registers);
  tally('sluice_tokens_total', 'Tokens that engines counted.', tokens, registers);
  return (kind, { inputTokens, outputTokens }) => {
    lines[kind] += 1;
    tokens.input += inputTokens;
    tokens.output += outputTokens;
  };
}

/** A counter of what is added to `pending`, by kind; it is counted when the registry is read. */
function tally<K extends string>(
  name: string,
  help: string,
  pending: Record<K, number>,
  registers: Registry[],
): void {
  const counted = new Counter<'kind'>({
    name,
    help,
    labelNames: ['kind'],
    registers,
    collect() {
      for (const kind in pending) {
        if (pending[kind] > 0) counted.inc({ kind }, pending[kind]);
        pending[kind] = 0;
      }
    },
  });
}

/** Seconds, from a cached answer to a long upload. */
const BUCKETS = [0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600];

/** Makes a process's own registry. */
export function createMetrics(): Metrics {
  const registry = new Registry();
  const registers = [registry];
  let others: (() => Promise<Snapshot[]>) | undefined;
  collectDefaultMetrics({ register: registry });
  function counter<L extends string = never>(
    name: string,
    help: string,
    labelNames: readonly L[] = [],
  ) {
    return new Counter<L>({ name, help, labelNames, registers });
  }
  function gauge<L extends string = never>(
    name: string,
    help: string,
    labelNames: readonly L[] = [],
  ) {
    return new Gauge<L>({ name, help, labelNames, registers });
  }
  function histogram<L extends string>(name: string, help: string, labelNames: readonly L[]) {
    return new Histogram<L>({ name, help, labelNames, buckets: BUCKETS, registers });
  }
  return {
    httpSeconds: histogram('sluice_http_request_duration_seconds', 'HTTP requests by route.', [
      'route',
      'method',
      'status',
    ]),
    attemptSeconds: histogram('sluice_queue_attempt_duration_seconds', 'Deliveries worked on.', [
      'queue',
      'result',
    ]),
    answered: createAnswerCounts(registers),
    retries: counter('sluice_line_retries_total', 'Lines asked again, by reason.', ['reason']),
    segments: counter('sluice_segments_total', 'Segments committed.'),
    segmentBytes: counter('sluice_segment_bytes_total', 'Bytes of segments written.'),
    inFlight: gauge('sluice_lines_in_flight', 'Lines that wait for an engine now.'),
    budgetBytes: gauge('sluice_memory_budget_used_bytes', 'Bytes of the memory budget in use.'),
    queued: gauge('sluice_queue_deliveries', 'Deliveries in BullMQ, by state.', ['queue', 'state']),
    jobsFinished: counter('sluice_jobs_finished_total', 'Jobs that ended, by outcome.', [
      'outcome',
    ]),
    machines: gauge('sluice_machines', 'Machines that are leased.', ['provider', 'state']),
    leakedMachines: gauge('sluice_leaked_machines', 'Machines that no record wants.', ['provider']),
    snapshot: () => registry.getMetricsAsJSON(),
    include(source) {
      others = source;
    },
    async render() {
      const { contentType } = registry;
      if (others === undefined) return { contentType, body: await registry.metrics() };
      const all = [await registry.getMetricsAsJSON(), ...(await others())];
      return { contentType, body: await AggregatorRegistry.aggregate(all).metrics() };
    },
  };
}
