import { describe, expect, test } from 'vitest';
import { processors } from '../../processors/index.ts';
import { pauseJob, resumeJob } from '../../processors/pause.ts';
import { settle, stopJob } from '../../processors/settle.ts';
import type { Delivery } from '../../queues/catalog.ts';
import { transient } from '../../src/domain/errors.ts';
import {
  isFinal,
  isOpen,
  isPaused,
  isSealed,
  JOB,
  JOB_STATES,
  OUTCOMES,
  wantsEngines,
} from '../../src/domain/job.ts';
import type { JobRecord, JobState, QueueName } from '../../src/domain/job.ts';
import { isReleased, PROVISION, PROVISION_STATES, wanted } from '../../src/domain/provision.ts';
import type { ProvisionRecord, ProvisionState } from '../../src/domain/provision.ts';
import { ADDRESS, openJobWorld } from '../support/job-world.ts';
import type { JobWorld } from '../support/job-world.ts';

const EVENTS = [
  'cancel',
  'pause',
  'resume',
  'expire',
  'fail',
  'engine lost',
  'machine lost',
  'storage down',
  'delivered twice',
  'killed before apply',
  'killed after apply',
] as const;
type Event = (typeof EVENTS)[number];

/**
 * Where a job is after an event, with 20 lines planned and one answered, and who serves it then. Pausing is a flag,
 * never a state. A second delivery and a process that died leave the job where the first one's work brought it.
 */
const JOB_TABLE: Record<JobState, Record<Event, JobState>> = {
  queued: {
    cancel: 'cancelled',
    pause: 'queued',
    resume: 'queued',
    expire: 'expired',
    fail: 'submit_failed',
    'engine lost': 'queued',
    'machine lost': 'queued',
    'storage down': 'queued',
    'delivered twice': 'resource_preparing',
    'killed before apply': 'queued',
    'killed after apply': 'resource_preparing',
  },
  resource_preparing: {
    cancel: 'cancelling',
    pause: 'resource_preparing',
    resume: 'resource_preparing',
    expire: 'cancelling',
    fail: 'cancelling',
    'engine lost': 'submitting',
    'machine lost': 'resource_preparing',
    'storage down': 'resource_preparing',
    'delivered twice': 'resource_preparing',
    'killed before apply': 'resource_preparing',
    'killed after apply': 'resource_preparing',
  },
  submitting: {
    cancel: 'cancelling',
    pause: 'submitting',
    resume: 'submitting',
    expire: 'cancelling',
    fail: 'cancelling',
    'engine lost': 'submitting',
    'machine lost': 'resource_preparing',
    'storage down': 'submitting',
    'delivered twice': 'submitting',
    'killed before apply': 'submitting',
    'killed after apply': 'submitting',
  },
  in_progress: {
    cancel: 'cancelling',
    pause: 'in_progress',
    resume: 'in_progress',
    expire: 'cancelling',
    fail: 'cancelling',
    'engine lost': 'submitting',
    'machine lost': 'resource_preparing',
    'storage down': 'in_progress',
    'delivered twice': 'in_progress',
    'killed before apply': 'in_progress',
    'killed after apply': 'in_progress',
  },
  cancelling: {
    cancel: 'cancelling',
    pause: 'cancelling',
    resume: 'cancelling',
    expire: 'cancelling',
    fail: 'cancelling',
    'engine lost': 'cancelling',
    'machine lost': 'cancelling',
    // Collecting needs no storage; the files wait for it afterwards.
    'storage down': 'finalizing',
    'delivered twice': 'finalizing',
    'killed before apply': 'cancelling',
    'killed after apply': 'finalizing',
  },
  finalizing: {
    cancel: 'finalizing',
    pause: 'finalizing',
    resume: 'finalizing',
    expire: 'finalizing',
    fail: 'finalizing',
    'engine lost': 'finalizing',
    'machine lost': 'finalizing',
    'storage down': 'finalizing',
    'delivered twice': 'cancelled',
    'killed before apply': 'finalizing',
    'killed after apply': 'cancelled',
  },
  completed: all('completed'),
  failed: all('failed'),
  expired: all('expired'),
  cancelled: all('cancelled'),
  resource_failed: all('resource_failed'),
  submit_failed: all('submit_failed'),
};

/** A final job stays what it is, whatever happens. */
function all<S extends string>(state: S): Record<Event, S> {
  return Object.fromEntries(EVENTS.map((event) => [event, state])) as Record<Event, S>; // each event is in it
}

type Server = QueueName | 'its provisions' | 'its shards' | 'nobody';

/** Who brings a job in this state on, whatever died: the sweeper adds a lost delivery of the queue anew. */
const SERVED_BY: Record<JobState, Server> = {
  queued: 'planning',
  resource_preparing: 'its provisions',
  submitting: 'its provisions',
  in_progress: 'its shards',
  cancelling: 'release',
  finalizing: 'release',
  completed: 'nobody',
  failed: 'nobody',
  expired: 'nobody',
  cancelled: 'nobody',
  resource_failed: 'nobody',
  submit_failed: 'nobody',
};

const STOPPED = (state: ProvisionState): ProvisionState =>
  state === 'released' ? 'released' : 'releasing';

/**
 * Where a provision of a running job is after an event. Stopping the job gives it back; only the look of submission
 * says that an engine is lost; a machine that is lost is taken off its job.
 */
const PROVISION_TABLE: Record<ProvisionState, Record<Event, ProvisionState>> = {
  intended: {
    cancel: 'releasing',
    pause: 'intended',
    resume: 'intended',
    expire: 'releasing',
    fail: 'releasing',
    'engine lost': 'intended',
    'machine lost': 'releasing',
    'storage down': 'intended',
    'delivered twice': 'starting',
    'killed before apply': 'intended',
    'killed after apply': 'starting',
  },
  creating: {
    cancel: 'releasing',
    pause: 'creating',
    resume: 'creating',
    expire: 'releasing',
    fail: 'releasing',
    'engine lost': 'creating',
    'machine lost': 'releasing',
    'storage down': 'creating',
    'delivered twice': 'starting',
    'killed before apply': 'creating',
    'killed after apply': 'starting',
  },
  booting: {
    cancel: 'releasing',
    pause: 'booting',
    resume: 'booting',
    expire: 'releasing',
    fail: 'releasing',
    'engine lost': 'booting',
    'machine lost': 'releasing',
    'storage down': 'booting',
    'delivered twice': 'starting',
    'killed before apply': 'booting',
    'killed after apply': 'starting',
  },
  starting: {
    cancel: 'releasing',
    pause: 'starting',
    resume: 'starting',
    expire: 'releasing',
    fail: 'releasing',
    'engine lost': 'starting',
    'machine lost': 'releasing',
    'storage down': 'starting',
    'delivered twice': 'serving',
    'killed before apply': 'starting',
    'killed after apply': 'serving',
  },
  serving: {
    cancel: 'releasing',
    pause: 'serving',
    resume: 'serving',
    expire: 'releasing',
    fail: 'releasing',
    'engine lost': 'starting',
    'machine lost': 'releasing',
    'storage down': 'serving',
    'delivered twice': 'serving',
    'killed before apply': 'serving',
    'killed after apply': 'serving',
  },
  releasing: {
    cancel: 'releasing',
    pause: 'releasing',
    resume: 'releasing',
    expire: 'releasing',
    fail: 'releasing',
    'engine lost': 'releasing',
    'machine lost': 'releasing',
    'storage down': 'releasing',
    'delivered twice': 'released',
    'killed before apply': 'releasing',
    'killed after apply': 'released',
  },
  released: all('released'),
};

/** The provision that a job in this state has, as far as it is. */
const ENGINE_OF: Record<JobState, ProvisionState | null> = {
  queued: null,
  resource_preparing: 'intended',
  submitting: 'starting',
  in_progress: 'serving',
  cancelling: 'releasing',
  finalizing: 'releasing',
  completed: 'released',
  failed: 'released',
  expired: 'released',
  cancelled: 'released',
  resource_failed: 'released',
  submit_failed: 'released',
};

async function engineLost({ job, provision, deps }: JobWorld): Promise<void> {
  // An engine that is lost was there: its provision has come as far as a look at the engine.
  if (!isReleased(provision.state)) provision.state = 'starting';
  await settle(job.id, deps);
}

async function machineLost({ job, provision, deps }: JobWorld): Promise<void> {
  if (!isReleased(provision.state)) await deps.advanceProvision({ ...provision }, 'releasing');
  await settle(job.id, deps);
}

async function happenTo(here: JobWorld, own: Delivery | null, event: Event): Promise<void> {
  const { job, deps, killed } = here;
  switch (event) {
    case 'cancel':
      await stopJob(job.id, { outcome: 'cancelled', event: '' }, deps);
      break;
    case 'expire':
      await stopJob(job.id, { outcome: 'expired', event: '' }, deps);
      break;
    case 'fail':
      // That no line is answered makes no difference: all of them belong into the error file.
      job.completed = 0;
      await stopJob(job.id, { outcome: 'submit_failed', event: '' }, deps);
      break;
    case 'engine lost':
      await engineLost(here);
      break;
    case 'machine lost':
      await machineLost(here);
      break;
    case 'pause':
      await pauseJob(job.id, 'ann', deps);
      // What is planned of a paused job is planned; an engine is not started.
      if (own !== null && own.entity !== job.id && own.queue !== 'release') await here.deliver(own);
      await settle(job.id, deps);
      break;
    case 'resume':
      job.pausedAt = 1;
      await resumeJob(job.id, deps);
      await settle(job.id, deps);
      break;
    case 'storage down':
      deps.storage.get = deps.storage.put = async () => {
        throw transient('storage.unavailable', 'storage is away');
      };
      if (own?.entity === job.id) await here.deliver(own);
      break;
    case 'delivered twice':
      if (own === null) break;
      await here.deliver(own);
      await here.deliver(own);
      break;
    case 'killed before apply':
    case 'killed after apply':
      killed.at = event === 'killed before apply' ? 'apply' : 'add';
      if (own !== null) await here.deliver(own);
      killed.at = null;
      break;
  }
}

function serverOf(state: JobState): Server {
  const { queue } = JOB[state];
  if (queue !== null) return queue;
  if (isFinal(state)) return 'nobody';
  return state === 'in_progress' ? 'its shards' : 'its provisions';
}

function ownDelivery(
  record: JobRecord | ProvisionRecord,
  queue: QueueName | null,
): Delivery | null {
  return queue === null ? null : { queue, entity: record.id, wake: record.wake };
}

const JOB_CELLS = JOB_STATES.flatMap((state) => EVENTS.map((event) => ({ state, event })));

describe('a job', () => {
  test('every state and event has a cell, and no cell is of an unknown one', () => {
    expect(Object.keys(JOB_TABLE)).toEqual([...JOB_STATES]);
    expect(Object.keys(SERVED_BY)).toEqual([...JOB_STATES]);
    for (const state of JOB_STATES) {
      expect(Object.keys(JOB_TABLE[state]).toSorted()).toEqual(EVENTS.toSorted());
      for (const event of EVENTS) expect(JOB_STATES).toContain(JOB_TABLE[state][event]);
    }
  });

  test.for(JOB_CELLS)('$state, $event', async ({ state, event }) => {
    const here = openJobWorld(state, ENGINE_OF[state]);
    const own = ownDelivery(here.job, JOB[state].queue);
    await happenTo(here, own, event);
    const expected = JOB_TABLE[state][event];
    expect(here.job.state).toBe(expected);
    expect(serverOf(here.job.state)).toBe(SERVED_BY[expected]);
  });

  test.for(JOB_STATES)('%s: a delivery that is not its own does nothing', async (state) => {
    for (const queue of ['planning', 'release'] as const) {
      for (const wake of queue === JOB[state].queue ? [2, 4] : [2, 3, 4]) {
        const here = openJobWorld(state, ENGINE_OF[state]);
        await here.deliver({ queue, entity: here.job.id, wake });
        expect(here.job.state).toBe(state);
        expect(here.moves).toEqual([]);
        expect(here.added).toEqual([]);
      }
    }
  });

  test.for(['queued', 'cancelling', 'finalizing'] as const)(
    '%s: killed anywhere, what is delivered or swept next brings it on',
    async (state) => {
      for (const at of ['apply', 'add'] as const) {
        const here = openJobWorld(state, ENGINE_OF[state]);
        const own = ownDelivery(here.job, JOB[state].queue);
        if (own === null) throw new Error('it has a queue');
        here.killed.at = at;
        await here.deliver(own);
        here.killed.at = null;
        const after = ownDelivery(here.job, JOB[here.job.state].queue);
        await here.deliver(after ?? own);
        expect(here.job.state).not.toBe(state);
      }
    },
  );

  test('finalizing: a file that breaks off in mid-assembly is written again later', async () => {
    const here = openJobWorld('finalizing', 'releasing');
    const own = { queue: 'release' as const, entity: here.job.id, wake: here.job.wake };
    const broken = Promise.withResolvers<never>();
    const { assemble } = here.deps;
    const { put } = here.deps.storage;
    here.deps.storage.put = () => broken.promise;
    here.deps.assemble = async (_source, { output }) => {
      output.write('an answer');
      broken.reject(transient('storage.full', 'no space left'));
      // Nobody looks at the file while it is assembled: its error must not end the process.
      await new Promise((resolve) => {
        setTimeout(resolve, 5);
      });
      throw transient('assembly.sink_closed', 'the file was closed');
    };
    await here.deliver(own);
    expect(here.job.state).toBe('finalizing');
    here.deps.assemble = assemble;
    here.deps.storage.put = put;
    await here.deliver(own);
    expect(here.job.state).toBe('cancelled');
  });

  test.for(JOB_STATES)('%s: a pause holds it if it is open', async (state) => {
    const here = openJobWorld(state, ENGINE_OF[state]);
    const open = isOpen(state);
    expect(await pauseJob(here.job.id, 'ann', here.deps)).toBe(open);
    expect(isPaused(here.job)).toBe(open);
    expect(await resumeJob(here.job.id, here.deps)).toBe(open);
    expect(isPaused(here.job)).toBe(false);
  });

  test.for([
    ['resource_preparing', 'intended', 'starting'],
    ['submitting', 'starting', 'serving'],
  ] as const)('%s: resuming wakes the provision that waited', async ([state, before, after]) => {
    const here = openJobWorld(state, before);
    await pauseJob(here.job.id, 'ann', here.deps);
    const { provision } = here;
    const own = ownDelivery(provision, PROVISION[before].queue);
    if (own !== null) await here.deliver(own);
    expect(provision.state).toBe(before);

    await resumeJob(here.job.id, here.deps);
    const woken = here.added.find(({ entity }) => entity === provision.id);
    expect(woken).toMatchObject({ wake: provision.wake });
    if (woken !== undefined) await here.deliver(woken);
    expect(provision.state).toBe(after);
  });

  test.for(['cancelled', 'expired'] as const)(
    'a paused job is %s as any other',
    async (outcome) => {
      for (const state of JOB_STATES.filter(isOpen)) {
        const here = openJobWorld(state, ENGINE_OF[state]);
        await pauseJob(here.job.id, '', here.deps);
        await stopJob(here.job.id, { outcome, event: '' }, here.deps);
        expect(here.job.state).toBe(
          JOB_TABLE[state][outcome === 'cancelled' ? 'cancel' : 'expire'],
        );
        expect(isPaused(here.job)).toBe(false);
      }
    },
  );

  test('every state with a queue has one that a processor serves', () => {
    for (const state of JOB_STATES) {
      const { queue } = JOB[state];
      expect(queue === null || queue in processors).toBe(true);
    }
  });

  test('finality, sealing and engines agree with the table', () => {
    expect(JOB_STATES.filter(isFinal)).toEqual([...OUTCOMES]);
    expect(JOB_STATES.filter(isSealed)).toEqual(['finalizing', ...OUTCOMES]);
    expect(JOB_STATES.filter(wantsEngines)).toEqual([
      'resource_preparing',
      'submitting',
      'in_progress',
    ]);
  });

  test('every state can end, and is reached', () => {
    const ends = new Set<JobState>(OUTCOMES);
    for (let before = -1; before !== ends.size;) {
      before = ends.size;
      for (const state of JOB_STATES)
        if (JOB[state].next.some((to) => ends.has(to))) ends.add(state);
    }
    expect(ends.size).toBe(JOB_STATES.length);
    const reached = new Set<JobState>(JOB_STATES.flatMap((state) => [...JOB[state].next]));
    expect(JOB_STATES.filter((state) => !reached.has(state))).toEqual(['queued']);
  });
});

const PROVISION_CELLS = PROVISION_STATES.flatMap((state) =>
  EVENTS.map((event) => ({ state, event })),
);

describe('a provision', () => {
  test('every state and event has a cell, and no cell is of an unknown one', () => {
    expect(Object.keys(PROVISION_TABLE)).toEqual([...PROVISION_STATES]);
    for (const state of PROVISION_STATES) {
      expect(Object.keys(PROVISION_TABLE[state]).toSorted()).toEqual(EVENTS.toSorted());
      for (const event of EVENTS) expect(PROVISION_STATES).toContain(PROVISION_TABLE[state][event]);
    }
  });

  /** The job that a provision in this state serves. */
  const JOB_OF: Record<ProvisionState, JobState> = {
    intended: 'resource_preparing',
    creating: 'resource_preparing',
    booting: 'resource_preparing',
    starting: 'submitting',
    serving: 'in_progress',
    releasing: 'in_progress',
    released: 'in_progress',
  };

  test.for(PROVISION_CELLS)('$state, $event', async ({ state, event }) => {
    const here = openJobWorld(JOB_OF[state], state);
    const { queue } = PROVISION[state];
    const own = ownDelivery(here.provision, queue);
    if (event === 'engine lost') {
      here.fail();
      if (queue === 'submission' && own !== null) await here.deliver(own);
    } else await happenTo(here, own, event);
    expect(here.provision.state).toBe(PROVISION_TABLE[state][event]);
    const after = PROVISION[here.provision.state].queue;
    expect(after === null).toBe(here.provision.state === 'released');
  });

  test.for(PROVISION_STATES)('%s: a delivery that is not its own does nothing', async (state) => {
    for (const queue of ['provisioning', 'submission', 'release'] as const) {
      for (const wake of queue === PROVISION[state].queue ? [1, 3] : [1, 2, 3]) {
        const here = openJobWorld(JOB_OF[state], state);
        await here.deliver({ queue, entity: here.provision.id, wake });
        expect(here.provision.state).toBe(state);
        expect(here.moves).toEqual([]);
      }
    }
  });

  const KILLABLE = PROVISION_STATES.filter((state) => state !== 'released' && state !== 'serving');
  test.for(KILLABLE)('%s: killed anywhere, it is still brought on', async (state) => {
    for (const at of ['apply', 'add'] as const) {
      const here = openJobWorld(JOB_OF[state], state);
      here.killed.at = at;
      const own = ownDelivery(here.provision, PROVISION[state].queue);
      if (own !== null) await here.deliver(own);
      here.killed.at = null;
      const after = ownDelivery(here.provision, PROVISION[here.provision.state].queue);
      if (after !== null) await here.deliver(after);
      expect(here.provision.state).not.toBe(state);
    }
  });

  const jobs = JOB_STATES.flatMap((job) => PROVISION_STATES.map((state) => ({ job, state })));
  test.for(jobs)('$state of a job that is $job', async ({ job, state }) => {
    const here = openJobWorld(job, state);
    await settle(here.job.id, here.deps);
    // Before planning is done nothing is decided about what planning has just recorded.
    const stays = wantsEngines(job) || job === 'queued';
    expect(here.provision.state).toBe(stays ? state : STOPPED(state));
  });

  test('is wanted by a job that wants engines, in its slot, at its address', () => {
    const provision = { slot: 1, address: ADDRESS };
    const slots = [{ slot: 1, address: ADDRESS }];
    for (const state of JOB_STATES) {
      expect(wanted({ state }, provision, slots)).toBe(wantsEngines(state));
      expect(wanted({ state }, { slot: 0, address: ADDRESS }, slots)).toBe(false);
      expect(wanted({ state }, { slot: 1, address: 'http://other' }, slots)).toBe(false);
      expect(wanted({ state }, provision, [])).toBe(false);
    }
  });
});
