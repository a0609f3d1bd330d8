import { setTimeout as sleep } from 'node:timers/promises';
import type { FaultInput } from '../simulators/cloud/faults.ts';
import type { Cloud } from './clouds.ts';
import type { LeasingSite } from './leasing-site.ts';
import { restartRedis } from './redis-again.ts';
import type { Sluice, SluiceOptions } from './server.ts';
import { until } from './until.ts';

/** One process of a deployment, which is started again whenever it was killed. */
interface Place {
  name: string;
  options: Partial<SluiceOptions>;
  current: Promise<Sluice>;
}

/** What may strike, and how often compared with the rest. */
const BLOWS = {
  kill: 8,
  killTwo: 2,
  redis: 1,
  preempt: 2,
  vanish: 1,
  status: 1,
  faults: 2,
} as const;
type Blow = keyof typeof BLOWS;

/** What providers were seen to do with calls; each is drawn for so many of them. */
const FAULTS: readonly FaultInput[] = [
  { kind: 'error_after', op: 'create', error: 'internal', rate: 0.12 },
  { kind: 'reset_after', op: 'create', rate: 0.08 },
  { kind: 'error', op: 'create', error: 'no_capacity', rate: 0.08 },
  { kind: 'error', op: 'create', error: 'internal', rate: 0.05 },
  { kind: 'lost', op: 'terminate', rate: 0.15 },
  { kind: 'error', op: 'terminate', error: 'internal', rate: 0.15 },
  { kind: 'reset_after', op: 'terminate', rate: 0.1 },
  { kind: 'repeat', op: 'list', rate: 0.1 },
  { kind: 'truncate', op: 'list', rate: 0.05 },
  { kind: 'error', op: 'any', error: 'rate_limited', retry_after: 1, rate: 0.03 },
  { kind: 'error', op: 'any', error: 'unavailable', rate: 0.05 },
];

/** Late addresses, lists that lag, ids that are not found yet, machines that end slowly. */
export const NASTY_KNOBS = {
  boot_ms: [200, 2_500],
  address_late_ms: 300,
  list_lag_ms: 700,
  get_404_ms: 300,
  gone_lag_ms: 500,
  terminate_ms: 300,
  refuse_share: 0.05,
};

export interface Chaos {
  /** Where the API answers now. */
  url(): Promise<string>;
  /** Strikes until the signal, then mends all, and resolves to how often each blow fell. */
  run(signal: AbortSignal): Promise<Record<Blow, number>>;
  [Symbol.asyncDispose](): Promise<void>;
}

export interface ChaosOptions {
  site: LeasingSite;
  random: () => number;
  /** Between two blows, ms. */
  pause: readonly [from: number, to: number];
}

/** Two workers, an API and a sweeper, each a process of its own that is killed and started again, and all they stand on. */
export async function startChaos({ site, random, pause }: ChaosOptions): Promise<Chaos> {
  const { cloud, redis } = site;
  let redisAgain: AsyncDisposable | undefined;

  async function start(options: Partial<SluiceOptions>): Promise<Sluice> {
    // It refuses to start while Redis is away, and somebody starts it again.
    for (let tries = 1; ; tries += 1) {
      try {
        return await site.start(options);
      } catch (error) {
        if (tries === 10) throw error;
        await sleep(200);
      }
    }
  }

  const places: Place[] = [
    { name: 'api', options: { roles: ['api'] } },
    { name: 'worker 1', options: { roles: ['worker'] } },
    { name: 'worker 2', options: { roles: ['worker'] } },
    { name: 'sweeper', options: { roles: ['sweeper'] } },
  ].map((place) => ({ ...place, current: start(place.options) }));
  await Promise.all(places.map(({ current }) => current));

  async function kill(): Promise<void> {
    const place = places[Math.floor(random() * places.length)];
    if (place === undefined) return;
    const { options, current } = place;
    place.current = current.then(async (sluice) => {
      await sluice.kill();
      return start(options);
    });
    place.current.catch(() => undefined); // whoever waits for it is told
  }

  async function restart(): Promise<void> {
    if (redisAgain === undefined) await redis.kill();
    else await redisAgain[Symbol.asyncDispose]();
    await sleep(random() * 500);
    redisAgain = restartRedis(redis);
  }

  const strikes: Record<Blow, () => Promise<unknown>> = {
    kill,
    killTwo: async () => Promise.all([kill(), kill()]),
    redis: restart,
    preempt: async () => strikeMachine(cloud, random, 'preempt'),
    vanish: async () => strikeMachine(cloud, random, 'vanish'),
    status: async () => strikeMachine(cloud, random, 'status', { status: 'EXITED' }),
    faults: async () => cloud.control.setFaults(FAULTS.filter(() => random() < 0.6)),
  };

  async function run(signal: AbortSignal): Promise<Record<Blow, number>> {
    const fell = { kill: 0, killTwo: 0, redis: 0, preempt: 0, vanish: 0, status: 0, faults: 0 };
    await cloud.control.setFaults(FAULTS);
    while (!signal.aborted) {
      const [from, to] = pause;
      await sleep(from + (to - from) * random());
      const blow = draw(random);
      fell[blow] += 1;
      await strikes[blow]();
    }
    await cloud.control.setFaults([]);
    await Promise.all(places.map(({ current }) => current));
    return fell;
  }

  return {
    url: async () => (await places[0]?.current)?.url ?? '',
    run,
    async [Symbol.asyncDispose]() {
      await Promise.allSettled(places.map(({ current }) => current));
      await redisAgain?.[Symbol.asyncDispose]();
    },
  };
}

function draw(random: () => number): Blow {
  const all = Object.entries(BLOWS) as [Blow, number][]; // its keys are those of the table above
  let left = random() * all.reduce((sum, [, weight]) => sum + weight, 0);
  for (const [blow, weight] of all) {
    left -= weight;
    if (left < 0) return blow;
  }
  return 'kill';
}

/** Something happens to one of the machines that are there. */
async function strikeMachine(
  { control }: Cloud,
  random: () => number,
  act: 'preempt' | 'vanish' | 'status',
  options?: Record<string, unknown>,
): Promise<void> {
  const machines = await control.inventory();
  const machine = machines[Math.floor(random() * machines.length)];
  if (machine === undefined) return;
  // It may end between the look and the blow.
  await control.act(machine.id, act, options).catch(() => undefined);
}

/** Asks until somebody answers: the API, or Redis behind it, may be away at this moment. */
export async function insist<T>(ask: (url: string) => Promise<T>, chaos: Chaos): Promise<T> {
  let last: unknown;
  return until(
    async () => {
      try {
        return { answer: await ask(await chaos.url()) };
      } catch (error) {
        last = error;
        return undefined;
      }
    },
    { timeoutMs: 60_000, everyMs: 200, what: 'an answer of the API' },
  ).then(
    ({ answer }) => answer,
    (error: unknown) => {
      throw new Error(`${String(error)}: ${String(last)}`, { cause: error });
    },
  );
}
