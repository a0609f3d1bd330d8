import * as v from 'valibot';
import { describeError, invalidInput, SluiceError } from '../domain/errors.ts';
import { PROVISION_STATES } from '../domain/provision.ts';
import { clock } from './clock.ts';
import { connectServer } from './server-client.ts';
import type { ServerClient, ServerSettings } from './server-client.ts';
import { untilStopped } from './signals.ts';
import { oneLine, table } from './table.ts';

export interface ProvisionsOptions {
  /** Base URL of the server. */
  url?: string;
  /** Released ones, too. */
  all?: true;
  job?: string;
  provider?: string;
  json?: true;
}

export interface ReleaseOptions {
  url?: string;
  rehome?: true;
  end?: true;
  json?: true;
}

const EXIT_INTERRUPTED = 130;
const LOOK_MS = 500;
const PAGE = 100;

const machineFields = {
  id: v.string(),
  region: v.string(),
  gpu_type: v.string(),
  gpu_count: v.number(),
  price_per_hour: v.nullable(v.number()),
};

const provisionSchema = v.looseObject({
  id: v.string(),
  job_id: v.string(),
  status: v.string(),
  provider: v.string(),
  error_message: v.string(),
  created_at: v.number(),
  machine: v.nullable(v.looseObject(machineFields)),
});
type Provision = v.InferOutput<typeof provisionSchema>;

const pageSchema = v.object({
  provisions: v.array(provisionSchema),
  last_id: v.string(),
  has_more: v.boolean(),
});

const machinesSchema = v.looseObject({
  machines: v.array(
    v.looseObject({
      provider: v.string(),
      ...machineFields,
      status: v.string(),
      created_at: v.number(),
      use: v.string(),
      reason: v.string(),
      provision_id: v.string(),
    }),
  ),
  failures: v.array(v.object({ provider: v.string(), reason: v.string() })),
});
type ListedMachine = v.InferOutput<typeof machinesSchema>['machines'][number];

/** `sluice provisions`: prints what jobs run on, newest first, and what they ran on with `all`. Returns the exit code. */
export async function listProvisions(
  { url, all, job, provider, json }: ProvisionsOptions,
  settings: ServerSettings,
): Promise<number> {
  const server = connectServer('provisions', url, settings);
  const query = new URLSearchParams({
    limit: String(PAGE),
    ...(all === true ? {} : { status: UNRELEASED.join(',') }),
    ...(job === undefined ? {} : { job_id: job.replace(/^batch_/, 'job_') }),
    ...(provider === undefined ? {} : { provider }),
  });
  const found: Provision[] = [];
  for (let more = true; more;) {
    const page = await server.json(pageSchema, `/api/v1/provisions?${query.toString()}`);
    found.push(...page.provisions);
    query.set('after', page.last_id);
    more = page.has_more;
  }
  if (json === true) print(`${JSON.stringify({ provisions: found })}\n`);
  else if (found.length === 0) print(`No provision${all === true ? '' : ' is unreleased'}.\n`);
  else print(table(PROVISION_HEAD, found.map(provisionRow)));
  return 0;
}

const UNRELEASED = PROVISION_STATES.filter((state) => state !== 'released');
const PROVISION_HEAD = 'ID JOB STATE PROVIDER MACHINE GPU REGION USD/H AGE REASON'.split(' ');

function provisionRow(provision: Provision): string[] {
  const { id, job_id: job, status, provider, machine, created_at, error_message } = provision;
  const leased = machine === null ? ['', '', '', ''] : machineCells(machine);
  return [id, job, status, provider, ...leased, ageOf(created_at), error_message];
}

type MachineCells = Pick<
  ListedMachine,
  'id' | 'region' | 'gpu_type' | 'gpu_count' | 'price_per_hour'
>;

function machineCells({ id, region, gpu_type, gpu_count, price_per_hour }: MachineCells): string[] {
  const gpu = gpu_type === '' ? '' : `${gpu_count}x ${gpu_type}`;
  return [id, gpu, region, price_per_hour === null ? '' : price_per_hour.toFixed(2)];
}

/** @param at unix seconds; 0 where nobody knows */
function ageOf(at: number): string {
  if (at === 0) return '';
  const seconds = Math.max(0, Math.floor(clock.now() / 1_000) - at);
  if (seconds < 120) return `${seconds}s`;
  if (seconds < 7_200) return `${Math.floor(seconds / 60)}m`;
  return seconds < 172_800 ? `${Math.floor(seconds / 3_600)}h` : `${Math.floor(seconds / 86_400)}d`;
}

/**
 * `sluice provisions machines`: prints what the providers list of this deployment, with whose each is. Returns the exit
 * code: 1 where a provider did not answer.
 */
export async function listMachines(
  { url, json }: Pick<ProvisionsOptions, 'url' | 'json'>,
  settings: ServerSettings,
): Promise<number> {
  const server = connectServer('provisions', url, settings);
  const found = await server.json(machinesSchema, '/api/v1/machines');
  const { machines, failures } = found;
  if (json === true) print(`${JSON.stringify(found)}\n`);
  else if (machines.length > 0) print(table(MACHINE_HEAD, machines.map(machineRow)));
  else if (failures.length === 0) print('No machine is leased.\n');
  for (const { provider, reason } of failures) {
    process.stderr.write(`${provider} could not be asked: ${reason}\n`);
  }
  return failures.length > 0 ? 1 : 0;
}

const MACHINE_HEAD = 'PROVIDER MACHINE GPU REGION USD/H STATE AGE USE PROVISION REASON'.split(' ');

function machineRow(machine: ListedMachine): string[] {
  const { provider, status, created_at: createdAt, use, provision_id: provision } = machine;
  const whose = [status, ageOf(createdAt), use, provision, machine.reason];
  return [provider, ...machineCells(machine), ...whose];
}

/**
 * `sluice provisions release`: gives a provision back and waits until it is released. Returns the exit code: 130 where it
 * was stopped, which the server does not mind: it goes on.
 */
export async function releaseProvision(
  id: string,
  { url, rehome, end, json }: ReleaseOptions,
  settings: ServerSettings,
): Promise<number> {
  if (rehome === true && end === true) {
    throw invalidInput('provisions.both', 'Give --rehome or --end: a job cannot do both.');
  }
  const server = connectServer('provisions', url, settings);
  const stopped = new AbortController();
  void untilStopped().then(() => stopped.abort());
  const begun = await begin(id, rehome === true ? 'rehome' : end === true ? 'end' : null, server);
  const last = await untilReleased(begun, server, stopped.signal);
  if (json === true) print(`${JSON.stringify(last)}\n`);
  if (last.status === 'released') return 0;
  process.stderr.write(`Stopped waiting: the server goes on with it, see sluice provisions.\n`);
  return EXIT_INTERRUPTED;
}

async function begin(
  id: string,
  choice: 'rehome' | 'end' | null,
  server: ServerClient,
): Promise<Provision> {
  const body = choice === null ? {} : { body: JSON.stringify({ job: choice }) };
  const path = `/api/v1/provisions/${encodeURIComponent(id)}/release`;
  try {
    return await server.json(provisionSchema, path, { method: 'POST', ...body });
  } catch (error) {
    if (!isRefusal(error, 'release_choice_required')) throw error;
    throw invalidInput(
      'provisions.choice',
      `An unfinished job uses ${id}. Add --rehome (its job goes on with another provision) or --end (its job is cancelled, and keeps what was answered).`,
    );
  }
}

function isRefusal(error: unknown, code: string): boolean {
  return error instanceof SluiceError && error.code === `provisions.${code}`;
}

/** Says what changes, until it is released or nobody wants to know any more. */
async function untilReleased(
  begun: Provision,
  server: ServerClient,
  signal: AbortSignal,
): Promise<Provision> {
  let now = begun;
  let said = '';
  for (;;) {
    const why = now.error_message === '' ? '' : `: ${now.error_message}`;
    const note = oneLine(`${now.id} is ${now.status}${why}`);
    if (note !== said) process.stderr.write(`${note}\n`);
    said = note;
    if (now.status === 'released' || signal.aborted) return now;
    await clock.sleep(LOOK_MS, signal);
    if (!signal.aborted) now = await lookAgain(now, server);
  }
}

async function lookAgain(now: Provision, server: ServerClient): Promise<Provision> {
  try {
    return await server.json(provisionSchema, `/api/v1/provisions/${now.id}`);
  } catch (error) {
    // Only what is released is erased.
    if (isRefusal(error, 'provision_not_found')) return { ...now, status: 'released' };
    if (!(error instanceof SluiceError) || error.kind !== 'Transient') throw error;
    return { ...now, error_message: describeError(error) };
  }
}

function print(text: string): void {
  process.stdout.write(text);
}
