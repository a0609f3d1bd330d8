import { afterAll, beforeAll, expect, test } from 'vitest';
import { startKubernetes } from '../simulators/kubernetes/simulator.ts';
import type { KubernetesSimulator } from '../simulators/kubernetes/simulator.ts';
import { kubectl } from '../support/kubernetes.ts';
import { until } from '../support/until.ts';

/* The kubectl on the PATH, whatever its age, against the simulated API server. */

let cluster: KubernetesSimulator;

beforeAll(async () => {
  cluster = await startKubernetes({ pods: 'none' });
});

afterAll(async () => {
  await cluster[Symbol.asyncDispose]();
});

const words = (line: string): string[] => line.split(/ /).filter((word) => word !== '');

/** What it prints on success. */
async function run(line: string, input?: string): Promise<string> {
  const { code, stdout, stderr } = await kubectl(cluster, words(line), input);
  expect({ line, code, stderr }).toMatchObject({ code: 0 });
  return stdout;
}

/** What it complains of. */
async function fail(line: string, input?: string): Promise<string> {
  const { code, stderr } = await kubectl(cluster, words(line), input);
  expect(code).not.toBe(0);
  return stderr;
}

const JOB = (name: string, more = ''): string => `
apiVersion: batch/v1
kind: Job
metadata:
  name: ${name}
  labels: {app: test}
spec:
  suspend: true
  ${more}
  template:
    metadata:
      labels: {app: test}
    spec:
      restartPolicy: Never
      containers:
        - {name: main, image: busybox, command: [sleep, '1']}
`;

test('applies, changes and deletes, and says what it did', async () => {
  expect(await run('apply -f -', JOB('applied'))).toBe('job.batch/applied created\n');
  expect(await run('apply -f -', JOB('applied'))).toBe('job.batch/applied unchanged\n');
  expect(await run('apply -f -', JOB('applied', 'parallelism: 2'))).toBe(
    'job.batch/applied configured\n',
  );
  expect(await run('get job applied -o jsonpath={.spec.parallelism}')).toBe('2');
  // What is no longer in the file goes back to what the server makes of it.
  await run('apply -f -', JOB('applied'));
  expect(await run('get job applied -o jsonpath={.spec.parallelism}')).toBe('1');
  expect(await fail('apply -f -', JOB('applied', 'completions: 3'))).toContain(
    'field is immutable',
  );
  expect(await run('label job applied color=red')).toContain('labeled');
  expect(await run('annotate job applied note=there')).toContain('annotated');
  expect(await run('patch job applied -p {"spec":{"backoffLimit":2}}')).toContain('patched');
  expect(
    await run(
      'get job applied -o jsonpath={.metadata.labels.color}{.metadata.annotations.note}{.spec.backoffLimit}',
    ),
  ).toBe('redthere2');
  expect(
    await run('apply --server-side --force-conflicts -f -', JOB('applied', 'backoffLimit: 3')),
  ).toContain('serverside-applied');
  expect(await run('get job applied -o jsonpath={.spec.backoffLimit}')).toBe('3');
  expect(await run('delete job applied')).toContain('job.batch "applied" deleted');
  expect(await fail('get job applied')).toBe(
    'Error from server (NotFound): jobs.batch "applied" not found\n',
  );
});

test('refuses fields that are none, and tells what is wrong with a Job', async () => {
  expect(await fail('apply -f -', JOB('misspelt', 'backofLimit: 2'))).toContain('unknown field');
  expect(await fail('apply -f -', JOB('wrong').replace('Never', 'Always'))).toContain(
    'spec.template.spec.restartPolicy: Unsupported value: "Always"',
  );
  expect(await fail('create -f -', JOB('Upper'))).toContain(
    'a lowercase RFC 1123 subdomain must consist of',
  );
});

test('prints tables, wide and narrow, and every other form', async () => {
  await run('apply -f -', JOB('shown'));
  await until(async () => (await run('get job shown')).includes('Suspended'));
  const [head, row] = (await run('get job shown -o wide')).split('\n');
  expect(words(head ?? '')).toEqual([
    'NAME',
    'STATUS',
    'COMPLETIONS',
    'DURATION',
    'AGE',
    'CONTAINERS',
    'IMAGES',
    'SELECTOR',
  ]);
  expect(words(row ?? '')).toMatchObject({ 0: 'shown', 1: 'Suspended', 2: '0/1' });
  expect(await run('get jobs -l app=test --no-headers -o custom-columns=:metadata.name')).toBe(
    'shown\n',
  );
  expect(await run('get jobs -l app!=test -o name')).toBe('');
  expect(await run('get jobs --field-selector metadata.name=shown -o name')).toBe(
    'job.batch/shown\n',
  );
  expect(JSON.parse(await run('get job shown -o json'))).toMatchObject({
    kind: 'Job',
    apiVersion: 'batch/v1',
  });
  expect(await run('get job shown -o yaml')).toMatch(/^apiVersion: batch\/v1\nkind: Job\n/);
  expect(await run('get nodes')).toMatch(
    /^NAME +STATUS +ROLES +AGE +VERSION\nnode-1 +Ready +<none> /,
  );
  expect(await run('get events --sort-by=.metadata.creationTimestamp')).toMatch(
    /Normal +Suspended +job\/shown +Job suspended/,
  );
  const described = await run('describe job shown');
  expect(described).toMatch(/^Name: +shown\n/);
  expect(described).toMatch(/job-controller +Job suspended/);
});

test('waits and watches', async () => {
  await run('apply -f -', JOB('awaited'));
  const waiting = run('wait --for=condition=Complete job/awaited --timeout=30s');
  await run('patch job awaited -p {"spec":{"suspend":false}}');
  const pod = await until(
    async () => (await run('get pods -l job-name=awaited -o name')).trim() || undefined,
  );
  await run(`get ${pod} -o wide`);
  cluster.control.endPod(pod.slice('pod/'.length), 0);
  expect(await waiting).toBe('job.batch/awaited condition met\n');
  expect(await run('get pods -l job-name=awaited')).toMatch(/0\/1 +Completed +0 /);
  expect(await run('get job awaited')).toMatch(/awaited +Complete +1\/1 /);
});

test('makes what can be made without a file, also where it speaks protobuf', async () => {
  await run('create secret generic made --from-literal=key=value');
  expect(await run('get secret made -o jsonpath={.data.key}')).toBe(
    Buffer.from('value').toString('base64'),
  );
  await run('create configmap made --from-literal=key=value');
  expect(await run('get configmap made -o jsonpath={.data.key}')).toBe('value');
  await run('create serviceaccount maker');
  await run('create role maker --verb=get,list --resource=jobs.batch');
  await run('create rolebinding maker --role=maker --serviceaccount=default:maker');
  expect(await run('auth can-i get jobs --as=system:serviceaccount:default:maker')).toBe('yes\n');
  expect(
    await kubectl(
      cluster,
      words('auth can-i delete jobs --as=system:serviceaccount:default:maker'),
    ),
  ).toMatchObject({ code: 1, stdout: 'no\n' });
  await run('create job made --image=busybox -- sleep 1');
  expect(
    await run('get job made -o jsonpath={.spec.template.spec.containers[0].command}'),
  ).toContain('sleep');
  await run('create deployment made --image=busybox');
  await run('scale deployment made --replicas=3');
  await until(
    async () => (await run('get pods -l app=made -o name')).trim().split('\n').length === 3,
  );
  await run('delete deployment made');
  await until(async () => (await run('get pods,replicasets -l app=made -o name')) === '');
});
