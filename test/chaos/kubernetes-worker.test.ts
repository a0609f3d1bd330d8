import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { whyNoNamespaces } from '../simulators/kubernetes/simulator.ts';
import { makeInput } from '../support/batch.ts';
import type { Input } from '../support/batch.ts';
import { LONG } from '../support/chaos.ts';
import { at, startBatchCluster } from '../support/kube-batch.ts';
import type { BatchCluster, Loose } from '../support/kube-batch.ts';
import { until } from '../support/until.ts';

const why = await whyNoNamespaces();
const MODEL = 'gpt-3.5-turbo';
const LINES = LONG ? 6_000 : 2_000;
/** Beyond what is waited for anyway. */
const AWAY_MS = LONG ? 60_000 : 0;
const AIBRIX = JSON.stringify({ client: { max_concurrency: 16 } });

describe.skipIf(why !== undefined)(`a batch worker in a pod ${why ?? ''}`, () => {
  let world: BatchCluster;
  let input: Input;

  beforeAll(async () => {
    const nodes = ['node-1', 'node-2'].map((name) => ({ name, gpus: 1 }));
    world = await startBatchCluster({ nodes, knobs: { engine: { profile: 'small' } } });
    input = makeInput(LINES, { model: MODEL });
    await world.storage.put('files/file-in', [Buffer.from(input.text)]);
  });

  afterAll(async () => {
    await world?.[Symbol.asyncDispose]();
  });

  async function apply(name: string, edit?: (job: Loose) => void): Promise<void> {
    const annotations = {
      'input-file-id': 'file-in',
      endpoint: '/v1/chat/completions',
      aibrix: AIBRIX,
    };
    await world.apply(name, annotations, edit === undefined ? {} : { edit });
  }

  async function untilLive(job: string, other?: string): Promise<string> {
    return until(() => world.livePods(job).find((pod) => pod !== other), {
      timeoutMs: 60_000,
      what: 'a pod',
    });
  }

  test('is killed three times in mid-run: the Job completes, and every line is there once', async () => {
    await apply('killed');
    const dead: string[] = [];
    let answered = 0;
    for (let kills = 0; kills < 3; kills += 1) {
      await world.untilAnswered('killed', answered + 1);
      const { pod, request_counts: counts } = await until(async () => {
        const progress = await world.progress('killed');
        return progress !== null && !dead.includes(progress.pod.name) && progress;
      });
      answered = counts?.completed ?? 0;
      world.cluster.control.kill(pod.name, 'batch-worker', 'SIGKILL');
      dead.push(pod.name);
    }
    await world.untilCondition('killed', 'Complete');
    await world.expectAll('killed', input);
    expect(await world.final('killed')).toMatchObject({ state: 'completed', pod: { attempt: 4 } });
  });

  test('is on a node that is lost and comes back: two pods live, and every line is there once', async () => {
    await apply('partitioned', (job) => {
      // As a Job is that says nothing else: the next pod begins when the last one is told to go.
      delete at(job, 'spec')['podFailurePolicy'];
      delete at(job, 'spec')['podReplacementPolicy'];
    });
    await world.untilAnswered('partitioned', 1);
    const lost = await untilLive('partitioned');
    const pods = world.cluster.control.pods();
    const node = pods.find(({ metadata }) => metadata.name === lost)?.spec.nodeName ?? '';
    world.cluster.control.loseNode(node);
    const next = await untilLive('partitioned', lost);
    // The Job itself is not Complete while one of its pods is told to go and does not answer.
    const before = await until(async () => world.final('partitioned'), { timeoutMs: 60_000 });
    await world.expectAll('partitioned', input);
    const begun = new Set<string>();
    const writers = `kubernetes/${world.uidOf('partitioned')}/writers/`;
    for await (const key of world.storage.list(writers)) begun.add(key);
    expect(begun.size, `${lost} and ${next} have both begun`).toBe(2);
    world.cluster.control.bringNodeBack(node);
    await world.untilCondition('partitioned', 'Complete');
    expect(await world.final('partitioned')).toEqual(before);
    await world.expectAll('partitioned', input);
  });

  test.runIf(LONG)('has its engine killed in mid-run, and goes on when that is back', async () => {
    await apply('engine');
    await world.untilAnswered('engine', 1);
    const pod = await untilLive('engine');
    world.cluster.control.kill(pod, 'llm-engine', 'SIGKILL');
    await world.untilCondition('engine', 'Complete');
    await world.expectAll('engine', input);
    expect(await world.final('engine')).toMatchObject({ pod: { name: pod, attempt: 1 } });
    expect(world.log(pod)).toContain('engine does not answer, sending stopped');
  });

  test.runIf(LONG)(
    'begins while the API server is away, and loses it again in mid-run',
    async () => {
      // Its pod is there before the API server goes: the worker waits at its engine until then.
      world.cluster.set({ engine: { profile: 'small', startDelayMs: 3_000 } });
      await apply('away', (job) => {
        const [engine] = [at(job, 'spec', 'template', 'spec', 'initContainers', 0)];
        // So that both start together, as in clusters without sidecars.
        delete engine['startupProbe'];
      });
      const pod = await untilLive('away');
      await world.cluster.control.setApiAway(true);
      await until(() => world.log(pod).includes('waiting for the API server'), {
        what: 'the worker waits',
      });
      await sleep(AWAY_MS);
      await world.cluster.control.setApiAway(false);
      await world.untilAnswered('away', 1);
      const before = (await world.progress('away'))?.request_counts?.completed ?? 0;
      await world.cluster.control.setApiAway(true);
      await world.untilAnswered('away', before + 1);
      await sleep(AWAY_MS);
      await world.cluster.control.setApiAway(false);
      await world.untilCondition('away', 'Complete');
      await world.expectAll('away', input);
      expect(await world.final('away')).toMatchObject({ state: 'completed', pod: { attempt: 1 } });
      world.cluster.set({ engine: { profile: 'small' } });
    },
  );
});
