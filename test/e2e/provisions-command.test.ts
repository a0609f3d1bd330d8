import { createHash } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { machineName } from '../../src/domain/lease.ts';
import { createKeyPair } from '../../src/runtimes/ssh/keys.ts';
import type { CloudSimulator } from '../simulators/cloud/start.ts';
import { call, FAST, podBody } from '../simulators/runpod/asking.ts';
import { startRunPod } from '../simulators/runpod/simulator.ts';
import { makeInput, openaiClient, submit, untilAnswered, untilFinal } from '../support/batch.ts';
import { makeFolder, requireNothingLeft, runCli, startSluice } from '../support/server.ts';
import type { CliResult, Sluice, TestFolder } from '../support/server.ts';
import { openSite } from '../support/site.ts';
import type { Site } from '../support/site.ts';
import { until } from '../support/until.ts';
import { LONG } from '../support/chaos.ts';

const ANSWERED = 5;

let site: Site;
let folder: TestFolder;
let cloud: CloudSimulator;
/** Leases from a simulated RunPod. */
let leasing: Sluice;

beforeAll(async () => {
  site = await openSite();
  folder = await makeFolder();
  const { privateKey } = createKeyPair();
  await writeFile(join(folder.path, 'id'), privateKey, { mode: 0o600 });
  cloud = await startRunPod({ machines: 'none', knobs: FAST });
  leasing = await startSluice({
    dataDir: folder.path,
    env: {
      PROVISIONER: 'runpod',
      RUNPOD_API_KEY: 'runpod-key',
      RUNPOD_BASE_URL: cloud.url,
      AIBRIX_BATCH_SSH_KEY_FILE: join(folder.path, 'id'),
    },
  });
});
afterAll(async () => {
  await site[Symbol.asyncDispose]();
  await leasing[Symbol.asyncDispose]();
  await cloud.stop();
  await folder[Symbol.asyncDispose]();
  requireNothingLeft();
});

function provisions(args: readonly string[], server: { url: string } = site): Promise<CliResult> {
  return runCli(['provisions', ...args], { SLUICE_URL: server.url });
}

/** A job that answers a few lines and then stands still; returns its batch. */
async function startJob(): Promise<string> {
  await site.engine.setFaults([{ kind: 'hang_headers', after: ANSWERED }]);
  const batch = await submit(site.url, makeInput(20), { maxConcurrency: 2 });
  await untilAnswered(site.url, batch, ANSWERED);
  return batch;
}

interface Listed {
  provisions: { id: string; job_id: string; status: string; machine: object | null }[];
}

async function listed(...args: string[]): Promise<Listed['provisions']> {
  const { stdout, stderr, code } = await provisions(['--json', ...args]);
  expect({ stderr, code }).toEqual({ stderr: '', code: 0 });
  return (JSON.parse(stdout) as Listed).provisions;
}

describe('sluice provisions', () => {
  test('lists what jobs run on, and with --all what they ran on', async () => {
    const none = await provisions([]);
    expect(none).toMatchObject({ code: 0, stdout: 'No provision is unreleased.\n' });
    const batch = await startJob();
    const job = batch.replace('batch_', 'job_');
    const { stdout, code } = await provisions([]);
    expect(code).toBe(0);
    const [head, row, ...rest] = stdout.split('\n');
    expect(head).toMatch(/^ID +JOB +STATE +PROVIDER +AGE/);
    expect(row).toMatch(new RegExp(`^prov_\\S+ +${job} +serving +static +\\d+s`));
    expect(rest).toEqual(['']);
    await openaiClient(site.url).batches.cancel(batch);
    await untilFinal(site.url, batch);
    await until(async () => (await listed()).length === 0, { what: 'the release' });
    const [released, ...others] = await listed('--all', '--job', batch, '--provider', 'static');
    expect(released).toMatchObject({ job_id: job, status: 'released', machine: null });
    expect(others).toEqual([]);
    expect(await listed('--all', '--provider', 'runpod')).toEqual([]);
    expect(await listed('--all', '--job', 'job_none')).toEqual([]);
  });

  test('says what is wrong with what it is asked', async () => {
    const wrong = await provisions(['--provider', 'aws']);
    expect(wrong.code).toBe(1);
    expect(wrong.stderr).toContain('static, runpod, lambdaCloud');
    const away = await provisions(['--url', 'http://127.0.0.1:1']);
    expect(away.code).toBe(1);
    expect(away.stderr).toContain('http://127.0.0.1:1 cannot be reached');
    expect(away.stderr).toContain('--url or SLUICE_URL');
    const missing = await provisions(['release', 'prov_none_0_0']);
    expect(missing.code).toBe(1);
    expect(missing.stderr).toContain("There is no provision 'prov_none_0_0'");
  });
});

describe('sluice provisions release', () => {
  test('asks what becomes of the job, and waits with --end until both are over', async () => {
    const batch = await startJob();
    const [live] = await listed();
    const asked = await provisions(['release', live?.id ?? '']);
    expect(asked.code).toBe(1);
    expect(asked.stderr).toContain('Add --rehome');
    const both = await provisions(['release', live?.id ?? '', '--rehome', '--end']);
    expect(both).toMatchObject({ code: 1, stderr: expect.stringContaining('--rehome or --end') });
    expect((await listed())[0]?.status).toBe('serving');
    const ended = await provisions(['release', live?.id ?? '', '--end']);
    expect(ended.code).toBe(0);
    expect(ended.stderr).toMatch(new RegExp(`${live?.id} is released\n$`));
    expect((await untilFinal(site.url, batch)).status).toBe('cancelled');
  });

  test('--rehome gives the job another provision', async () => {
    const batch = await startJob();
    const [live] = await listed('--job', batch);
    await site.engine.setFaults([]);
    const { code, stdout } = await provisions(['release', live?.id ?? '', '--rehome', '--json']);
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ id: live?.id, status: 'released' });
    expect((await untilFinal(site.url, batch)).status).toBe('completed');
    expect((await listed('--all', '--job', batch)).length).toBe(2);
  });
});

/** The stamp of the server that leases, and a name of its own. */
async function ownName(ageMs: number): Promise<string> {
  const identity = await readFile(join(folder.path, 'storage', 'identity'), 'utf8');
  const print = createHash('sha256').update(identity.trim()).digest('hex');
  const stamp = `sl-${print.slice(0, 8)}`;
  return machineName(stamp, '0123456789abcdef', 1, Date.now() - ageMs);
}

describe('sluice provisions machines', () => {
  test('lists what the provider has of this deployment, and whose it is', async () => {
    expect(await provisions(['machines'], leasing)).toMatchObject({
      code: 0,
      stdout: 'No machine is leased.\n',
    });
    await call(`${cloud.url}/v2`, 'POST', '/pods', podBody('training'));
    const made = await call(`${cloud.url}/v2`, 'POST', '/pods', podBody(await ownName(0)));
    const row = await until(
      async () => {
        const { stdout, code } = await provisions(['machines'], leasing);
        expect(code).toBe(0);
        return stdout.split('\n')[1] || undefined;
      },
      { everyMs: 1_000 },
    );
    expect(row).toMatch(
      new RegExp(`^runpod +${made.body.id} +1x .*H100.* +\\d+s +orphan +it is younger`),
    );
    expect(row).not.toContain('training');
    const { stdout } = await provisions(['machines', '--json'], leasing);
    expect(JSON.parse(stdout)).toMatchObject({
      machines: [{ id: made.body.id, use: 'orphan', provision_id: '' }],
      failures: [],
    });
  });

  test('says which provider does not answer', async () => {
    await cloud.control.setFaults([{ kind: 'error', op: 'list', error: 'unauthorized' }]);
    const { code, stderr } = await until(
      async () => {
        const result = await provisions(['machines'], leasing);
        return result.code === 0 ? undefined : result;
      },
      { everyMs: 1_000 },
    );
    expect(code).toBe(1);
    expect(stderr).toContain('runpod could not be asked: ');
    await cloud.control.setFaults([]);
  });

  test.runIf(LONG)('and the sweeper compares them with the records by itself', async () => {
    const line = await leasing.untilLogged('a machine that no record names is left alone');
    expect(line).toMatchObject({ provider: 'runpod', reason: 'it is younger than 15 minutes' });
    const metrics = await until(async () => {
      const text = await (await fetch(`${leasing.url}/metrics`)).text();
      return text.includes('sluice_leaked_machines{provider="runpod"} 1') ? text : undefined;
    });
    expect(metrics).toMatch(/^sluice_machines\{provider="runpod",state="running"\} 1$/m);
  });
});
