import { execFile } from 'node:child_process';
import { mkdtemp, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { pino } from 'pino';
import { expect, inject, onTestFinished, test } from 'vitest';
import { loadSettings } from '../../config/load.ts';
import { startSupervisor } from '../../src/main/supervisor.ts';
import { newProcessName, openSystem } from '../../src/main/system.ts';
import { startWorkerProcess } from '../../src/main/worker-process.ts';
import { until } from '../support/until.ts';

const ENVIRONMENT = { ENGINE_URLS: 'http://127.0.0.1:9', WORKER_PROCESSES: '2' };

async function makeFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'sluice-spawn-'));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** A supervisor whose processes would be of this Node, and what it logs. */
async function supervise(execPath: string) {
  const logs: Record<string, unknown>[] = [];
  const namespace = newProcessName('test');
  const system = await openSystem({
    settings: loadSettings({
      ...ENVIRONMENT,
      DATA_DIR: await makeFolder(),
      REDIS_URL: inject('redisUrl'),
    }),
    log: pino({ level: 'info' }, { write: (line) => void logs.push(JSON.parse(line)) }),
    namespace,
  });
  const supervisor = await startSupervisor(system, { execPath });
  return {
    supervisor,
    system,
    logged: (message: string) => logs.filter(({ msg }) => msg === message),
    async [Symbol.asyncDispose]() {
      await supervisor.close();
      await system.close();
    },
  };
}

test('worker processes that cannot be started are tried again, ever later, until they can', async () => {
  const execPath = join(await makeFolder(), 'node');
  await using supervised = await supervise(execPath);
  const { supervisor, system, logged } = supervised;
  const ended = () => logged('worker process ended').filter(({ worker }) => worker === 1);
  await until(() => ended().length >= 3, { timeoutMs: 10_000 });
  for (const death of ended()) {
    expect(death).toMatchObject({
      code: null,
      signal: null,
      error: expect.stringMatching(/ENOENT/),
    });
  }
  expect(ended().slice(0, 3)).toMatchObject([
    { quickDeaths: 1, restartInMs: 250 },
    { quickDeaths: 2, restartInMs: 500 },
    { quickDeaths: 3, restartInMs: 1_000 },
  ]);
  expect(logged('worker process started'), 'none was').toEqual([]);
  expect(supervisor.load()).toMatchObject({ unsent: 0, inFlight: 0 });
  expect((await system.metrics.render()).body).toContain('sluice_');

  await symlink(process.execPath, execPath);
  await until(async () => (await system.patient.store.nodes.dispatchers()) === 2, {
    timeoutMs: 20_000,
    what: 'both work',
  });
  const workers = logged('worker process started').map(({ worker }) => worker);
  expect(new Set(workers)).toEqual(new Set([1, 2]));
});

test('a supervisor stops while none of its processes can be started', async () => {
  const supervised = await supervise('/nowhere/node');
  await supervised[Symbol.asyncDispose]();
  expect(supervised.logged('worker process ended').length).toBeGreaterThanOrEqual(2);
});

test.for([
  ['there is no such program', '/nowhere/node', /ENOENT/],
  ['it may not be run', '/dev/null', /EACCES/],
  // What Node throws instead of telling it later.
  ['Node refuses to try', 'no\0de', /null bytes/],
] as const)('%s: a process that has ended, and says why', async ([, execPath, why]) => {
  const settings = loadSettings({ ...ENVIRONMENT, DATA_DIR: await makeFolder() });
  const order = { settings, logLevel: 'fatal', namespace: 'test', name: 'w' };
  const child = startWorkerProcess(order, { execPath });
  expect([child.isOver, child.pid]).toEqual([true, undefined]);
  child.go({ number: 1 });
  child.kill('SIGTERM');
  const end = { code: null, signal: null, error: expect.stringMatching(why) };
  expect(await Promise.all([child.ended, child.up, child.silent])).toEqual([end, end, end]);
  expect(await child.report()).toEqual([]);
});

/** Opens files until there are no more to open, and then wants a worker process. */
const OUT_OF_FILES = `
  import { openSync } from 'node:fs';
  import { loadSettings } from '${new URL('../../config/load.ts', import.meta.url).href}';
  import { startWorkerProcess } from '${new URL('../../src/main/worker-process.ts', import.meta.url).href}';
  try {
    for (;;) openSync('/dev/null');
  } catch {}
  const settings = loadSettings({});
  const order = { settings, logLevel: 'fatal', namespace: 'test', name: 'w' };
  const child = startWorkerProcess(order);
  child.go({ number: 1 });
  process.stdout.write(JSON.stringify(await child.silent));
`;

test('a process that has no file left to open starts none, and lives on', async () => {
  const script = 'ulimit -n 64; exec "$0" --input-type=module --eval "$1"';
  const args = ['-c', script, process.execPath, OUT_OF_FILES];
  const { stdout } = await promisify(execFile)('/bin/sh', args);
  expect(JSON.parse(stdout)).toEqual({
    code: null,
    signal: null,
    error: expect.stringMatching(/EMFILE/),
  });
});
