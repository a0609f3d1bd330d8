import { describe, expect, test } from 'vitest';
import { eventsOf, lookAtPod } from '../../src/resources/kubernetes/pods.ts';
import { makeEvent, makePod } from '../support/kube-objects.ts';

function waiting(reason: string, message = '', lastState: object = {}) {
  const status = { name: 'llm-engine', state: { waiting: { reason, message } }, lastState };
  return { phase: 'Pending', containerStatuses: [status] };
}

const KILLED = {
  terminated: { exitCode: 137, reason: 'OOMKilled', finishedAt: '2026-11-22T10:00:00Z' },
};

describe('how far a pod is, and why', () => {
  test('no node takes it: the scheduler’s words', () => {
    const message = '0/3 nodes are available: 3 Insufficient nvidia.com/gpu.';
    const conditions = [
      { type: 'PodScheduled', status: 'False', reason: 'Unschedulable', message },
    ];
    const pod = makePod({ phase: 'Pending', conditions }, { spec: { nodeName: '' } });
    expect(lookAtPod(pod)).toMatchObject({
      is: 'unscheduled',
      reason: `Unschedulable: ${message}`,
    });
  });

  test('its image cannot be had: what the registry said, not only that it is tried again', () => {
    const said = 'Failed to pull image "vllm/none": not found';
    const pod = makePod(waiting('ImagePullBackOff', 'Back-off pulling image "vllm/none"'));
    expect(lookAtPod(pod, [makeEvent('Failed', said)])).toMatchObject({
      is: 'waiting',
      reason: `ImagePullBackOff: ${said} (container llm-engine)`,
      isHopeless: false,
    });
    const early = makePod(waiting('ErrImagePull', 'rpc error: not found'));
    expect(lookAtPod(early).reason).toContain('ErrImagePull: rpc error: not found');
  });

  test('no image is called so: waiting is no use', () => {
    const pod = makePod(waiting('InvalidImageName', 'couldn’t parse image name'));
    expect(lookAtPod(pod)).toMatchObject({ is: 'waiting', isHopeless: true });
  });

  test('a secret is missing', () => {
    const pod = makePod(waiting('CreateContainerConfigError', 'secret "hf" not found'));
    expect(lookAtPod(pod)).toMatchObject({
      is: 'waiting',
      reason: 'CreateContainerConfigError: secret "hf" not found (container llm-engine)',
    });
  });

  test('its memory was not enough, again and again', () => {
    const look = lookAtPod(makePod(waiting('CrashLoopBackOff', 'back-off 10s', KILLED)));
    expect(look.is).toBe('crashed');
    expect(look.reason).toBe(
      'CrashLoopBackOff: container llm-engine OOMKilled (exit code 137, ended by signal 9, its memory limit was not enough)',
    );
    expect(look.end).toEqual({ container: 'llm-engine', exitCode: 137, reason: 'OOMKilled' });
  });

  test('one that runs says nothing, and remembers how it ended before', () => {
    const status = {
      name: 'llm-engine',
      restartCount: 2,
      state: { running: { startedAt: 'now' } },
      lastState: KILLED,
    };
    const look = lookAtPod(makePod({ containerStatuses: [status] }));
    expect(look).toMatchObject({ is: 'running', reason: '', restarts: 2 });
    expect(look.end?.reason).toBe('OOMKilled');
  });

  test('what kubelet is at while containers are made', () => {
    const pod = makePod(waiting('ContainerCreating'));
    const events = [makeEvent('Pulling', 'Pulling image "vllm/vllm-openai"', 2, 'Normal')];
    expect(lookAtPod(pod, events)).toMatchObject({
      is: 'waiting',
      reason: 'Pulling: Pulling image "vllm/vllm-openai"',
    });
  });

  test.for<[string, object, object, string]>([
    ['evicted', { reason: 'Evicted', message: 'low on memory' }, {}, 'Evicted: low on memory'],
    [
      'disrupted',
      {
        conditions: [
          {
            type: 'DisruptionTarget',
            status: 'True',
            reason: 'PreemptionByScheduler',
            message: 'preempted',
          },
        ],
      },
      {},
      'PreemptionByScheduler: preempted',
    ],
    [
      'its node lost',
      { conditions: [{ type: 'Ready', status: 'False', reason: 'NodeNotReady', message: '' }] },
      {},
      'NodeNotReady: the node node-1 is lost',
    ],
    [
      'deleted',
      {},
      { metadata: { deletionTimestamp: '2026-11-22T10:00:00Z' } },
      'is being deleted',
    ],
  ])('taken away by others: %s', ([, status, more, reason]) => {
    const look = lookAtPod(makePod({ phase: 'Failed', ...status }, more));
    expect(look.is).toBe('leaving');
    expect(look.reason).toContain(reason);
  });

  test('over, well or badly', () => {
    expect(lookAtPod(makePod({ phase: 'Succeeded' })).is).toBe('done');
    const state = { terminated: { exitCode: 65, reason: 'Error', finishedAt: '' } };
    const failed = makePod({
      phase: 'Failed',
      containerStatuses: [{ name: 'batch-worker', state }],
    });
    expect(lookAtPod(failed)).toMatchObject({
      is: 'failed',
      reason: 'container batch-worker Error (exit code 65)',
    });
  });

  test('a message without end is cut', () => {
    const pod = makePod(waiting('ErrImagePull', 'x'.repeat(10_000)));
    expect(lookAtPod(pod).reason.length).toBeLessThan(700);
  });
});

test('events are those of the pod itself, oldest first', () => {
  const pod = makePod({});
  const other = makeEvent('Failed', 'of another', 1);
  const events = [
    makeEvent('Failed', 'second', 5),
    makeEvent('Scheduled', 'first', 2, 'Normal'),
    { ...other, involvedObject: { ...other.involvedObject, uid: 'u2' } },
  ];
  expect(eventsOf(pod, events).map(({ message }) => message)).toEqual(['first', 'second']);
});
