import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, expect, test } from 'vitest';
import type { Input } from '../support/batch.ts';
import { say, upload } from '../support/batch.ts';
import { chaosRandom, LONG } from '../support/chaos.ts';
import { insist, NASTY_KNOBS, startChaos } from '../support/lease-chaos.ts';
import type { Chaos } from '../support/lease-chaos.ts';
import {
  cancelJob,
  createTemplate,
  expectJobExact,
  isFinal,
  leaseInput,
  post,
  readLeaseJob,
  untilNoMachine,
} from '../support/leases.ts';
import type { LeaseJob, Template } from '../support/leases.ts';
import type { Cloud } from '../support/clouds.ts';
import { startLeasingSite } from '../support/leasing-site.ts';
import { requireNothingLeft } from '../support/server.ts';
import { until } from '../support/until.ts';

/*
 * Machines cost money until somebody ends them. Jobs lease them while every process is killed, Redis is restarted and the
 * provider errs; then its own inventory tells what is left.
 */

const JOBS = LONG ? 1_000 : 8;
const AT_ONCE = LONG ? 24 : JOBS;
const LINES = 4;
/** Share of the jobs that are cancelled, at any time. */
const CANCELLED = 0.25;
/** Of a short run. */
const BLOWS_MS = 20_000;
/** After the last blow. */
const CALM_MS = LONG ? 180_000 : 120_000;

afterAll(requireNothingLeft);

interface LeaseRun {
  id: string;
  input: Input;
  job: LeaseJob;
}

interface Run {
  chaos: Chaos;
  template: Template;
  random: () => number;
  /** The blows are over. */
  isCalm: () => boolean;
}

async function submitJob({ chaos, template }: Run, input: Input): Promise<string> {
  const key = randomUUID();
  const fileId = await insist((url) => upload(url, input.text), chaos);
  const wish = {
    input_dataset: fileId,
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    name: 'chaos',
    model_id: template.modelId,
    model_template_name: template.name,
    model_template_version: template.version,
  };
  return (await insist((url) => post<LeaseJob>(url, '/api/v1/jobs', wish, key), chaos)).id;
}

async function runJob(run: Run, n: number): Promise<LeaseRun> {
  const { chaos, random, isCalm } = run;
  const input = leaseInput(LINES, `chaos-${n}`);
  const id = await submitJob(run, input);
  let cancelAt: number | null = random() < CANCELLED ? Date.now() + random() * 15_000 : Infinity;
  const job = await until(
    async () => {
      const now = await insist((url) => readLeaseJob(url, id), chaos);
      if (isFinal(now.status)) return now;
      // What became of a doubtful create is looked for for minutes, for which a short run has no time.
      if (cancelAt !== null && (Date.now() > cancelAt || (isCalm() && !LONG))) {
        cancelAt = isCalm() ? null : Infinity;
        await insist((url) => cancelJob(url, id), chaos);
      }
      return undefined;
    },
    { timeoutMs: 20 * 60_000, everyMs: 500, what: `an end of ${id}` },
  );
  return { id, input, job };
}

/** Waits until the provider has no machine, also after a create that was on its way when the last job ended. */
async function untilAllIsOver(cloud: Cloud): Promise<void> {
  await untilNoMachine(cloud, { timeoutMs: CALM_MS });
  await sleep(5_000);
  await untilNoMachine(cloud, { timeoutMs: CALM_MS });
}

test(
  `${JOBS} jobs while everything dies: no machine is left`,
  async () => {
    const random = chaosRandom();
    await using site = await startLeasingSite({
      cloud: { apart: true, seed: Math.floor(random() * 1e6), knobs: NASTY_KNOBS },
      env: { CAPACITY_WAIT: '5m', MAX_LEASES: '200' },
      server: { roles: ['api'] },
    });
    const { cloud } = site;
    const template = await createTemplate(site.url, cloud.provider);
    await site.sluice.stop();
    await using chaos = await startChaos({
      site,
      random,
      pause: LONG ? [500, 4_000] : [300, 2_500],
    });
    const calm = new AbortController();
    const blows = chaos.run(calm.signal);
    const run = { chaos, template, random, isCalm: () => calm.signal.aborted };
    const runs: LeaseRun[] = [];
    let next = 0;
    async function takeTurns(): Promise<void> {
      while (next < JOBS) {
        next += 1;
        runs.push(await runJob(run, next));
      }
    }
    // In a short run the blows end in the middle; in a long one they fall until the last job's end.
    if (!LONG) setTimeout(() => calm.abort(), BLOWS_MS);
    await Promise.all(Array.from({ length: AT_ONCE }, takeTurns));
    calm.abort();
    const fell = await blows;

    await untilAllIsOver(cloud);
    const { totals, machines } = await cloud.control.ledger();
    const ended = Object.groupBy(runs, ({ job }) => job.status);
    const counts = Object.entries(ended).map(([status, of]) => `${of?.length ?? 0} ${status}`);
    say(
      `${JOBS} jobs: ${counts.join(', ')}; ${JSON.stringify(fell)}; ${totals.created} machines, ${totals.alive} left,` +
        ` ${totals.created_twice} created twice; billed ${totals.billed_seconds} s, serving ${Math.round(totals.serving_seconds)} s`,
    );
    expect(totals.alive).toBe(0);
    expect(machines.filter(({ ended_at: at }) => at === null)).toEqual([]);
    expect(totals.created_twice).toBe(0);
    expect(fell.kill + fell.killTwo).toBeGreaterThan(LONG ? 100 : 2);
    // Those that nobody cancelled have all their answers, once each, or say why not.
    const completed = ended['completed'] ?? [];
    const url = await chaos.url();
    for (const { job, input } of completed) await expectJobExact(url, job, input);
    const isMute = ({ job }: LeaseRun) => /failed/.test(job.status) && job.error_message === '';
    expect(runs.filter(isMute)).toEqual([]);
    expect(completed.length).toBeGreaterThanOrEqual(LONG ? JOBS / 2 : 0);
  },
  LONG ? 3 * 3_600_000 : 180_000,
);
