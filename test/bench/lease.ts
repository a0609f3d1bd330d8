import { whyNoNamespaces } from '../simulators/machines/yard.ts';
import type { LedgerEntry } from '../simulators/cloud/ledger.ts';
import {
  createJob,
  createTemplate,
  leaseInput,
  untilNoMachine,
  untilStatus,
} from '../support/leases.ts';
import { startLeasingSite } from '../support/leasing-site.ts';
import type { LeasingSite } from '../support/leasing-site.ts';
import { percentile, round } from './timed-job.ts';

/** Lines of a job: few, so that what is measured is all there is. */
const LINES = 5;
/** Boots are drawn from a time that grows with the jobs: one core boots and loads about two machines a second. */
const BOOT_MS = 1_000;
const BOOT_MS_A_JOB = 1_000;
/** Twice, for lists and for sshd: on live pods that takes 20 to 60 s, in which their address is known already. */
const APT_MS = 4_000;
const LOAD_MS = 1_000;
const PATIENCE_MS = 600_000;

/** What is paid for and not used, ms; as p95 it should stay below. */
const BARS = {
  ready_to_engine: 2_000,
  healthy_to_first_request: 1_000,
  last_answer_to_terminate: 1_000,
} as const;
type Idle = keyof typeof BARS;

interface Spread {
  p50_ms: number;
  p95_ms: number;
  worst_ms: number;
  bar_ms: number;
  /** How many machines tell; fewer than there are jobs where something went wrong. */
  of: number;
}

interface Measured {
  jobs: number;
  seconds: number;
  idle: Record<Idle, Spread>;
  /** From creating a job to the create call of its machine. */
  asked: { p50_ms: number; p95_ms: number; worst_ms: number };
  /** Jobs whose machine was asked for only when another one was up already. */
  waited_for_another: number;
  machines: number;
  created_twice: number;
  billed_seconds: number;
  /** From the first request to the last answer of each engine. */
  serving_seconds: number;
  cost_usd: number;
}

/**
 * What machines cost while nobody uses them, with one job and with many at once: from SSH ready to the start of the
 * engine, from its first healthy answer to the first line, from the last answer to the call that gives the machine back.
 * The simulated provider's own ledger says so.
 */
export async function benchLease({ json, jobs }: { json: boolean; jobs: number }): Promise<void> {
  const why = await whyNoNamespaces();
  if (why !== undefined) throw new Error(why);
  const runs: Measured[] = [];
  for (const count of new Set([1, jobs])) {
    const run = await measure(count);
    runs.push(run);
    if (!json) show(run);
  }
  if (json) console.log(JSON.stringify({ bench: 'lease', lines: LINES, runs }));
}

async function measure(jobs: number): Promise<Measured> {
  const machine = { apt_ms: APT_MS, engine: { profile: 'zero', load_ms: LOAD_MS } };
  const knobs = { boot_ms: [BOOT_MS, BOOT_MS + jobs * BOOT_MS_A_JOB], machine };
  const env = { MAX_LEASES: String(2 * jobs) };
  await using site = await startLeasingSite({ cloud: { apart: true, knobs }, env });
  // A first job pays for what every process loads once; one of many should not.
  await runJobs(site, 1);
  await site.cloud.control.reset();
  const begun = performance.now();
  const createdAt = await runJobs(site, jobs);
  const seconds = (performance.now() - begun) / 1_000;
  const { machines, totals } = await site.cloud.control.ledger();
  const firstUp = Math.min(...machines.map(({ up_at: at }) => at ?? Infinity));
  const asked = machines.map(({ created_at: at }, n) => at - (createdAt[n] ?? at));
  return {
    jobs,
    seconds: round(seconds, 1),
    idle: {
      ready_to_engine: spread(machines, 'ready_to_engine'),
      healthy_to_first_request: spread(machines, 'healthy_to_first_request'),
      last_answer_to_terminate: spread(machines, 'last_answer_to_terminate'),
    },
    asked: quantiles(asked),
    waited_for_another: machines.filter(({ created_at: at }) => at > firstUp).length,
    machines: machines.length,
    created_twice: totals.created_twice,
    billed_seconds: totals.billed_seconds,
    serving_seconds: round(totals.serving_seconds, 1),
    cost_usd: round(totals.cost_usd, 4),
  };
}

/** Creates jobs at once and resolves with when, in order, once all have completed and no machine is left. */
async function runJobs({ url, cloud }: LeasingSite, count: number): Promise<number[]> {
  const createdAt: number[] = [];
  const ids = Array.from({ length: count }, async (_, n) => {
    // One of its own, so that no job waits for the machine of another.
    const template = await createTemplate(url, cloud.provider);
    const id = await createJob(url, template, leaseInput(LINES, `bench-${n}`));
    createdAt.push(Date.now());
    return id;
  });
  await Promise.all(
    (await Promise.all(ids)).map((id) => untilStatus(url, id, 'completed', PATIENCE_MS)),
  );
  await untilNoMachine(cloud, { timeoutMs: 60_000 });
  return createdAt;
}

function quantiles(values: readonly number[]) {
  return {
    p50_ms: round(percentile([...values], 0.5), 0),
    p95_ms: round(percentile([...values], 0.95), 0),
    worst_ms: round(Math.max(...values), 0),
  };
}

function spread(machines: readonly LedgerEntry[], idle: Idle): Spread {
  const values = machines.flatMap(({ idle_ms: times }) => times[idle] ?? []);
  return { ...quantiles(values), bar_ms: BARS[idle], of: values.length };
}

function show(run: Measured): void {
  console.log(`\n${run.jobs} ${run.jobs === 1 ? 'job' : 'jobs at once'}, ${run.seconds} s:`);
  console.table(run.idle);
  console.log(
    `asked for after p50 ${run.asked.p50_ms} ms, p95 ${run.asked.p95_ms} ms, worst ${run.asked.worst_ms} ms;` +
      ` ${run.waited_for_another} of ${run.machines} machines only when another was up; ${run.created_twice} created twice\n` +
      `billed ${run.billed_seconds} machine-seconds ($${run.cost_usd}), serving ${run.serving_seconds}`,
  );
}
