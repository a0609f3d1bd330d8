import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { LONG } from '../support/chaos.ts';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { parseLines } from '../support/batch.ts';
import {
  CANCEL,
  CREATE_JOB,
  CREATE_MODEL,
  CREATE_TEMPLATE,
  INPUT,
  openShell,
  READ_RESULTS,
  STATE_FLOW,
  UPLOAD,
  watch,
} from '../support/guide.ts';
import type { Shell, Watched } from '../support/guide.ts';
import type { CloudKind } from '../support/clouds.ts';
import { H100, untilNoMachine } from '../support/leases.ts';
import { startLeasingSite } from '../support/leasing-site.ts';
import { requireProgram } from '../support/require-program.ts';
import { requireNothingLeft } from '../support/server.ts';
import { until } from '../support/until.ts';

/* The guide's walkthrough at each provider: machines of simulated clouds with a real sshd, and the vLLM simulator on them. */

beforeAll(() => {
  for (const program of ['jq', 'curl'] as const) requireProgram(program);
});
afterAll(requireNothingLeft);

/** The guide's template as it stands, with the accelerator as this provider's users write it. */
function templateFor(kind: CloudKind): string {
  const type = H100[kind === 'lambdaCloud' ? 'lambdaCloud' : 'runpod'];
  return CREATE_TEMPLATE.replace('"type": "H100"', `"type": "${type}"`);
}

/** Watches until the job is over and gives its machine back; every state on the way is one of these, in this order. */
async function watchUntil(shell: Shell, status: string, flow: readonly string[]): Promise<Watched> {
  let at = 0;
  return until(
    async () => {
      const now = await watch(shell);
      const step = flow.indexOf(now.status);
      if (step < at) throw new Error(`${now.status} after ${flow[at]}: ${JSON.stringify(now)}`);
      at = step;
      return now.status === status && now.provision?.status.startsWith('releas') === true
        ? now
        : undefined;
    },
    { timeoutMs: 60_000, everyMs: 100, what: `${status} and its machine's release` },
  );
}

/** Of the events, those that tell of the job's own states. */
function flowOf({ events }: Watched): string[] {
  const told = events.map(({ id }) => id);
  return told.filter((id) => STATE_FLOW.includes(id) || /cancel|fail/.test(id));
}

/** The older API of RunPod with `CHAOS_LONG=1` only: it differs in what the conformance suite tries. */
const KINDS = LONG
  ? (['runpod', 'runpod-v1', 'lambdaCloud'] as const)
  : (['runpod', 'lambdaCloud'] as const);

describe.concurrent.for(KINDS)('the guide at %s', (kind) => {
  test('runs a batch on a leased machine, command by command, and gives it back', async () => {
    await using site = await startLeasingSite({ kinds: [kind] });
    const { cloud, folder } = site;
    const shell = openShell(folder.path, site.url);
    await writeFile(join(folder.path, 'batch_input.jsonl'), INPUT);

    await shell.run(CREATE_MODEL);
    expect(shell.variables['MODEL_ID']).toBe('model-qwen2.5-7b-instruct');
    await shell.run(templateFor(kind));
    await shell.run(UPLOAD);
    await shell.run(CREATE_JOB);
    expect(shell.variables['JOB_ID']).toMatch(/^job_/);

    const done = await watchUntil(shell, 'completed', STATE_FLOW);
    expect(flowOf(done)).toEqual(STATE_FLOW);
    expect(done).toMatchObject({
      id: shell.variables['JOB_ID'],
      batch_id: expect.stringMatching(/^batch_/),
      provision_id: expect.stringMatching(/^prov_/),
      provision: { provider: cloud.provider, provision_id: done.provision_id },
    });

    await shell.run(READ_RESULTS);
    const output = await readFile(join(folder.path, 'batch_output.jsonl'), 'utf8');
    expect(parseLines(output)).toMatchObject([
      { custom_id: 'request-1', response: { status_code: 200 }, error: null },
      { custom_id: 'request-2', response: { status_code: 200 }, error: null },
    ]);

    await untilNoMachine(cloud);
    const asked = await cloud.control.asked();
    expect(asked.map(({ outcome }) => outcome)).toEqual(['answered', 'answered']);
    const { machines, totals } = await cloud.control.ledger();
    expect(totals).toMatchObject({ created: 1, alive: 0, created_twice: 0 });
    const [machine] = machines;
    expect(machine).toMatchObject({ end_reason: 'terminated', gpus: 1 });
    // The ids under which a person finds the machine at the provider.
    expect(done.provision?.raw_json).toContain(machine?.id);
    expect(done.provision?.raw_json).toContain(machine?.name);
    // Neither as it is nor in base64.
    expect(done.provision?.raw_json).not.toMatch(/PRIVATE KEY|LS0tLS1CRUdJTi/);

    // A second one, whose answers do not come before it is cancelled.
    const slow = { machine: { engine: { set: { latency_ms: 600_000 } } } };
    await cloud.control.setKnobs(slow);
    await shell.run(CREATE_JOB);
    const running = await until(
      async () => {
        const now = await watch(shell);
        return now.status === 'in_progress' ? now : undefined;
      },
      { timeoutMs: 60_000, everyMs: 100, what: 'in_progress' },
    );
    const second = (await cloud.control.inventory())[0];
    expect(running.provision?.raw_json).toContain(second?.id);
    await shell.run(CANCEL);
    const ending = ['in_progress', 'cancelling', 'finalizing', 'cancelled'];
    const cancelled = await watchUntil(shell, 'cancelled', ending);
    expect(flowOf(cancelled).at(-1)).toBe('cancelled');
    expect(cancelled.provision?.raw_json).toContain(second?.id);
    await untilNoMachine(cloud);
    expect((await cloud.control.ledger()).totals).toMatchObject({ created: 2, created_twice: 0 });
  }, 120_000);
});
