import { readdir, readFile, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { makeInput, say, submit, untilAnswered, untilFinal } from '../support/batch.ts';
import { cleanOutput, expectUnharmed } from '../support/chaos.ts';
import { restartRedis } from '../support/redis-again.ts';
import { openRedis, startRedis } from '../support/redis.ts';
import { requireNothingLeft, startSluice } from '../support/server.ts';
import { openGround, openSite } from '../support/site.ts';
import { startTapProxy } from '../support/tap-proxy.ts';
import { until } from '../support/until.ts';
import { LONG } from '../support/chaos.ts';

const LINES = 2_200;
const CONCURRENCY = 24;
const LATENCY_MS = 80;
/** Of segments whose commits are forgotten or refused, and that were not committed anew. */
const MAY_LEAVE = 4;

const input = makeInput(LINES);
/** What an undisturbed run over it writes. */
let clean: string | undefined;

afterAll(requireNothingLeft);

/** The append-only file that Redis writes to now. */
async function tailFile(folder: string): Promise<string> {
  const names = await readdir(join(folder, 'appendonlydir'));
  const last = names
    .filter((name) => name.endsWith('.incr.aof'))
    .toSorted()
    .at(-1);
  if (last === undefined) throw new Error(`no append-only file in ${folder}`);
  return join(folder, 'appendonlydir', last);
}

/** The first end of a command, outside of MULTI and EXEC, that is not before `from`. */
function commandEnd(log: Buffer, from: number): number {
  let at = 0;
  let isMulti = false;
  function readNumber(): number {
    const end = log.indexOf('\r\n', at);
    const value = Number(log.toString('latin1', at + 1, end));
    at = end + 2;
    return value;
  }
  while (at < log.length && (at < from || isMulti)) {
    for (let left = readNumber(), first = true; left > 0; left -= 1, first = false) {
      const length = readNumber();
      if (first && length === 5) isMulti = log.toString('latin1', at, at + 5) === 'MULTI';
      if (first && length === 4 && log.toString('latin1', at, at + 4) === 'EXEC') isMulti = false;
      at += length + 2;
    }
  }
  return at;
}

test('Redis loses the last seconds of its append-only file', async () => {
  await using site = await openSite();
  const { redis, store, engine, shared, sluice } = site;
  clean ??= await cleanOutput(sluice.url, engine, input);
  await engine.setConfig({ latency_ms: LATENCY_MS });
  const before = await engine.counts();
  const id = await submit(sluice.url, input, { maxConcurrency: CONCURRENCY });
  const { request_counts: counts } = await untilAnswered(sluice.url, id, 1, 60_000);
  const path = await tailFile(redis.folder);
  const { length: kept } = await readFile(path);
  // Another commit, at least.
  await untilAnswered(sluice.url, id, (counts?.completed ?? 0) + 1, 60_000);
  const { requests } = await engine.counts();
  await redis.kill();
  const log = await readFile(path);
  const end = commandEnd(log, kept);
  const tail = log.subarray(end);
  expect(tail.includes('\r\ncompleted\r\n'), 'a commit is among what is lost').toBe(true);
  await truncate(path, end);
  say(`cut ${tail.length} of ${log.length} bytes`);

  await using again = restartRedis(redis);
  expect(again).toBeDefined();
  await engine.setConfig({ latency_ms: 5 });
  const batch = await untilFinal(sluice.url, id, 120_000);
  const askedTwice = (await engine.counts()).requests - before.requests - LINES;
  await expectUnharmed(
    { url: sluice.url, batch, input, dataDir: shared.dataDir, redis: store, clean },
    { name: 'cut append-only file', kills: 1, askedTwice, mayLeave: MAY_LEAVE },
  );
  const forgotten = requests - before.requests - (counts?.completed ?? 0);
  say(`${forgotten} lines were asked and not on record`);
  // A holder that Redis forgot asks on until its next commit is refused; what is on record nobody asks again.
  expect(askedTwice).toBeLessThanOrEqual(LINES - (counts?.completed ?? 0));
});

test.runIf(LONG)('Redis fails over to a replica that had stood still', async () => {
  await using ground = await openGround();
  const { redis: master, engine, shared } = ground;
  await using replica = await startRedis();
  await using link = await startTapProxy(master);
  await using tap = await startTapProxy(master);
  await using store = openRedis(replica.url);
  await store.client.call('REPLICAOF', link.host, link.port);
  const isUp = async () => (await store.client.info('replication')).includes('link_status:up');
  await until(isUp, { timeoutMs: 60_000, what: 'the replication' });
  const redisUrl = `redis://${tap.host}:${tap.port}`;
  await using sluice = await startSluice({ ...shared, redisUrl });
  clean ??= await cleanOutput(sluice.url, engine, input);
  await engine.setConfig({ latency_ms: LATENCY_MS });
  const before = await engine.counts();
  const id = await submit(sluice.url, input, { maxConcurrency: CONCURRENCY });
  const { request_counts: counts } = await untilAnswered(sluice.url, id, 1, 60_000);
  link.hold();
  await untilAnswered(sluice.url, id, (counts?.completed ?? 0) + 1, 60_000);
  const { requests } = await engine.counts();
  await master.kill();
  await store.client.call('REPLICAOF', 'NO', 'ONE');
  const known = await store.client.hget(`{${id.replace('batch_', 'job_')}}`, 'completed');
  tap.switchTo(replica);
  const failedOverAt = performance.now();
  await engine.setConfig({ latency_ms: 5 });
  const batch = await untilFinal(sluice.url, id, 120_000);
  say(`complete ${Math.round(performance.now() - failedOverAt)} ms after the failover`);
  expect(Number(known), 'the replica lacks a commit').toBe(counts?.completed);
  const askedTwice = (await engine.counts()).requests - before.requests - LINES;
  await expectUnharmed(
    { url: sluice.url, batch, input, dataDir: shared.dataDir, redis: store.client, clean },
    { name: 'failover', kills: 1, askedTwice, mayLeave: MAY_LEAVE },
  );
  const forgotten = requests - before.requests - (counts?.completed ?? 0);
  say(`${forgotten} lines were asked and not on record`);
  // A holder that Redis forgot asks on until its next commit is refused; what is on record nobody asks again.
  expect(askedTwice).toBeLessThanOrEqual(LINES - (counts?.completed ?? 0));
});
