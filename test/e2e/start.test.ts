import { createServer } from 'node:net';
import { once } from 'node:events';
import { afterAll, expect, test } from 'vitest';
import { createBatch, makeInput, upload } from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { requireNothingLeft, makeFolder, runCli, startSluice } from '../support/server.ts';

afterAll(requireNothingLeft);

test('a port that is taken is one clear line and exit code 1', async () => {
  await using folder = await makeFolder();
  const other = createServer().listen(0, '127.0.0.1');
  await once(other, 'listening');
  const address = other.address();
  const port = typeof address === 'object' ? address?.port : 0;
  try {
    const env = { DATA_DIR: folder.path, HTTP_ADDR: `127.0.0.1:${port}`, LOG_LEVEL: 'fatal' };
    const { code, stderr } = await runCli(['start'], env);
    expect(code).toBe(1);
    expect(stderr.trim().split('\n')).toHaveLength(1);
    expect(stderr).toContain(`127.0.0.1:${port} is in use`);
    expect(stderr).toContain('HTTP_ADDR');
  } finally {
    other.close();
  }
});

test('a Redis that cannot be reached is one clear line and exit code 1', async () => {
  await using folder = await makeFolder();
  const env = {
    DATA_DIR: folder.path,
    REDIS_URL: 'redis://user:hush@127.0.0.1:1',
    LOG_LEVEL: 'fatal',
  };
  const { code, stderr, stdout } = await runCli(['start'], env);
  expect(code).toBe(1);
  expect(stderr.trim().split('\n')).toHaveLength(1);
  expect(stderr).toMatch(/Redis at 127\.0\.0\.1:1 cannot be reached: .*ECONNREFUSED/);
  expect(stderr).toContain('REDIS_URL');
  expect(stderr + stdout).not.toContain('hush');
});

test('wrong settings are told all at once', async () => {
  await using folder = await makeFolder();
  const { code, stderr } = await runCli(['start'], {
    DATA_DIR: folder.path,
    HTTP_ADDR: 'nowhere',
    MAX_BATCH_LINES: '-1',
    ENGINE_URLS: 'ftp://x',
    SHUTDOWN_GRACE: 'soon',
  });
  expect(code).toBe(1);
  expect(stderr).toContain('4 settings are wrong');
  for (const name of ['HTTP_ADDR', 'MAX_BATCH_LINES', 'ENGINE_URLS', 'SHUTDOWN_GRACE']) {
    expect(stderr).toContain(name);
  }
  expect(stderr).not.toContain('    at ');
});

test('without an engine a batch is refused with what mends it; a second storage at one Redis refuses to work and says why', async () => {
  await using redis = await startRedis();
  await using first = await makeFolder();
  await using second = await makeFolder();
  await using sluice = await startSluice({ dataDir: first.path, redisUrl: redis.url });
  const file = await upload(sluice.url, makeInput(1).text);
  await expect(createBatch(sluice.url, file)).rejects.toThrow(
    /400 .*ENGINE_URLS.*aibrix\.runtime/s,
  );
  const env = {
    DATA_DIR: second.path,
    REDIS_URL: redis.url,
    HTTP_ADDR: '127.0.0.1:0',
    LOG_LEVEL: 'fatal',
  };
  const { code, stderr } = await runCli(['start'], env);
  expect(code).toBe(1);
  expect(stderr).toMatch(/belongs to the storage \w+, but the storage here is \w+/);
  expect(stderr).toContain('DATA_DIR');
  expect(await sluice.stop()).toMatchObject({ code: 0 });
});
