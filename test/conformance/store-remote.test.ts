import { afterAll, describe, expect, test } from 'vitest';
import { newRemoteBatch } from '../../src/domain/remote.ts';
import { createStore } from '../../src/store/store.ts';
import { BACK_ENDS, connectTo, newJob } from '../support/store-back-ends.ts';

describe.for(BACK_ENDS)('remote batches on %s', (backEnd) => {
  const redis = connectTo(backEnd);
  afterAll(() => redis.disconnect());
  const store = createStore({ redis });
  const { jobs, shards } = store;

  async function remoteJob() {
    const { job } = await jobs.create(newJob());
    await shards.write(job.id, [{ n: 0, first: 0, lines: 4, offset: 0, bytes: 9 }]);
    const remote = newRemoteBatch('http://service:8090');
    const set = { lines: 4, shards: 1, remote };
    await jobs.move(job, 'in_progress', { set });
    return { id: job.id, remote };
  }

  test('what is known of a batch changes only from what the caller read', async () => {
    const { id, remote } = await remoteJob();
    const mine = { ...remote, asked: { at: 1, by: 'me' } };
    const theirs = { ...remote, asked: { at: 1, by: 'them' } };
    expect(await jobs.noteRemote(id, { before: remote, now: mine })).toBe(true);
    expect(await jobs.noteRemote(id, { before: remote, now: theirs })).toBe(false);
    expect(await jobs.noteRemote(id, { before: remote, now: mine }), 'a repeat').toBe(true);
    expect((await jobs.get(id))?.remote).toEqual(mine);
    expect(await jobs.noteRemote('job_missing', { before: remote, now: mine })).toBe(false);
  });

  test('counts and usage are those that the batch had last; without a usage, that of before', async () => {
    const { id, remote } = await remoteJob();
    const same = { before: remote, now: remote };
    const usage = { inputTokens: 1, cachedTokens: 2, outputTokens: 3, reasoningTokens: 4 };
    expect(await jobs.noteRemote(id, same, { completed: 2, failed: 1, usage })).toBe(true);
    expect(await jobs.noteRemote(id, same, { completed: 1, failed: 0, usage: null })).toBe(true);
    expect(await jobs.get(id)).toMatchObject({ completed: 1, failed: 0, usage, remote });
  });

  test('a job that a service runs has no shard for anybody, and stands still once it is finalizing', async () => {
    const { id, remote } = await remoteJob();
    expect(await shards.open(id, 5)).toEqual([]);
    expect(await shards.pending(id)).toEqual([]);
    const job = await jobs.get(id);
    if (job === null) throw new Error('there is a job');
    await jobs.move(job, 'finalizing', { outcome: 'completed' });
    const end = { status: 'completed', output: 'o', error: null } as const;
    const now = { ...remote, end };
    expect(await jobs.noteRemote(id, { before: remote, now })).toBe(false);
    const sealed = await jobs.get(id);
    if (sealed === null) throw new Error('there is a job');
    await jobs.move(sealed, 'completed', { set: { completed: 3, failed: 1 } });
    expect(await jobs.get(id)).toMatchObject({ completed: 3, failed: 1, remote });
  });
});
