import type { JobRecord, Outcome } from '../../../src/domain/job.ts';
import type { Part } from '../../../src/domain/segment.ts';
import type { Holder, StoredPart, World } from './world.ts';
import { linesIn, maskOf, readJob } from './world.ts';

interface Offer {
  holder: Holder;
  part: StoredPart;
}

/** One token a line and kind, so that a lost or doubled count shows. */
function toCommit(lines: number, { n, token, offset, answers }: StoredPart): Part {
  const oks = [...answers.values()].filter(Boolean).length;
  const usage = {
    inputTokens: answers.size,
    cachedTokens: 1,
    outputTokens: oks,
    reasoningTokens: 0,
  };
  const mask = maskOf(lines, answers.keys());
  const counts = { ok: oks, failed: answers.size - oks };
  return { n, token, mask, ...counts, usage, offset, length: 10, crc: 0 };
}

/** Closes a process' open segment: into storage, then into Redis. */
export async function commitProcess(world: World, process: number): Promise<void> {
  const { random, stats } = world;
  const answers = world.open[process] ?? [];
  if (answers.length === 0) return;
  world.open[process] = [];
  const segment = random.name();
  const offers: Offer[] = [];
  for (const holder of new Set(answers.map((answer) => answer.holder))) {
    const own = answers.filter((answer) => answer.holder === holder);
    const part = {
      n: holder.shard.n,
      token: holder.token,
      offset: 10 * offers.length,
      answers: new Map(own.map(({ line, ok }) => [line, ok])),
    };
    offers.push({ holder, part });
  }
  world.storage.set(
    segment,
    offers.map(({ part }) => part),
  );
  if (random.chance(0.05)) {
    // Killed between segment and commit: the answers are in storage, and nobody knows.
    stats.lostSegments += 1;
    for (const { holder } of offers) holder.ended = true;
    return;
  }
  await commitParts(world, segment, offers);
}

/** Commits parts of a segment; of what overlaps, the lines that are not done are offered again. */
export async function commitParts(world: World, segment: string, offers: Offer[]): Promise<void> {
  const { store, stats, jobId, lines } = world;
  let offered = offers;
  while (offered.length > 0) {
    const parts = offered.map(({ part }) => toCommit(lines, part));
    const reply = await store.shards.commit(jobId, { id: segment, bytes: 10, sha256: 'ab' }, parts);
    if (reply.last) await finish(world);
    const again: Offer[] = [];
    for (const [i, { holder, part }] of offered.entries()) {
      const result = reply.parts[i];
      if (result?.outcome === 'committed') {
        holder.left = result.left;
        holder.committed.push({ segment, part });
      } else if (result?.outcome === 'overlap') {
        stats.overlap += 1;
        const done = linesIn(result.done);
        const rest = new Map([...part.answers].filter(([line]) => !done.has(line)));
        if (rest.size > 0) again.push({ holder, part: { ...part, answers: rest } });
      } else if (result) {
        stats[result.outcome] += 1;
        holder.ended = true;
      }
    }
    offered = again;
  }
}

/** Seals a job of which every shard is done. */
export async function finish(world: World): Promise<void> {
  const job = await readJob(world);
  if (job.state === 'in_progress') await seal(world, job, 'completed');
}

/** Moves the job to `finalizing`, unless somebody was faster. */
export async function seal(world: World, job: JobRecord, outcome: Outcome): Promise<void> {
  const moved = await world.store.jobs.move(job, 'finalizing', { outcome });
  if (moved !== 'stale') world.sealed = true;
}
