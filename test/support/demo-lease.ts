import { readFile, writeFile } from 'node:fs/promises';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import type { MachineProvider } from '../../src/domain/provision.ts';
import { whyNoNamespaces } from '../simulators/machines/yard.ts';
import { download } from './batch.ts';
import { leasingEnvironment, makeKeyFile, startCloud } from './clouds.ts';
import type { Cloud } from './clouds.ts';
import { createTemplate, createJob, isFinal, readLeaseJob, untilNoMachine } from './leases.ts';
import type { LeaseJob } from './leases.ts';
import { makeFolder, startSluice } from './server.ts';

export interface LeaseDemo {
  provider: MachineProvider;
  input: string;
  /** What its lines name as `body.model`. */
  model: string;
  output: string;
  json: boolean;
}

const NAMES: Record<MachineProvider, string> = { runpod: 'RunPod', lambdaCloud: 'Lambda Cloud' };

/** So quick that one waits gladly, and so slow that each state is seen. */
const KNOBS = {
  boot_ms: [2_000, 4_000],
  address_late_ms: 500,
  machine: { engine: { profile: 'h100-8b', load_ms: 2_000 } },
};

/** Ends with its process on Ctrl-C, and takes everything that it started with it. */
function interruption(): AbortSignal {
  const controller = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => controller.abort(new Error(`ended by ${signal}`)));
  }
  return controller.signal;
}

/** Prints what is new about a job until it is over and gives its machine back. */
async function follow(url: string, id: string, signal: AbortSignal): Promise<LeaseJob> {
  const begun = performance.now();
  let told = 0;
  let provision = '';
  let answered = '';
  const say = (text: string): void => {
    console.error(`${((performance.now() - begun) / 1_000).toFixed(1).padStart(6)} s  ${text}`);
  };
  for (;;) {
    const job = await readLeaseJob(url, id);
    for (const { id: event, message } of job.events.slice(told)) say(`job ${event}: ${message}`);
    told = job.events.length;
    const { status = '', provider = '', error_message: reason = '' } = job.provision ?? {};
    const now = `machine at ${provider}: ${status}${reason === '' ? '' : ` (${reason})`}`;
    if (status !== '' && now !== provision) say(now);
    provision = now;
    const { completed = 0, total = 0 } = job.request_counts ?? {};
    const counts = `${completed} of ${total} lines answered`;
    if (completed > 0 && counts !== answered) say(counts);
    answered = counts;
    if (isFinal(job.status) && (status === '' || status.startsWith('releas'))) return job;
    await sleep(100, undefined, { signal });
  }
}

/** What the provider says that it was; and that nothing is left, or what. */
async function billOf(cloud: Cloud) {
  await untilNoMachine(cloud).catch(console.error); // what is left is in the bill
  const { machines, totals } = await cloud.control.ledger();
  return { machines: machines.map(({ id, name, type }) => ({ id, name, type })), ...totals };
}

async function report(
  url: string,
  job: LeaseJob,
  { output, json }: LeaseDemo,
  bill: Awaited<ReturnType<typeof billOf>>,
): Promise<void> {
  const { status, error_message: reason, request_counts: counts } = job;
  await writeFile(output, await download(url, job.output_dataset));
  const dollars = bill.cost_usd.toFixed(4);
  const ids = bill.machines.map(({ id, type }) => `${id} (${type})`).join(', ');
  console.error(`Leased: ${ids}. Billed: ${bill.billed_seconds} s, $${dollars}.`);
  console.error(`The provider has ${bill.alive === 0 ? 'no machine' : 'STILL A MACHINE'} of ours.`);
  console.error(`${status}${reason === '' ? '' : `: ${reason}`}; the answers are in ${output}`);
  if (json) console.log(JSON.stringify({ status, ...counts, output, ...bill }));
  if (status !== 'completed' || bill.alive > 0) process.exitCode = 1;
}

/**
 * Runs a batch on a machine that a simulated provider leases out: a Sluice server, a provider's API, a machine with an
 * sshd of its own and an engine on it. Sets the exit code.
 */
export async function demoLease(demo: LeaseDemo): Promise<void> {
  const why = await whyNoNamespaces();
  if (why !== undefined) {
    console.error(`--provider needs machines, and ${why.replace(/, or ask for .*$/, '')}.`);
    console.error('Programs that are missing are installed by: sudo sh src/main/setup.sh --tests');
    process.exitCode = 1;
    return;
  }
  const signal = interruption();
  await using folder = await makeFolder();
  const key = await makeKeyFile(folder.path);
  await using cloud = await startCloud(demo.provider, key, { apart: true, knobs: KNOBS });
  console.error(
    `A simulated ${NAMES[demo.provider]} listens at ${cloud.url}; its machines are namespaces of this one with an sshd each.`,
  );
  await using sluice = await startSluice({
    dataDir: `${folder.path}/data`,
    env: leasingEnvironment([cloud], key),
  });
  console.error(`Sluice listens at ${sluice.url}.`);
  try {
    const text = await readFile(demo.input, 'utf8');
    const template = await createTemplate(sluice.url, demo.provider, {}, demo.model);
    const id = await createJob(sluice.url, template, { text });
    const job = await follow(sluice.url, id, signal);
    await report(sluice.url, job, demo, await billOf(cloud));
  } catch (error) {
    if (!signal.aborted) throw error;
    console.error('Interrupted: the simulated machines end with the demo.');
    process.exitCode = 130;
  }
}
