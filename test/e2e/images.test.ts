import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, symlinkSync } from 'node:fs';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import process from 'node:process';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { version } from '../../src/main/version.ts';
import { expectExact, makeInput, submit, untilFinal } from '../support/batch.ts';
import { readDockerfile } from '../support/deploy/dockerfile.ts';
import { ROOT } from '../support/deploy/manifests.ts';
import { layProductionPackages } from '../support/deploy/packages.ts';
import { buildPlainly } from '../support/deploy/plain-build.ts';
import type { PlainImage } from '../support/deploy/plain-build.ts';
import { startRedis } from '../support/redis.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

/** With it npm itself installs, as in the image, which needs the registry. */
const isLong = process.env['CHAOS_LONG'] === '1';
/** Only root can be another user. */
const isRoot = process.getuid?.() === 0;

function runIn(image: PlainImage, argv: readonly string[], env: Record<string, string> = {}) {
  const { program, args, options } = image.command(argv, env);
  return spawnSync(program, args, { ...options, encoding: 'utf8' });
}

function startIn(image: PlainImage, argv: readonly string[], env: Record<string, string> = {}) {
  const { program, args, options } = image.command(argv, env);
  const child = spawn(program, args, { ...options, stdio: ['ignore', 'pipe', 'pipe'] });
  const ended = once(child, 'exit').then(([code]) => code as number | null);
  let text = '';
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
  return {
    child,
    ended,
    log: () => text,
    async [Symbol.asyncDispose]() {
      if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL');
      await ended;
    },
  };
}

/** What the clone's npm is not: the machine's own, as the setup takes it. */
function npmPath(): string {
  const all = (process.env['PATH'] ?? '').split(':');
  return all.filter((folder) => !folder.endsWith('node_modules/.bin')).join(':');
}

function installPackages(script: string, { cwd }: { cwd: string }): boolean {
  if (!script.startsWith('npm ci')) return false;
  if (isLong) {
    const env = { ...process.env, PATH: npmPath() };
    const { status, stderr } = spawnSync('/bin/sh', ['-c', script], { cwd, env, encoding: 'utf8' });
    if (status !== 0) throw new Error(`${script}: ${stderr}`);
  } else layProductionPackages(cwd);
  return true;
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo; // it listens on TCP
  server.close();
  await once(server, 'close');
  return port;
}

describe('docker/Dockerfile, in a plain folder', () => {
  let image: PlainImage;
  beforeAll(() => {
    image = buildPlainly(readDockerfile('docker/Dockerfile'), { instead: installPackages });
    // What the image's user owns in it would be read-only in Kubernetes, too.
    if (isRoot) spawnSync('chown', ['-R', '0:0', join(image.root, 'app')]);
  });
  afterAll(() => image[Symbol.dispose]());

  test('has what production needs, and no more', () => {
    expect(runIn(image, ['sluice', '--version'])).toMatchObject({
      status: 0,
      stdout: `${version()}\n`,
      stderr: '',
    });
    const needed = ['bullmq', 'hono', '@aws-sdk/client-s3', 'ssh2', 'yaml'];
    const packages = join(image.root, 'app/node_modules');
    expect(needed.filter((name) => !existsSync(join(packages, name)))).toEqual([]);
    const left = ['node_modules/vitest', 'node_modules/typescript', 'test', 'package-lock.json'];
    expect(left.filter((name) => existsSync(join(image.root, 'app', name)))).toEqual([]);
    const managers = ['npm', 'npx', 'corepack'];
    const bin = join(image.root, 'usr/local/bin');
    expect(managers.filter((name) => existsSync(join(bin, name)))).toEqual([]);
    // Batches are submitted to Kubernetes with it.
    expect(existsSync(join(image.root, 'app/config/kubernetes/job-template.yaml'))).toBe(true);
  });

  test.skipIf(!isRoot)('lets its user write its data, and not itself', () => {
    const touch = (path: string) => runIn(image, ['touch', join(image.root, path)]).status;
    expect(touch('data/x')).toBe(0);
    const others = ['app/x', 'app/src/main/cli.ts', 'app/node_modules/.cache/sluice/x'];
    expect(others.map(touch)).toEqual([1, 1, 1]);
  });

  test('runs a batch, says how it is, and ends on SIGTERM', async () => {
    await using redis = await startRedis();
    await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
    const port = await freePort();
    const url = `http://127.0.0.1:${port}`;
    const env = {
      HTTP_ADDR: `127.0.0.1:${port}`,
      REDIS_URL: redis.url,
      ENGINE_URLS: engine.url,
      SHUTDOWN_GRACE: '1s',
    };
    await using server = startIn(image, [...image.entrypoint, ...image.cmd], env);
    await until(() => server.log().includes('Sluice is up'), {
      timeoutMs: 60_000,
      what: 'the start',
    });
    expect(runIn(image, image.healthcheck, env).status).toBe(0);
    const input = makeInput(100);
    const batch = await untilFinal(url, await submit(url, input));
    expect(batch.status).toBe('completed');
    await expectExact(url, batch, input);
    server.child.kill('SIGTERM');
    expect(await server.ended).toBe(0);
    expect(runIn(image, image.healthcheck, env).status).toBe(1);
  });

  test('is the worker of a Job under either name, and says what that lacks', () => {
    const ends = [['sluice', 'batch-worker'], ['aibrix_batch_worker']].map((argv) =>
      runIn(image, argv, { STORAGE_TYPE: 'LOCAL' }),
    );
    expect(ends.map(({ status }) => status)).toEqual([64, 64]);
    for (const { stderr } of ends) expect(stderr).toMatch(/KUBERNETES_SERVICE_HOST/);
  });
});

test('docker/vllm-mock/Dockerfile, in a plain folder, is an engine', async () => {
  using image = buildPlainly(readDockerfile('docker/vllm-mock/Dockerfile'), {
    instead: () => false,
  });
  const argv = [...image.entrypoint, '--port', '0', '--model', 'gpt-3.5-turbo'];
  await using engine = startIn(image, argv, { HOST: '127.0.0.1' });
  const [line] = await once(createInterface({ input: engine.child.stdout }), 'line');
  const { listening } = JSON.parse(String(line)) as { listening: string }; // as its --help says
  expect((await fetch(`${listening}/health`)).status).toBe(200);
  expect(await (await fetch(`${listening}/v1/models`)).json()).toMatchObject({
    data: [{ id: 'gpt-3.5-turbo' }],
  });
});

test('docker/simulators/Dockerfile, in a plain folder, is a cloud', async () => {
  const left: string[] = [];
  using image = buildPlainly(readDockerfile('docker/simulators/Dockerfile'), {
    instead(script, { cwd }) {
      if (script.startsWith('apt-get ')) left.push('apt-get');
      else if (script.startsWith('npm ci')) {
        symlinkSync(join(ROOT, 'node_modules'), join(cwd, 'node_modules'));
      } else return false;
      return true;
    },
  });
  expect(left).toEqual(['apt-get']);
  const words = image.cmd.map((word) => (word === '9000' ? '0' : word));
  const argv = [...image.entrypoint, ...words, '--host', '127.0.0.1', '--machines', 'none'];
  await using cloud = startIn(image, argv);
  const [line] = await once(createInterface({ input: cloud.child.stdout }), 'line');
  const { listening } = JSON.parse(String(line)) as { listening: string }; // as its --help says
  expect((await fetch(`${listening}/_sim/knobs`)).status).toBe(200);
  cloud.child.kill('SIGTERM');
  expect(await cloud.ended).toBe(0);
});
