import { afterAll, beforeAll, expect, test } from 'vitest';
import { expectExactLines, makeInput, parseLines } from '../support/batch.ts';
import type { Input, Results } from '../support/batch.ts';
import { startS3Server } from '../support/s3-server.ts';
import type { S3Server } from '../support/s3-server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';
import { expectExit, startSite } from '../support/worker-pod.ts';
import type { WorkerPod, WorkerSite } from '../support/worker-pod.ts';
import { LONG } from '../support/chaos.ts';

const ANNOTATIONS = { 'input-file-id': 'file-in', endpoint: '/v1/chat/completions' };
const CONCURRENCY = 16;
/** About 200 lines a second, so that each commit has some hundreds. */
const STEADY = ['--profile', 'small'];
const SLOWLY = JSON.stringify({ client: { max_concurrency: CONCURRENCY } });

let s3: S3Server;

beforeAll(async () => {
  s3 = await startS3Server();
});

afterAll(async () => {
  await s3[Symbol.asyncDispose]();
});

/** The two files as the final document names them. */
async function results(site: WorkerSite): Promise<Results> {
  const final = await site.final();
  const read = async (key: string | undefined) => (key === undefined ? '' : site.read(key));
  const output = parseLines(await read(final?.output?.key));
  const error = parseLines(await read(final?.error?.key));
  expect(final?.request_counts).toEqual({
    total: output.length + error.length,
    completed: output.length,
    failed: error.length,
  });
  return { output, error };
}

async function expectAll(site: WorkerSite, input: Input): Promise<void> {
  const found = await results(site);
  expectExactLines(found, input);
  expect(found.error).toEqual([]);
  expect(await site.final()).toMatchObject({ state: 'completed' });
}

/** Until a pod has committed so many lines in all. */
async function untilCommitted(site: WorkerSite, pod: WorkerPod, lines: number): Promise<void> {
  const what = `${lines} lines by\n${pod.text()}`;
  await until(
    async () => {
      const counts = (await site.progress())?.request_counts;
      return counts !== null && counts !== undefined && counts.completed >= lines;
    },
    { what },
  );
}

async function asked(engine: VllmProcess): Promise<number> {
  return (await engine.requests()).length;
}

test.runIf(LONG)(
  'three pods killed in mid-run: each line is answered once, and only what was in hand is asked again',
  async () => {
    await using engine = await startVllmProcess({ flags: STEADY });
    await using site = await startSite({ engine: engine.url, s3 });
    const input = makeInput(2_000);
    await site.upload('file-in', input.text);
    site.job = { annotations: { ...ANNOTATIONS, aibrix: SLOWLY } };
    for (const lines of [1, 500, 1_000]) {
      const pod = site.start();
      await untilCommitted(site, pod, lines);
      expect(await pod.kill('SIGKILL')).toBeNull();
    }
    const last = site.start();
    await expectExit(last, 0);
    await expectAll(site, input);
    const { pod } = (await site.final()) ?? {};
    expect(pod).toMatchObject({ uid: last.uid, attempt: 4 });
    // What a killed pod had not committed is asked again: answers of two seconds, and what was in flight.
    expect(await asked(engine)).toBeGreaterThan(2_000);
    expect(await site.keys(`kubernetes/${site.uid}/segments/`)).toEqual([]);
  },
);

test('two live pods cost double work and never a double line', async () => {
  await using engine = await startVllmProcess({ flags: STEADY });
  await using site = await startSite({ engine: engine.url });
  const input = makeInput(1_200);
  await site.upload('file-in', input.text);
  site.job = { annotations: { ...ANNOTATIONS, aibrix: SLOWLY } };
  const pods = [site.start(), site.start()];
  expect(await Promise.all(pods.map(({ exited }) => exited))).toEqual([0, 0]);
  await expectAll(site, input);
  expect(await asked(engine)).toBeGreaterThan(1_200);
  // Both have concluded from one seal: of two, one would be the other's to heed.
  const sealed = pods.filter((pod) => pod.log.some(({ msg }) => msg === 'batch is over'));
  expect(sealed.length).toBeGreaterThanOrEqual(1);
});

test.runIf(LONG)(
  'a pod that sleeps through the end of its batch, as on a lost node, changes nothing when it is back',
  async () => {
    await using engine = await startVllmProcess({ flags: STEADY });
    await using site = await startSite({ engine: engine.url });
    const input = makeInput(1_200);
    await site.upload('file-in', input.text);
    site.job = { annotations: { ...ANNOTATIONS, aibrix: SLOWLY } };
    const lost = site.start();
    await untilCommitted(site, lost, 1);
    process.kill(lost.pid, 'SIGSTOP');
    const other = site.start();
    await expectExit(other, 0);
    const before = await site.final();
    process.kill(lost.pid, 'SIGCONT');
    await expectExit(lost, 0);
    expect(await site.final()).toEqual(before);
    await expectAll(site, input);
    expect(await site.keys(`kubernetes/${site.uid}/segments/`)).toEqual([]);
  },
);

test.runIf(LONG)(
  'a container that starts again in its pod goes on, under another name',
  async () => {
    await using engine = await startVllmProcess({ flags: STEADY });
    await using site = await startSite({ engine: engine.url });
    const input = makeInput(1_200);
    await site.upload('file-in', input.text);
    site.job = { annotations: { ...ANNOTATIONS, aibrix: SLOWLY } };
    const own = { POD_UID: 'one-pod' };
    const first = site.start(own);
    await untilCommitted(site, first, 1);
    await first.kill('SIGKILL');
    const again = site.start(own);
    await expectExit(again, 0);
    await expectAll(site, input);
    const writers = await site.keys(`kubernetes/${site.uid}/writers/`);
    expect(writers.filter((key) => key.includes('/one-pod.'))).toHaveLength(2);
  },
);

test('SIGTERM hands back: answers are committed, progress says so, exit 75, and the next pod goes on', async () => {
  await using engine = await startVllmProcess({ flags: STEADY });
  await using site = await startSite({ engine: engine.url });
  const input = makeInput(1_200);
  await site.upload('file-in', input.text);
  site.job = { annotations: { ...ANNOTATIONS, aibrix: SLOWLY } };
  const first = site.start();
  await untilCommitted(site, first, 1);
  expect(await first.kill('SIGTERM')).toBe(75);
  const progress = await site.progress();
  expect(progress).toMatchObject({
    state: 'interrupted',
    exit_code: 75,
    reason: 'The pod got SIGTERM.',
  });
  const before = await asked(engine);
  expect(progress?.request_counts?.completed, 'all that was asked is answered and kept').toBe(
    before,
  );
  const second = site.start();
  await expectExit(second, 0);
  await expectAll(site, input);
  expect(await asked(engine), 'no line is asked twice').toBe(1_200);
});

test('a segment that storage has lost is noticed when files are written, and its lines are asked again', async () => {
  await using engine = await startVllmProcess({ flags: STEADY });
  await using site = await startSite({ engine: engine.url });
  const input = makeInput(1_200);
  await site.upload('file-in', input.text);
  site.job = { annotations: { ...ANNOTATIONS, aibrix: SLOWLY } };
  const pod = site.start();
  const segments = `kubernetes/${site.uid}/segments/`;
  const [lost = ''] = await until(async () => {
    const keys = await site.keys(segments);
    return keys.length > 0 && keys;
  });
  await site.storage.delete(lost);
  await expectExit(pod, 0);
  expect(pod.log.map(({ msg }) => msg)).toContain(
    'storage has lost answers; their lines are asked again',
  );
  await expectAll(site, input);
});
