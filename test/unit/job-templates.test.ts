import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import * as v from 'valibot';
import { WORKER_EXITS } from '../../src/domain/worker-progress.ts';
import { disagreements, looseEnds, settingNames } from '../support/deploy/agreements.ts';
import {
  containersOf,
  parseManifests,
  readText,
  ROOT,
  workloadOf,
} from '../support/deploy/manifests.ts';
import type { Container, Manifest, Workload } from '../support/deploy/manifests.ts';

const NATIVE = 'config/kubernetes/job-template.yaml';
const LEGACY = 'config/kubernetes/job-template-legacy.yaml';
const RBAC = 'config/kubernetes/job-rbac.yaml';

const folder = mkdtempSync(join(tmpdir(), 'sluice-template-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function read(path: string): { object: Manifest; work: Workload } {
  const [object] = parseManifests(readText(path), path);
  const work = object === undefined ? null : workloadOf(object);
  if (object === undefined || work === null) throw new Error(`${path} is no Job`);
  return { object, work };
}

function containerOf(work: Workload, name: string): Container {
  const found = containersOf(work).find((each) => each.name === name);
  if (found === undefined) throw new Error(`there is no container ${name}`);
  return found;
}

// As AIBrix's guide has it, with the file's place for its own.
const WALKTHROUGH = String.raw`
JOB_NAME="test-batch-job-$(date +%s)"
sed -i "s/name: batch-job-template/name: $JOB_NAME/" "$0"

cat >> "$0" << EOF
  annotations:
    batch.job.aibrix.ai/input-file-id: "$INPUT_FILE_ID"
    batch.job.aibrix.ai/endpoint: "/v1/chat/completions"
    batch.job.aibrix.ai/completion-window: "24h"
    batch.job.aibrix.ai/session-id: "test-session-$(date +%s)"
EOF
`;

const onExitCodes = v.object({
  containerName: v.string(),
  operator: v.literal('In'),
  values: v.array(v.number()),
});
const onPodConditions = v.array(v.object({ type: v.string(), status: v.string() }));
const failurePolicy = v.looseObject({
  podFailurePolicy: v.object({
    rules: v.array(
      v.object({
        action: v.string(),
        onPodConditions: v.optional(onPodConditions),
        onExitCodes: v.optional(onExitCodes),
      }),
    ),
  }),
});

function ofWorker(values: readonly number[]) {
  return { containerName: 'batch-worker', operator: 'In', values };
}

describe.for([NATIVE, LEGACY])('%s', (path) => {
  const { object, work } = read(path);
  const worker = containerOf(work, 'batch-worker');

  test('takes its annotations at its end, and its name by sed', () => {
    const file = join(folder, 'test-batch-job.yaml');
    copyFileSync(join(ROOT, path), file);
    const env = { PATH: process.env['PATH'], INPUT_FILE_ID: 'file-abc' };
    const { status } = spawnSync('/bin/sh', ['-euc', WALKTHROUGH, file], { env });
    expect(status).toBe(0);
    const [job] = parseManifests(readFileSync(file, 'utf8'), file);
    expect(job?.metadata).toMatchObject({
      name: expect.stringMatching(/^test-batch-job-\d+$/),
      namespace: 'default',
      annotations: {
        'batch.job.aibrix.ai/input-file-id': 'file-abc',
        'batch.job.aibrix.ai/endpoint': '/v1/chat/completions',
        'batch.job.aibrix.ai/completion-window': '24h',
        'batch.job.aibrix.ai/session-id': expect.stringMatching(/^test-session-\d+$/),
      },
    });
  });

  test('its pods are found by the label of the guide, and it fits its role', () => {
    expect(work.template.metadata.labels).toEqual({ app: 'aibrix-batch' });
    expect(work.template.spec.serviceAccountName).toBe('job-reader-sa');
    const all = [object, ...parseManifests(readText(RBAC), RBAC)];
    expect(disagreements(all)).toEqual([]);
    expect(new Set(all.map(({ metadata }) => metadata?.namespace))).toEqual(new Set(['default']));
  });

  test('fails the Job at once for exactly the exit codes that no other pod would mend', () => {
    const lost = Object.values(WORKER_EXITS).filter(({ code, retry }) => code !== 0 && !retry);
    expect(v.parse(failurePolicy, object['spec']).podFailurePolicy.rules).toEqual([
      { action: 'Ignore', onPodConditions: [{ type: 'DisruptionTarget', status: 'True' }] },
      { action: 'Ignore', onExitCodes: ofWorker([WORKER_EXITS.handedBack.code]) },
      { action: 'FailJob', onExitCodes: ofWorker(lost.map(({ code }) => code)) },
    ]);
    expect(work.template.spec['restartPolicy']).toBe('Never');
  });

  test('gives the worker variables that are settings, and secrets by reference', () => {
    const known = settingNames();
    expect(worker.env.map(({ name }) => name).filter((name) => !known.has(name))).toEqual([]);
    const keys = worker.env.flatMap(({ valueFrom }) => {
      const ref = valueFrom?.secretKeyRef;
      return ref === undefined ? [] : [`${ref.name} ${ref.key}${ref.optional ? '' : ' needed'}`];
    });
    expect(keys).toEqual([
      'aibrix-s3-credentials access-key-id',
      'aibrix-s3-credentials secret-access-key',
      'aibrix-s3-credentials region',
      'aibrix-s3-credentials bucket-name',
      'aibrix-s3-credentials endpoint-url',
      'aibrix-tos-credentials access-key',
      'aibrix-tos-credentials secret-key',
      'aibrix-tos-credentials endpoint',
      'aibrix-tos-credentials region',
      'aibrix-tos-credentials bucket-name',
    ]);
    const plain = worker.env.filter(({ value }) => value !== undefined);
    expect(plain.filter(({ name }) => /KEY|SECRET|TOKEN|PASSWORD/.test(name))).toEqual([]);
  });

  test('confines the worker, and shows the token of its account to nobody else', () => {
    expect(looseEnds(work, worker)).toEqual([]);
    expect(work.template.spec.automountServiceAccountToken).toBe(false);
    const place = '/var/run/secrets/kubernetes.io/serviceaccount';
    const holders = containersOf(work).filter(({ volumeMounts }) =>
      volumeMounts.some(({ mountPath }) => mountPath === place),
    );
    expect(holders.map(({ name }) => name)).toEqual(['batch-worker']);
  });

  test('lets the worker end within its grace', () => {
    const grace = worker.env.find(({ name }) => name === 'SHUTDOWN_GRACE')?.value ?? '5s';
    expect(work.template.spec.terminationGracePeriodSeconds).toBeGreaterThanOrEqual(
      Number.parseInt(grace, 10) + 20,
    );
  });

  test('the engine has a GPU, shared memory, and the arguments of the guide', () => {
    const engine = containerOf(work, 'llm-engine');
    expect(engine.resources.requests?.['nvidia.com/gpu']).toBe(1);
    expect(engine.resources.limits?.['nvidia.com/gpu']).toBe(1);
    expect(engine.volumeMounts).toContainEqual({ name: 'dshm', mountPath: '/dev/shm' });
    const flags = engine.args.filter((each) => each.startsWith('--'));
    expect(flags).toEqual(['--model', '--port', '--served-model-name']);
    expect(looseEnds(work, engine)).not.toContain('may gain privileges');
    expect(looseEnds(work, engine)).not.toContain('keeps capabilities');
  });
});

test('the engine is a native sidecar, so that the Job is over when the worker is', () => {
  const { spec } = read(NATIVE).work.template;
  expect(spec.containers.map(({ name }) => name)).toEqual(['batch-worker']);
  expect(spec.initContainers).toMatchObject([
    {
      name: 'llm-engine',
      restartPolicy: 'Always',
      startupProbe: { httpGet: { path: '/health', port: 8000 } },
    },
  ]);
});

describe('before native sidecars', () => {
  const { work } = read(LEGACY);
  const engine = containerOf(work, 'llm-engine');

  test('the engine is a second container that the worker can see and signal', () => {
    const { spec } = work.template;
    expect(spec.initContainers).toEqual([]);
    expect(spec['shareProcessNamespace']).toBe(true);
    const users = spec.containers.map(({ securityContext }) => securityContext['runAsUser']);
    expect(users).toEqual([1000, 1000]);
  });

  test('an engine that the worker ends counts as success, and is marked for it', () => {
    const [shell = '', ...words] = engine.command;
    const program = ['sh', '-c', 'echo "$WORKER_VICTIM $1"; kill -TERM $$', 'sh', 'a b'];
    const { status, stdout } = spawnSync(shell, [...words, ...program], { encoding: 'utf8' });
    expect({ status, stdout }).toEqual({ status: 0, stdout: '1 a b\n' });
  });

  test('an engine ends with SIGTERM of the kubelet', async () => {
    const [shell = '', ...words] = engine.command;
    const program = [
      'sh',
      '-c',
      'trap "echo ended; exit 1" TERM; echo up; for i in $(seq 100); do sleep 0.1; done',
    ];
    const child = spawn(shell, [...words, ...program], { stdio: ['ignore', 'pipe', 'inherit'] });
    let said = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => (said += text));
    await once(child.stdout, 'data');
    child.kill('SIGTERM');
    // Not before the engine itself has ended, which holds the other end of the pipe.
    const [code] = await once(child, 'close');
    expect({ code, said }).toEqual({ code: 0, said: 'up\nended\n' });
  });

  test('an engine whose worker is gone is ended by the kubelet', () => {
    const [shell = '', ...words] = v.parse(
      v.looseObject({ exec: v.object({ command: v.array(v.string()) }) }),
      engine['livenessProbe'],
    ).exec.command;
    const args = words.map((word) => word.replace('/proc', folder));
    const addProcess = (pid: string, ...argv: string[]): void => {
      mkdirSync(join(folder, pid));
      writeFileSync(join(folder, pid, 'cmdline'), argv.map((word) => `${word}\0`).join(''));
    };
    addProcess('1', '/pause');
    addProcess('7', 'vllm', 'serve');
    addProcess('9', shell, ...words);
    expect(spawnSync(shell, args).status).toBe(1);
    addProcess('12', '/usr/local/bin/node', '/app/src/main/cli.ts', 'batch-worker');
    expect(spawnSync(shell, args).status).toBe(0);
  });

  test('the worker is the same but for its mark, and the label of its Job, whose new name is younger', () => {
    const common = (path: string): Container => {
      const worker = containerOf(read(path).work, 'batch-worker');
      return {
        ...worker,
        command: [],
        env: worker.env.filter(({ name }) => name !== 'JOB_UID'),
        volumeMounts: worker.volumeMounts.filter(({ name }) => name !== 'marks'),
      };
    };
    expect(common(LEGACY)).toEqual(common(NATIVE));
    const commands = [NATIVE, LEGACY].map(
      (path) => containerOf(read(path).work, 'batch-worker').command,
    );
    expect(commands).toEqual([
      ['sluice', 'batch-worker'],
      ['/bin/sh', '-c', 'touch /marks/worker && exec sluice batch-worker'],
    ]);
    expect(engine['startupProbe']).toMatchObject({
      exec: { command: ['test', '-e', '/marks/worker'] },
    });
  });
});

test('a worker may read Jobs, and nothing else', () => {
  const role = parseManifests(readText(RBAC), RBAC).find(({ kind }) => kind === 'Role');
  expect(role?.['rules']).toEqual([{ apiGroups: ['batch'], resources: ['jobs'], verbs: ['get'] }]);
});
