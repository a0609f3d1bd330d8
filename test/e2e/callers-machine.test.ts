import * as v from 'valibot';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { MachineProvider } from '../../src/domain/provision.ts';
import { createKeyPair } from '../../src/runtimes/ssh/keys.ts';
import {
  cancelJob,
  createTemplate,
  expectJobExact,
  leaseInput,
  post,
  readLeaseJob,
  untilJob,
  untilStatus,
} from '../support/leases.ts';
import type { Template } from '../support/leases.ts';
import { machineKnobs } from '../simulators/machines/knobs.ts';
import { upload } from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { startSshMachine, temporaryFile } from '../support/ssh-machine.ts';
import type { SshMachine } from '../support/ssh-machine.ts';
import { until } from '../support/until.ts';
import { LONG } from '../support/chaos.ts';

const ENGINE = { profile: 'zero', load_ms: 200 };
/** Nobody listens there: what is answered was answered on the machine. */
const NO_ENGINE = 'http://127.0.0.1:9';

/** A machine of the caller's and a server of engines that run already, which may log in to it. */
interface World extends AsyncDisposable {
  url: string;
  to: SshMachine;
  template: Template;
}

afterAll(requireNothingLeft);

/** For engines that start from now on. */
async function setEngine({ to }: World, knobs: object): Promise<void> {
  const { engine } = v.parse(machineKnobs, { engine: { ...ENGINE, ...knobs } });
  await to.machine.setEngine(engine);
}

async function openWorld(kind: 'container' | 'vm'): Promise<World> {
  await using stack = new AsyncDisposableStack();
  const to = stack.use(await startSshMachine(kind, { knobs: { engine: ENGINE } }));
  const key = stack.use(await temporaryFile(to.key.privateKey, 0o600));
  const redis = stack.use(await startRedis());
  const folder = stack.use(await makeFolder());
  const server = stack.use(
    await startSluice({
      dataDir: folder.path,
      redisUrl: redis.url,
      engines: [NO_ENGINE],
      env: { PROVISIONER: 'static', AIBRIX_BATCH_SSH_KEY_FILE: key.path },
    }),
  );
  const provider = kind === 'vm' ? 'lambdaCloud' : 'runpod';
  const template = await createTemplate(server.url, provider);
  const all = stack.move();
  return { url: server.url, to, template, [Symbol.asyncDispose]: () => all.disposeAsync() };
}

const TARGETS: Record<MachineProvider, string> = { runpod: 'RunPod', lambdaCloud: 'LambdaCloud' };

/** Creates a batch for the machine, as its owner would over the API. */
async function submit(
  { url, to, template }: World,
  input: { text: string },
  options: Record<string, unknown> = {},
  { name, version }: Template = template,
): Promise<string> {
  const { provider, login } = to.site();
  const { id } = await post<{ id: string }>(url, '/v1/batches', {
    input_file_id: await upload(url, input.text),
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    aibrix: {
      model_template: { name, version },
      runtime: { target: TARGETS[provider], options: { host: login.host, ...options } },
    },
  });
  return id.replace(/^batch_/, 'job_');
}

interface Provision {
  id: string;
  owner: string;
  provider: string;
  status: string;
  error_message: string;
  machine: unknown;
  raw_json: string;
}

async function provisionsOf(url: string, job: string): Promise<Provision[]> {
  const answer = await fetch(`${url}/api/v1/provisions?job_id=${job}`);
  const { provisions } = (await answer.json()) as { provisions: Provision[] }; // has tests of its own
  return provisions;
}

async function untilReleased(url: string, job: string): Promise<Provision> {
  return until(
    async () => {
      const [only] = await provisionsOf(url, job);
      return only?.status === 'released' ? only : undefined;
    },
    { timeoutMs: 30_000, what: `the release of ${job}` },
  );
}

/** Engines that live: one that is killed while it loads reports no end. */
async function running({ machine }: SshMachine): Promise<number> {
  const pids = machine.engines().map(({ pid }) => pid);
  const { stdout } = await machine.exec(
    `for p in ${pids.join(' ')}; do kill -0 $p 2>/dev/null && echo $p; done`,
  );
  return stdout.split('\n').filter(Boolean).length;
}

describe.for(['container', 'vm'] as const)('a %s of the caller', (kind) => {
  let world: World;
  beforeAll(async () => {
    world = await openWorld(kind);
  });
  afterAll(async () => world[Symbol.asyncDispose]());

  test('runs a batch, its engine is stopped, and the machine is left alone', async () => {
    const { url, to } = world;
    const input = leaseInput(30, `${kind}-run`);
    const id = await submit(world, input);
    const job = await untilStatus(url, id, 'completed');
    await expectJobExact(url, job, input);
    const released = await untilReleased(url, id);
    expect(released).toMatchObject({
      owner: 'caller',
      provider: to.site().provider,
      error_message: '',
      machine: null,
    });
    expect(JSON.parse(released.raw_json)).toMatchObject({
      owner: 'caller',
      attempts: [],
      publicIp: to.machine.address,
      // The first that it showed, since the caller named none.
      hostKey: to.hostKey.publicKey,
    });
    expect(await running(to)).toBe(0);
    expect(to.machine.engines()).toHaveLength(1);
    expect(to.machine.requests().filter(({ outcome }) => outcome === 'answered')).toHaveLength(30);
    expect(await to.machine.answersSsh()).toBe(true);
  });
});

test('what the request says of the engine comes beside its template', async () => {
  await using world = await openWorld('vm');
  const { url, to } = world;
  await setEngine(world, { load_ms: 60_000 });
  const id = await submit(world, leaseInput(3), {
    image: 'mine/vllm:7',
    vllm_args: ['--seed', '77'],
    ssh_port: 22,
    host_key: to.hostKey.publicKey,
  });
  const inspect = async () => {
    const { code, stdout } = await to.machine.exec('docker inspect sluice-engine');
    return code === 0 ? stdout : undefined;
  };
  const shown = await until(inspect, { what: 'a container', timeoutMs: 30_000 });
  expect(shown).toContain('mine/vllm:7');
  expect(shown).toMatch(/"--trust-remote-code",.*"--seed",\s*"77"/s);
  await cancelJob(url, id);
  await untilReleased(url, id);
  expect(await inspect()).toBeUndefined();
});

test('who cannot log in says as whom and where', async () => {
  await using world = await openWorld('container');
  const { url } = world;
  const of = (text: string) => (job: { error_message: string }) => job.error_message.includes(text);
  const nobody = await submit(world, leaseInput(3), { ssh_user: 'nobody-such' });
  const other = await submit(world, leaseInput(3), { ssh_port: 2_022 });
  const asked = await untilJob(url, nobody, of('nobody-such@'), { what: 'the user' });
  const refused = await untilJob(url, other, of(':2022 refuses connections'), { what: 'the port' });
  const explained = await (await fetch(`${url}/api/v1/jobs/${nobody}/explain`)).text();
  expect(explained).toContain(`the engine on ${world.to.machine.address}, which does not serve`);
  for (const { status } of [asked, refused]) expect(status).toBe('resource_preparing');
});

describe('on one machine', () => {
  let world: World;
  beforeAll(async () => {
    world = await openWorld('container');
  });
  afterAll(async () => world[Symbol.asyncDispose]());

  test('jobs of one template share the engine, and one of another template waits for its turn', async () => {
    const { url, to } = world;
    await setEngine(world, { load_ms: 2_000 });
    const inputs = ['a', 'b', 'c'].map((name) => leaseInput(10, `share-${name}`));
    const other = await createTemplate(url, 'runpod', { engine_args: { max_num_seqs: '7' } });
    const [a = '', b = ''] = await Promise.all(
      inputs.slice(0, 2).map((input) => submit(world, input)),
    );
    await untilJob(url, a, ({ status }) => status !== 'queued' && status !== 'resource_preparing');
    const c = await submit(world, inputs[2] ?? { text: '' }, {}, other);
    for (const [n, id] of [a, b, c].entries()) {
      const job = await untilStatus(url, id, 'completed', 60_000);
      const input = inputs[n];
      if (input !== undefined) await expectJobExact(url, job, input);
      await untilReleased(url, id);
    }
    expect(await running(to)).toBe(0);
  });

  test('another key than the named one ends the job before anything is asked of the machine', async () => {
    const { url, to } = world;
    const before = to.machine.engines().length;
    const { publicKey } = createKeyPair();
    const id = await submit(world, leaseInput(3), { host_key: publicKey });
    const job = await untilStatus(url, id, 'submit_failed');
    expect(job.error_code).toBe('ssh.host_key_changed');
    expect(job.error_message).toContain('not with the pinned host key');
    expect(job.error_message).toContain('host_key');
    await untilReleased(url, id);
    expect(to.machine.engines()).toHaveLength(before);
  });

  test.runIf(LONG)(
    'a machine that is away is waited for, with the reason; one that comes back with another key ends the job',
    async () => {
      const { url, to } = world;
      await to.machine.freeze(true);
      const input = leaseInput(5, 'away');
      const id = await submit(world, input);
      const away = await untilJob(url, id, ({ error_message: why }) => why.includes('waited for'), {
        timeoutMs: 60_000,
      });
      expect(away.status).toBe('resource_preparing');
      await to.machine.freeze(false);
      const job = await untilStatus(url, id, 'completed', 60_000);
      await expectJobExact(url, job, input);
      await untilReleased(url, id);

      await setEngine(world, { load_ms: 60_000 });
      const next = await submit(world, leaseInput(5, 'changed'));
      await untilJob(url, next, ({ status }) => status === 'submitting');
      await until(async () => (await running(to)) === 1, { what: 'an engine' });
      await to.machine.changeHostKey();
      await to.machine.cutSsh();
      const failed = await untilStatus(url, next, 'submit_failed', 60_000);
      expect(failed.error_code).toBe('ssh.host_key_changed');
      const left = await untilReleased(url, next);
      // Who answers there now is told nothing.
      expect(left.error_message).toMatch(/^The engine may still run on .*pinned host key/);
      expect(await running(to)).toBe(1);
    },
  );
});

test('a cancelled job stops its engine, and a machine of no use is said to be that', async () => {
  await using world = await openWorld('container');
  const { url, to } = world;
  await setEngine(world, { load_ms: 60_000 });
  const id = await submit(world, leaseInput(3));
  await until(async () => (await running(to)) === 1, { what: 'an engine', timeoutMs: 30_000 });
  await cancelJob(url, id);
  await untilReleased(url, id);
  await until(async () => (await running(to)) === 0, { what: 'the end of the engine' });
  await to.machine.setGpuFault('driver');
  const next = await submit(world, leaseInput(3));
  const job = await untilStatus(url, next, 'submit_failed');
  expect(job.error_code).toBe('machine_unfit');
  expect((await readLeaseJob(url, next)).error_message).toContain('nvidia-smi fails');
});
