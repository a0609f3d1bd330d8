import { chmod, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { LONG } from '../support/chaos.ts';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { leasingEnvironment, makeKeyFile, startCloud } from '../support/clouds.ts';
import type { Cloud } from '../support/clouds.ts';
import {
  createJob,
  createTemplate,
  expectJobExact,
  leaseInput,
  machinesOf,
  post,
  readLeaseJob,
  untilJob,
  untilMachine,
  untilNoMachine,
  untilStatus,
} from '../support/leases.ts';
import type { LeaseJob } from '../support/leases.ts';
import { startLeasingSite } from '../support/leasing-site.ts';
import type { LeasingSite } from '../support/leasing-site.ts';
import { makeFolder, requireNothingLeft, runCli } from '../support/server.ts';
import type { Environment } from '../support/server.ts';

/*
 * Every entry of the guide's chapter on trouble, made to happen. Tests of one provider share a server and an account, and
 * each rents a type of its own, by which the account knows what is to go wrong.
 */

/** On RunPod. */
const SICK = {
  oom: 'NVIDIA L40S',
  noProgram: 'NVIDIA L4',
  gated: 'NVIDIA GeForce RTX 4090',
  neverUp: 'NVIDIA GeForce RTX 5090',
  noAddress: 'NVIDIA A40',
  soldOut: 'NVIDIA H200',
  noRelease: 'NVIDIA A100 80GB PCIe',
} as const;

const RUNPOD_KNOBS = {
  capacity: { [SICK.soldOut]: 0 },
  overrides: [
    { type: SICK.oom, machine: { engine: { crash: 'oom' } } },
    { type: SICK.noRelease, machine: { engine: { crash: 'arch' } } },
    { type: SICK.noProgram, machine: { missing_programs: ['vllm'] } },
    { type: SICK.gated, machine: { engine: { gated_token: 'hf_right' } } },
    { type: SICK.neverUp, machine: { engine: { never_healthy: true } } },
    { type: SICK.noAddress, address_never: true },
  ],
};

const LAMBDA_KNOBS = {
  capacity: { gpu_1x_h100_pcie: 0, gpu_1x_h100_sxm5: 0 },
  overrides: [{ type: 'gpu_1x_a10', machine: { registry_down: true } }],
};

let runpod: LeasingSite;
let lambda: LeasingSite;
beforeAll(async () => {
  [runpod, lambda] = await Promise.all([
    startLeasingSite({ cloud: { knobs: RUNPOD_KNOBS } }),
    startLeasingSite({
      kinds: ['lambdaCloud'],
      cloud: { knobs: LAMBDA_KNOBS },
      env: { CAPACITY_WAIT: '3s' },
    }),
  ]);
});
afterAll(async () => {
  await Promise.all([runpod?.[Symbol.asyncDispose](), lambda?.[Symbol.asyncDispose]()]);
  requireNothingLeft();
});

/** A job of one line for a machine with such a GPU. */
async function jobOn(
  { url, cloud }: LeasingSite,
  type: string,
  engine: Record<string, unknown> = {},
): Promise<string> {
  const changes = { accelerator: { type, vram_gb: 16 }, engine };
  const template = await createTemplate(url, cloud.provider, changes);
  return createJob(url, template, leaseInput(1, type));
}

/** What a failed job tells of its machine, by which a person would find it; and that nobody has to. */
async function expectReleased(site: LeasingSite, job: LeaseJob, type: string): Promise<void> {
  const machines = await machinesOf(site.cloud, type);
  expect(machines.length).toBeGreaterThan(0);
  const [first] = machines;
  expect(job.provision?.raw_json).toContain(first?.id);
  await untilNoMachine(site.cloud, { type });
  for (const { end_reason: reason } of await machinesOf(site.cloud, type)) {
    expect(reason).toBe('terminated');
  }
}

describe.concurrent('resource manager init: missing credential', () => {
  let cloud: Cloud;
  let env: Environment;
  let folder: Awaited<ReturnType<typeof makeFolder>>;
  beforeAll(async () => {
    folder = await makeFolder();
    const key = await makeKeyFile(folder.path);
    cloud = await startCloud('runpod', key, { machines: 'none' });
    env = { ...leasingEnvironment([cloud], key), DATA_DIR: join(folder.path, 'data') };
  });
  afterAll(async () => {
    await cloud[Symbol.asyncDispose]();
    await folder[Symbol.asyncDispose]();
  });

  async function refusal(changes: Environment, ...without: string[]): Promise<string> {
    const left = Object.entries(env).filter(([name]) => !without.includes(name));
    const all = { HTTP_ADDR: '127.0.0.1:0', ...Object.fromEntries(left), ...changes };
    const { code, stdout, stderr } = await runCli(['start'], all, { timeoutMs: 20_000 });
    expect({ code, said: stdout + stderr }).toMatchObject({ code: 1 });
    return stdout + stderr;
  }

  test('on RunPod, the start ends with the names of the settings that are missing', async () => {
    const [apiKey, publicKey, keyFile] = [
      'RUNPOD_API_KEY',
      'RUNPOD_SSH_PUBLIC_KEY',
      'AIBRIX_BATCH_SSH_KEY_FILE',
    ] as const;
    const said = await refusal({}, apiKey, publicKey, keyFile);
    expect(said).toContain('resource manager init: missing credential');
    for (const name of [apiKey, publicKey, keyFile]) expect(said).toContain(name);
  });

  test('on Lambda Cloud, too', async () => {
    const said = await refusal({ PROVISIONER: 'lambdaCloud' });
    expect(said).toContain('resource manager init: missing credential');
    expect(said).toContain('LAMBDA_CLOUD_API_KEY');
    expect(said).toContain('LAMBDA_CLOUD_SSH_KEYS');
  });

  test('the private key must be there, be its owner’s alone, and be the other half', async () => {
    expect(await refusal({}, 'AIBRIX_BATCH_SSH_KEY_FILE')).toContain('AIBRIX_BATCH_SSH_KEY_FILE');
    const open = await makeKeyFile(folder.path, 'open');
    await chmod(open.path, 0o644);
    expect(await refusal({ AIBRIX_BATCH_SSH_KEY_FILE: open.path })).toMatch(/chmod 600|0600/);
    const other = await makeKeyFile(folder.path, 'other');
    const said = await refusal({ AIBRIX_BATCH_SSH_KEY_FILE: other.path });
    expect(said).toContain('RUNPOD_SSH_PUBLIC_KEY');
    expect(said).toContain(other.path);
    await rm(other.path);
    expect(await refusal({ AIBRIX_BATCH_SSH_KEY_FILE: other.path })).toContain(other.path);
  });
});

describe.concurrent('resource_failed', () => {
  test('NoGpuType: RunPod knows no such GPU, and what it knows is named', async () => {
    const id = await jobOn(runpod, 'NVIDIA H9000 900GB');
    const job = await untilStatus(runpod.url, id, 'resource_failed');
    expect(job.error_code).toBe('NoGpuType');
    expect(job.error_message).toContain('accelerator.type');
    expect(await machinesOf(runpod.cloud, 'NVIDIA H9000 900GB')).toEqual([]);
  });

  test('NoCapacity: all that fits is asked for, the reason is visible, and CAPACITY_WAIT ends it', async () => {
    const id = await jobOn(lambda, 'H100');
    const waiting = await untilJob(
      lambda.url,
      id,
      ({ provision }) => (provision?.error_message ?? '') !== '',
      { what: 'a visible reason' },
    );
    expect(waiting.status).toBe('resource_preparing');
    expect(waiting.provision?.error_message).toMatch(/capacity/i);
    const job = await untilStatus(lambda.url, id, 'resource_failed');
    expect(job.error_code).toBe('NoCapacity');
    expect(job.error_message).toMatch(/CAPACITY_WAIT.*more regions, another GPU/);
    expect(await machinesOf(lambda.cloud, 'gpu_1x_h100_pcie')).toEqual([]);
  });

  // A catalog is kept for half a minute.
  test.runIf(LONG)(
    'a job whose GPU comes back within CAPACITY_WAIT runs',
    async () => {
      const id = await jobOn(runpod, SICK.soldOut);
      await untilJob(runpod.url, id, ({ provision }) =>
        /none of these left/.test(provision?.error_message ?? ''),
      );
      await runpod.cloud.control.setKnobs({ capacity: {} });
      const done = await untilStatus(runpod.url, id, 'completed', 60_000);
      await expectJobExact(runpod.url, done, leaseInput(1, SICK.soldOut));
      await untilNoMachine(runpod.cloud, { type: SICK.soldOut });
    },
    90_000,
  );
});

test.concurrent('stuck in resource_preparing: why is visible, and a cancel gives the machine back', async () => {
  const id = await jobOn(runpod, SICK.noAddress);
  await untilMachine(runpod.cloud, ({ type, phase }) => type === SICK.noAddress && phase === 'up');
  const stuck = await untilJob(runpod.url, id, ({ provision }) =>
    /address|public IP|ssh/i.test(provision?.error_message ?? ''),
  );
  expect(stuck.status).toBe('resource_preparing');
  await post(runpod.url, `/api/v1/jobs/${id}/cancel`, {});
  const job = await untilStatus(runpod.url, id, 'cancelled');
  await expectReleased(runpod, job, SICK.noAddress);
});

describe.concurrent('submit_failed', () => {
  test('an engine that crashes at load: its last lines are in the error', async () => {
    const id = await jobOn(runpod, SICK.oom);
    const job = await untilStatus(runpod.url, id, 'submit_failed');
    expect(job.error_message).toContain('torch.OutOfMemoryError: CUDA out of memory');
    await expectReleased(runpod, job, SICK.oom);
  });

  test('an image without vllm: what is missing is named', async () => {
    const id = await jobOn(runpod, SICK.noProgram);
    const job = await untilStatus(runpod.url, id, 'submit_failed');
    expect(job.error_message).toMatch(/vllm/);
    expect(job.error_message).toMatch(/not found|PATH|RUNPOD_IMAGE/);
    await expectReleased(runpod, job, SICK.noProgram);
  });

  test('a model that may not be downloaded: the hub’s refusal is in the error', async () => {
    const id = await jobOn(runpod, SICK.gated);
    const job = await untilStatus(runpod.url, id, 'submit_failed');
    expect(job.error_message).toContain('gated repo');
    await expectReleased(runpod, job, SICK.gated);
  });

  test('an engine that is never healthy is given up after ready_timeout_seconds', async () => {
    const id = await jobOn(runpod, SICK.neverUp, { ready_timeout_seconds: 10 });
    const job = await untilStatus(runpod.url, id, 'submit_failed');
    expect(job.error_message).toMatch(/ready_timeout_seconds|10 s/);
    await expectReleased(runpod, job, SICK.neverUp);
  });

  test('an image that Lambda’s machine cannot pull: docker’s words are in the error', async () => {
    const id = await jobOn(lambda, 'A10');
    const job = await untilStatus(lambda.url, id, 'submit_failed', 60_000);
    expect(job.error_message).toContain('registry-1.docker.io');
    await expectReleased(lambda, job, 'gpu_1x_a10');
  }, 90_000);
});

test.concurrent('resources remaining after a failed job: the record names them, and they are released once the provider lets go', async () => {
  const { cloud, url } = runpod;
  const id = await jobOn(runpod, SICK.noRelease);
  const match = await untilMachine(cloud, ({ type }) => type === SICK.noRelease);
  await cloud.control.setFaults([
    { kind: 'lost', op: 'terminate', match, count: 1 },
    { kind: 'error', op: 'terminate', match, error: 'internal', count: 2 },
    { kind: 'hang', op: 'terminate', match, delay_ms: 100, count: 1 },
  ]);
  const job = await untilStatus(url, id, 'submit_failed');
  expect(job.provision).toMatchObject({ raw_json: expect.stringContaining(match) });
  await untilNoMachine(cloud, { type: SICK.noRelease, timeoutMs: 40_000 });
  const after = await readLeaseJob(url, id);
  expect(after.provision).toMatchObject({ status: expect.stringMatching(/^releas/) });
  expect(after.provision?.raw_json).toContain(match);
  expect((await cloud.control.faults()).map(({ hits }) => hits)).toEqual([1, 2, 1]);
}, 90_000);
