import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Act } from '../simulators/cloud/control.ts';
import type { Input } from '../support/batch.ts';
import {
  askedLines,
  askEngine,
  createJob,
  createTemplate,
  expectJobExact,
  leaseInput,
  machinesOf,
  untilJob,
  untilMachine,
  untilNoMachine,
  untilStatus,
} from '../support/leases.ts';
import type { LeaseJob } from '../support/leases.ts';
import { LONG } from '../support/chaos.ts';
import { startLeasingSite } from '../support/leasing-site.ts';
import type { LeasingSite } from '../support/leasing-site.ts';
import { requireNothingLeft } from '../support/server.ts';

/*
 * What may happen to a machine while its engine answers. The first machine of each type answers some lines and keeps the
 * others waiting; then it happens. The request logs of all engines are the witness of what was asked when.
 */

const LINES = 40;
const ANSWERED = 12;

/** A type each: tests that run at the same time tell their machines by it. */
const TYPES = {
  vanish: 'NVIDIA L40S',
  preempt: 'NVIDIA L4',
  powerOff: 'NVIDIA A40',
  killEngine: 'NVIDIA GeForce RTX 4090',
  oom: 'NVIDIA GeForce RTX 5090',
  cutSsh: 'NVIDIA H200',
  freeze: 'NVIDIA B200',
  hostKey: 'NVIDIA A100 80GB PCIe',
} as const;
const MOVED = 'gpu_1x_a10';

/** From the thirteenth request on, an engine says nothing: for ever, or for so long. */
function silentAfter(delayMs?: number) {
  const hang = { kind: 'hang_headers', after: ANSWERED };
  const faults = [delayMs === undefined ? hang : { ...hang, delay_ms: delayMs }];
  return { machine: { engine: { faults } } };
}

let runpod: LeasingSite;
let lambda: LeasingSite;
beforeAll(async () => {
  const forEver = [TYPES.vanish, TYPES.preempt, TYPES.powerOff, TYPES.killEngine, TYPES.oom];
  const forAWhile = [TYPES.cutSsh, TYPES.freeze, TYPES.hostKey];
  const overrides = [
    ...forEver.map((type) => ({ type, count: 1, ...silentAfter() })),
    ...forAWhile.map((type) => ({ type, count: 1, ...silentAfter(5_000) })),
  ];
  const moved = [{ type: MOVED, count: 1, ...silentAfter(5_000) }];
  [runpod, lambda] = await Promise.all([
    startLeasingSite({ cloud: { knobs: { overrides } } }),
    startLeasingSite({ kinds: ['lambdaCloud'], cloud: { knobs: { overrides: moved } } }),
  ]);
});
afterAll(async () => {
  await Promise.all([runpod?.[Symbol.asyncDispose](), lambda?.[Symbol.asyncDispose]()]);
  requireNothingLeft();
});

interface Run {
  site: LeasingSite;
  type: string;
  id: string;
  input: Input;
  /** The machine that it is on. */
  machine: string;
  /** Answered and committed by now. */
  answered: string[];
  act(act: Act, options?: Record<string, unknown>): Promise<unknown>;
}

/** Starts a job and resolves when its first machine has answered what it will, and Sluice has all of it. */
async function halfWay(site: LeasingSite, type: string, gpu: string = type): Promise<Run> {
  const { url, cloud } = site;
  const template = await createTemplate(url, cloud.provider, {
    accelerator: { type: gpu, vram_gb: 16 },
  });
  const input = leaseInput(LINES, type);
  const id = await createJob(url, template, input);
  const machine = await untilMachine(cloud, (one) => one.type === type);
  const enough = ({ request_counts: counts }: LeaseJob) => counts?.completed === ANSWERED;
  await untilJob(url, id, enough, { what: `${ANSWERED} answers` });
  const asked = await askedLines([cloud], input);
  const answered = [...asked].flatMap(([customId, entries]) =>
    entries.some(({ outcome }) => outcome === 'answered') ? [customId] : [],
  );
  expect(answered).toHaveLength(ANSWERED);
  const act: Run['act'] = (name, options) => cloud.control.act(machine, name, options);
  return { site, type, id, input, machine, answered, act };
}

/** The job completes, whole; no line that was answered before is asked again, and none is answered twice after. */
async function expectGoesOn(run: Run, machines: number, timeoutMs = 60_000): Promise<void> {
  const { site, id, input, answered, type } = run;
  const job = await untilStatus(site.url, id, 'completed', timeoutMs);
  const { error } = await expectJobExact(site.url, job, input);
  expect(error).toEqual([]);
  await untilNoMachine(site.cloud, { type });
  const asked = await askedLines([site.cloud], input);
  const again = answered.filter((customId) => (asked.get(customId)?.length ?? 0) > 1);
  expect(again, 'answered lines that were asked again').toEqual([]);
  expect(await machinesOf(site.cloud, type)).toHaveLength(machines);
}

/** `CHAOS_LONG=1` asks for all of them: what they show of one part is shown of that part alone, too. */
describe.concurrent('in mid-run', { timeout: 120_000 }, () => {
  test('the machine vanishes: another one answers the rest', async () => {
    const run = await halfWay(runpod, TYPES.vanish);
    await run.act('vanish');
    await expectGoesOn(run, 2);
  });

  test.runIf(LONG)(
    'the machine is taken away: another one answers the rest, and the first is given back',
    async () => {
      const run = await halfWay(runpod, TYPES.preempt);
      await run.act('preempt');
      await expectGoesOn(run, 2);
    },
  );

  // It is waited for three minutes: the way to it may be cut for a while.
  test.runIf(LONG)(
    'the machine dies and its provider does not notice: another one answers the rest',
    async () => {
      const run = await halfWay(runpod, TYPES.powerOff);
      await run.act('power_off');
      await expectGoesOn(run, 2, 300_000);
    },
    400_000,
  );

  test('the engine is killed: it is started again on its machine', async () => {
    const run = await halfWay(runpod, TYPES.killEngine);
    await run.act('engine', { profile: 'zero' });
    await run.act('kill_engine');
    await expectGoesOn(run, 1);
  });

  test.runIf(LONG)(
    'the engine runs out of memory: it is started again on its machine',
    async () => {
      const run = await halfWay(runpod, TYPES.oom);
      await run.act('engine', { profile: 'zero' });
      await askEngine(runpod.cloud, run.machine, 'faults', { faults: [{ kind: 'oom' }] });
      // It hits a request; those that hang are sent again when their connection ends.
      await run.act('cut_ssh');
      await expectGoesOn(run, 1);
    },
  );

  test('SSH drops: the same machine answers the rest', async () => {
    const run = await halfWay(runpod, TYPES.cutSsh);
    await askEngine(runpod.cloud, run.machine, 'faults', { faults: [] });
    await run.act('cut_ssh');
    await expectGoesOn(run, 1);
  });

  test.runIf(LONG)(
    'the network is silent for a while: the same machine answers the rest',
    async () => {
      const run = await halfWay(runpod, TYPES.freeze);
      await askEngine(runpod.cloud, run.machine, 'faults', { faults: [] });
      await run.act('freeze');
      setTimeout(() => void run.act('thaw'), 4_000);
      await expectGoesOn(run, 1);
    },
  );

  test.runIf(LONG)(
    'the host key changes: nothing more is sent there, and the job goes on elsewhere or says why',
    async () => {
      const run = await halfWay(runpod, TYPES.hostKey);
      await askEngine(runpod.cloud, run.machine, 'faults', { faults: [] });
      await run.act('change_host_key');
      await run.act('cut_ssh');
      const changed = Date.now();
      const { url, cloud } = runpod;
      const job = await untilJob(url, run.id, ({ status }) => /completed|failed/.test(status), {
        timeoutMs: 60_000,
        what: 'an end',
      });
      await untilNoMachine(cloud, { type: run.type });
      await expectJobExact(url, job, run.input);
      await expectGoesOn(run, 2);
      const asked = [...(await askedLines([cloud], run.input)).values()].flat();
      const there = asked.filter(
        ({ machine, at }) => machine === run.machine && at > changed + 200,
      );
      expect(there).toEqual([]);
    },
  );

  test.runIf(LONG)('the address changes: the same machine answers the rest', async () => {
    const run = await halfWay(lambda, MOVED, 'A10');
    await askEngine(lambda.cloud, run.machine, 'faults', { faults: [] });
    await run.act('change_address');
    await expectGoesOn(run, 1, 90_000);
  });
});
