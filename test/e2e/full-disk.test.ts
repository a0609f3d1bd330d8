import { spawnSync } from 'node:child_process';
import { mkdir, open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import {
  expectExact,
  makeInput,
  readJob,
  submit,
  untilAnswered,
  untilFinal,
  upload,
} from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { requireNothingLeft, makeFolder, startSluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

/** A file system of 64 MiB; making one takes root, without which nothing here can be tried. */
async function mountSmall(parent: string) {
  const path = join(parent, 'small');
  await mkdir(path);
  const done = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', path]);
  if (done.status !== 0) throw new Error(`mount: ${String(done.stderr)}`);
  const filler = join(path, 'filler');
  return {
    path,
    async fill(): Promise<void> {
      const file = await open(filler, 'w');
      try {
        for (let bytes = 2 ** 20; bytes >= 4_096;) {
          const { bytesWritten } = await file.write(Buffer.alloc(bytes)).catch(() => ({
            bytesWritten: 0, // full for this size: try a smaller one
          }));
          if (bytesWritten < bytes) bytes /= 2;
        }
      } finally {
        await file.close();
      }
    },
    makeRoom: () => rm(filler, { force: true }),
    async [Symbol.asyncDispose]() {
      spawnSync('umount', ['-l', path]);
    },
  };
}

const canMount = process.platform === 'linux' && process.getuid?.() === 0;

test.runIf(canMount)(
  'a full disk: uploads are refused, a running job waits and goes on',
  async () => {
    await using redis = await startRedis();
    await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
    await engine.setConfig({ latency_ms: 100 });
    await using folder = await makeFolder();
    await using disk = await mountSmall(folder.path);
    await using sluice = await startSluice({
      dataDir: disk.path,
      engines: [engine.url],
      redisUrl: redis.url,
    });
    const input = makeInput(2_000);
    const id = await submit(sluice.url, input, { maxConcurrency: 40 });
    await untilAnswered(sluice.url, id, 1);
    await disk.fill();

    await expect(upload(sluice.url, makeInput(10_000).text)).rejects.toThrow(/503 .*no room left/);
    const warning = await sluice.untilLogged('answers cannot be stored, trying again', 60_000);
    expect(warning['reason']).toMatch(/no room left in .* free/);
    const { error_message: reason } = await readJob(sluice.url, id);
    expect(reason).toMatch(/^Answers cannot be stored: no room left/);

    await disk.makeRoom();
    await engine.setConfig({ latency_ms: 0 });
    await upload(sluice.url, makeInput(10).text);
    const batch = await untilFinal(sluice.url, id, 60_000);
    expect(batch.status).toBe('completed');
    await expectExact(sluice.url, batch, input);
    expect((await engine.counts()).repeated).toBe(0);
  },
);

test.runIf(canMount)(
  'a full disk under the embedded Redis: the job goes on when there is room',
  async () => {
    await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
    await engine.setConfig({ latency_ms: 100 });
    await using folder = await makeFolder();
    await using disk = await mountSmall(folder.path);
    await using sluice = await startSluice({ dataDir: disk.path, engines: [engine.url] });
    const input = makeInput(2_000);
    const id = await submit(sluice.url, input, { maxConcurrency: 40 });
    await untilAnswered(sluice.url, id, 1);
    await disk.fill();
    await sluice.untilLogged('answers cannot be stored, trying again', 60_000);
    await disk.makeRoom();
    await engine.setConfig({ latency_ms: 0 });
    const batch = await untilFinal(sluice.url, id, 60_000);
    expect(batch.status).toBe('completed');
    await expectExact(sluice.url, batch, input);
    // Disposing of the disk below must find nobody on it.
    await sluice.stop();
    await folder.untilUnused();
  },
);
