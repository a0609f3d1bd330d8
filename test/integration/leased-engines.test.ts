import process from 'node:process';
import { setTimeout as delay } from 'node:timers/promises';
import * as fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { notFound } from '../../src/domain/errors.ts';
import { leaseAddress } from '../../src/domain/provision.ts';
import type { Connection, LeasedSite } from '../../src/runtimes/contract.ts';
import { createMetricsReader } from '../../src/dispatcher/engine-metrics.ts';
import { createEndpointRuntime } from '../../src/runtimes/endpoint.ts';
import { createRuntime } from '../../src/runtimes/runtime.ts';
import { createKeyPair } from '../../src/runtimes/ssh/keys.ts';
import { createMachineRuntime } from '../../src/runtimes/ssh/machine-runtime.ts';
import type { Machines } from '../../src/runtimes/ssh/machine-runtime.ts';
import { startVllm } from '../simulators/vllm/simulator.ts';
import { chatLines, openDispatchWorld } from '../support/dispatch-world.ts';
import { startSshMachine } from '../support/ssh-machine.ts';
import type { SshMachine } from '../support/ssh-machine.ts';
import { makeSpec } from '../support/template-spec.ts';
import { until } from '../support/until.ts';

const NEVER = new AbortController().signal;
const ADDRESS = leaseAddress('prov_a');

interface World extends AsyncDisposable {
  runtime: ReturnType<typeof createRuntime>;
  /** How often it was asked where the machine is. */
  asked(): number;
}

function runtimeFor(
  to: SshMachine,
  more: Partial<Parameters<typeof createRuntime>[0]> = {},
): World {
  let asked = 0;
  const runtime = createRuntime({
    endpoint: createEndpointRuntime({
      engineApiKey: undefined,
      engineUrls: [],
      connectTimeout: 1_000,
    }),
    privateKey: to.key.privateKey,
    async siteOf(address): Promise<LeasedSite> {
      asked += 1;
      if (address !== ADDRESS) throw notFound('provision_not_found', `${address} is not there`);
      return to.site();
    },
    connectTimeout: 2_000,
    ...more,
  });
  return { runtime, asked: () => asked, [Symbol.asyncDispose]: async () => runtime.close() };
}

/** Starts an engine on the machine's own loopback, as its users would; resolves when it listens. */
async function startEngine({ machine }: SshMachine, words = ''): Promise<void> {
  const listening = machine.engines().filter(({ healthy_at: at }) => at !== null).length;
  await machine.exec(
    `setsid vllm serve org/model --host 127.0.0.1 --port 8000 --served-model-name sim-model ${words} </dev/null >/tmp/engine.log 2>&1 &`,
  );
  await until(
    () => machine.engines().filter(({ healthy_at: at }) => at !== null).length > listening,
    { what: 'the engine' },
  );
}

async function stopEngine({ machine }: SshMachine): Promise<void> {
  const { pid } = machine.engines().findLast(({ ended_at: at }) => at === null) ?? { pid: 0 };
  await machine.exec(`kill -KILL ${pid}`);
}

describe('a look at an engine on a leased machine', () => {
  let to: SshMachine;
  beforeAll(async () => {
    to = await startSshMachine();
  });
  afterAll(async () => to[Symbol.asyncDispose]());

  test('goes through one tunnel, which is closed when nobody looks any more', async () => {
    await using world = runtimeFor(to, { idleMs: 700 });
    const { runtime } = world;
    expect(await runtime.look(ADDRESS, ['sim-model'], NEVER)).toEqual({
      is: 'down',
      reason: expect.stringMatching(
        /^lease:\/\/prov_a does not answer: nothing listens on port 8000/,
      ),
    });
    await startEngine(to);
    const before = world.asked();
    const looks = Array.from({ length: 10 }, async () =>
      runtime.look(ADDRESS, ['sim-model'], NEVER),
    );
    for (const look of await Promise.all(looks)) {
      expect(look).toEqual({ is: 'healthy', models: ['sim-model'] });
    }
    expect(await to.connections()).toBe(1);
    // By each look, and for one connection.
    expect(world.asked() - before).toBeLessThanOrEqual(11);
    expect(await runtime.look(ADDRESS, ['another'], NEVER)).toEqual({
      is: 'unfit',
      reason: "lease://prov_a serves 'sim-model', but the input asks for 'another'",
    });
    await until(async () => (await to.connections()) === 0, { what: 'no tunnel' });
    expect(await runtime.look(ADDRESS, [], NEVER)).toEqual({ is: 'healthy', models: [] });
    await stopEngine(to);
  });

  test("asks the template's own path whether it is well, and takes no 404 there", async () => {
    await startEngine(to);
    const look = async (healthPath: string) => {
      await using world = runtimeFor(to, { siteOf: async () => ({ ...to.site(), healthPath }) });
      // Awaited here, as what is disposed next is the runtime.
      return await world.runtime.look(ADDRESS, [], NEVER);
    };
    expect(await look('/v1/models')).toEqual({ is: 'healthy', models: [] });
    expect(await look('/healthz')).toEqual({
      is: 'down',
      reason: 'lease://prov_a/healthz answers 404',
    });
    await stopEngine(to);
  });

  test("and its metrics are read where the template says, over the engine's own connection", async () => {
    await startEngine(to);
    const running = async (metricsPath?: string) => {
      const site = { ...to.site(), ...(metricsPath === undefined ? {} : { metricsPath }) };
      await using world = runtimeFor(to, { siteOf: async () => site });
      const connection = world.runtime.connect(ADDRESS);
      const metrics = await createMetricsReader(connection).read();
      await connection.close();
      return metrics?.running ?? null;
    };
    expect(await running()).toBe(0);
    expect(await running('/metrics?of=all')).toBe(0);
    expect(await running('/elsewhere')).toBeNull();
    await stopEngine(to);
  });

  test('tells why there is no way to its machine', async () => {
    const wrong = createKeyPair().privateKey;
    await using locked = runtimeFor(to, { privateKey: wrong, connectTimeout: 400 });
    expect(await locked.runtime.look(ADDRESS, [], NEVER)).toEqual({
      is: 'down',
      reason: expect.stringMatching(/does not let us in/),
    });
    await using gone = runtimeFor(to);
    expect(await gone.runtime.look(leaseAddress('prov_b'), [], NEVER)).toEqual({
      is: 'down',
      reason: expect.stringMatching(/^nobody knows where lease:\/\/prov_b is: .* is not there/),
    });
  });

  test('of an address of its own goes there, as ever', async () => {
    await using vllm = await startVllm({ models: ['m'], profile: 'small' });
    await using world = runtimeFor(to);
    expect(await world.runtime.look(vllm.url, ['m'], NEVER)).toMatchObject({ is: 'healthy' });
    const connection = world.runtime.connect(vllm.url);
    expect(connection.origin).toBe(vllm.url);
    await connection.close();
    expect(world.asked()).toBe(0);
  });
});

test('a machine that moved is found where it is, and another one in its place is refused', async () => {
  await using to = await startSshMachine();
  await using world = runtimeFor(to);
  await startEngine(to);
  const look = async () => world.runtime.look(ADDRESS, ['sim-model'], NEVER);
  expect(await look()).toMatchObject({ is: 'healthy' });
  const old = to.machine.address;
  expect(await to.machine.changeAddress()).not.toBe(old);
  // The old connection is silent: the signs of life find out.
  await until(async () => (await look()).is === 'healthy', { timeoutMs: 50_000, everyMs: 200 });
  await to.machine.changeHostKey();
  await until(async () => to.machine.answersSsh());
  await to.machine.cutSsh();
  const refused = await until(async () => {
    const seen = await look();
    return seen.is === 'down' && seen.reason.includes('pinned host key') ? seen : undefined;
  });
  expect(refused.reason).toMatch(/another machine answers there, or it was made anew/);
});

describe('lines of a job', () => {
  // With two the breaker sees too few failures to open.
  test.for([
    { maxConcurrency: 64, lines: 2_000 },
    { maxConcurrency: 2, lines: 200 },
  ])(
    'of which $maxConcurrency were in flight when the tunnel broke are asked again, and no attempt is counted',
    async ({ maxConcurrency, lines }) => {
      await using to = await startSshMachine();
      await startEngine(to);
      await using world = runtimeFor(to);
      await using work = await openDispatchWorld({
        engines: [ADDRESS],
        input: chatLines(lines),
        maxConcurrency,
        retry: { maxRetries: 0, baseMs: 1, capMs: 1 },
        deps: { connect: (address) => world.runtime.connect(address) },
      });
      const running = work.runAll();
      for (let cuts = 1; cuts <= 4; cuts += 1) {
        await until(() => (to.machine.engines()[0]?.requests ?? 0) > cuts * lines * 0.15, {
          everyMs: 5,
        });
        await to.machine.cutSsh();
      }
      expect(new Set(await running)).toEqual(new Set(['done']));
      const answers = [...(await work.ledger.answers()).values()];
      expect(answers).toHaveLength(lines);
      expect(answers.filter(({ kind }) => kind === 'error')).toEqual([]);
      expect(work.retries).toEqual([]);
      // Something was in flight each time.
      expect(to.machine.engines()[0]?.requests).toBeGreaterThan(lines);
    },
  );

  test('wait where another machine answers in the place of theirs, and none is told to it', async () => {
    await using to = await startSshMachine();
    await startEngine(to);
    await using world = runtimeFor(to);
    await using work = await openDispatchWorld({
      engines: [ADDRESS],
      input: chatLines(1_000),
      retry: { maxRetries: 10, baseMs: 1, capMs: 50 },
      deps: { connect: (address) => world.runtime.connect(address) },
    });
    const running = work.runAll();
    await until(() => (to.machine.engines()[0]?.requests ?? 0) > 100, { everyMs: 5 });
    await to.machine.changeHostKey();
    await until(async () => to.machine.answersSsh());
    await to.machine.cutSsh();
    const looked = async () => world.runtime.look(ADDRESS, [], NEVER);
    await until(async () => JSON.stringify(await looked()).includes('pinned host key'));
    expect(work.downs).toHaveLength(1);
    const heard = to.machine.engines()[0]?.requests;
    work.stop.abort();
    expect(await running).toEqual(['stopped']);
    expect(to.machine.engines()[0]?.requests).toBe(heard);
    const answers = [...(await work.ledger.answers()).values()];
    expect(answers.filter(({ kind }) => kind === 'error')).toEqual([]);
  });
});

function machinesFor({ key }: SshMachine): Machines {
  return createMachineRuntime({
    privateKey: key.privateKey,
    engineForm: () => 'process',
    modelCachePath: () => null,
    secret: async () => null,
    objectStore: () => null,
  });
}

/** Names of all that runs on the machine, but for what looks. */
async function processesOf({ machine }: SshMachine): Promise<string> {
  const { stdout } = await machine.exec('ps -e -o args= --sort args');
  const lines = stdout.split('\n').filter((line) => !/ps -e/.test(line));
  return lines.join('\n');
}

function openSockets(): number {
  return process.getActiveResourcesInfo().filter((name) => name === 'TCPSocketWrap').length;
}

/** What a process may do with an engine, in any order. */
const STEPS = ['look', 'connect', 'ask', 'close', 'cut', 'check', 'start', 'stop'] as const;

test('nothing is left of whatever was begun, once it is closed', async () => {
  await using to = await startSshMachine();
  const idle = await processesOf(to);
  const before = openSockets();
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.constantFrom(...STEPS), { minLength: 3, maxLength: 12 }),
      async (steps) => {
        const { runtime } = runtimeFor(to);
        const machines = machinesFor(to);
        const connections: Connection[] = [];
        const begun: Promise<unknown>[] = [];
        const order = { spec: makeSpec(), servingName: 'sim-model' };
        const doing: Record<(typeof STEPS)[number], () => Promise<unknown>> = {
          look: async () => runtime.look(ADDRESS, [], NEVER),
          connect: async () => connections.push(runtime.connect(ADDRESS)),
          async ask() {
            const connection = connections.at(-1);
            const path = '/health';
            const { origin = '' } = connection ?? {};
            const reply = await connection?.dispatcher.request({ origin, path, method: 'GET' });
            await reply?.body.dump();
          },
          close: async () => connections.at(0)?.close(),
          cut: async () => to.machine.cutSsh(),
          check: async () =>
            machines.check(to.site(), { gpuCount: 1, vramGb: 1, diskGb: 1 }, NEVER),
          start: async () => machines.start(to.site(), order, NEVER),
          stop: async () => machines.stop(to.site(), NEVER),
        };
        for (const step of steps) {
          begun.push(doing[step]());
          // Some are under way when the next begins.
          await Promise.race([begun.at(-1), delay(20)]).catch(() => {});
        }
        await Promise.all([
          runtime.close(),
          machines.close(),
          ...connections.map((c) => c.close()),
        ]);
        await Promise.allSettled(begun);
        await until(async () => (await to.connections()) === 0, { what: 'no connection' });
        const last = machinesFor(to);
        await last.stop(to.site(), NEVER);
        await last.close();
        await until(async () => (await processesOf(to)) === idle, {
          what: 'the processes that were there before',
        });
      },
    ),
    { numRuns: 12 },
  );
  // Here, too.
  expect(await until(() => openSockets() <= before, { what: 'no further socket' })).toBe(true);
});
