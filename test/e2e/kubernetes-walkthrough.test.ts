import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { parse, stringify } from 'yaml';
import { startKubernetes, whyNoNamespaces } from '../simulators/kubernetes/simulator.ts';
import type { KubernetesSimulator } from '../simulators/kubernetes/simulator.ts';
import { shell } from '../support/kubernetes.ts';
import type { Kubectl } from '../support/kubernetes.ts';
import { startS3Server } from '../support/s3-server.ts';
import type { S3Server } from '../support/s3-server.ts';
import { until } from '../support/until.ts';
import { LONG } from '../support/chaos.ts';

/*
 * The way of a batch through Kubernetes by hand: commands as people type them from the instructions of
 * AIBrix, with the templates of this repository, the kubectl on the PATH, and a cluster that runs the
 * worker and an engine.
 */

const why = await whyNoNamespaces();
/** Why a group is skipped stands behind its name. */
const skipped = why === undefined ? '' : ` (${why})`;

const REPOSITORY = fileURLToPath(new URL('../..', import.meta.url));
const INPUT = `cat > /tmp/batch_input.jsonl << 'EOF'
{"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "Hello world"}]}}
{"custom_id": "request-2", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "What is AI?"}]}}
EOF`;
const APPLY = `
# Copy the job template
cp config/kubernetes/job-template.yaml /tmp/test-batch-job.yaml

# Edit the template with your specific values
JOB_NAME="test-batch-job-$(date +%s)"
sed -i "s/name: batch-job-template/name: \${JOB_NAME}/" /tmp/test-batch-job.yaml

# Add batch job annotations with your job specification
cat >> /tmp/test-batch-job.yaml << EOF
  annotations:
    batch.job.aibrix.ai/input-file-id: "\${INPUT_FILE_ID}"
    batch.job.aibrix.ai/endpoint: "/v1/chat/completions"
    batch.job.aibrix.ai/completion-window: "24h"
    batch.job.aibrix.ai/session-id: "test-session-$(date +%s)"
EOF

# Apply the job
kubectl apply -f /tmp/test-batch-job.yaml`;
const POD = `POD_NAME=$(kubectl get pods -l app=aibrix-batch --no-headers -o custom-columns=":metadata.name" | head -1)`;
const CLEANUP = `
kubectl delete job test-batch-job-*
kubectl delete pod -l app=aibrix-batch

# Clean up test files
rm -f /tmp/test-batch-job.yaml /tmp/batch_input.jsonl`;

let cluster: KubernetesSimulator;
let s3: S3Server;
let bucket: string;
let folder: string;

beforeAll(async () => {
  if (why !== undefined) return;
  folder = await mkdtemp(path.join(tmpdir(), 'walkthrough-'));
  await cp(path.join(REPOSITORY, 'config/kubernetes'), path.join(folder, 'config/kubernetes'), {
    recursive: true,
  });
  s3 = await startS3Server();
  bucket = await s3.createBucket();
  cluster = await startKubernetes({ knobs: { crashLoopMs: 200, pullBackoffMs: 200 } });
  const { host, port } = await cluster.control.publish(Number(new URL(s3.url).port));
  const { code, stderr } = await type(`
kubectl apply -f config/kubernetes/job-rbac.yaml
kubectl create secret generic aibrix-s3-credentials --from-literal=access-key-id=access --from-literal=secret-access-key=secret --from-literal=region=us-west-2 --from-literal=bucket-name=${bucket} --from-literal=endpoint-url=http://${host}:${port}
${INPUT}`);
  if (code !== 0) throw new Error(stderr);
  const body = await readFile(path.join(folder, 'batch_input.jsonl'));
  await fetch(`${s3.url}/${bucket}/files/file-abc123`, { method: 'PUT', body });
});

afterAll(async () => {
  await cluster?.[Symbol.asyncDispose]();
  await s3?.[Symbol.asyncDispose]();
  if (folder !== undefined) await rm(folder, { recursive: true, force: true });
});

// What a test that failed has left would keep the GPU from the next.
afterEach(async () => {
  if (why !== undefined) return;
  cluster.set({ engine: {} });
  await type(
    'kubectl delete jobs,pods --all --grace-period=1\nkubectl apply -f config/kubernetes/job-rbac.yaml',
  );
});

/** Types commands into a shell; what they write to /tmp goes to a folder of this run. */
async function type(commands: string, variables: Record<string, string> = {}): Promise<Kubectl> {
  const set = Object.entries(variables).map(([name, value]) => `${name}='${value}'`);
  const script = [...set, commands].join('\n').replaceAll('/tmp/', `${folder}/`);
  return shell(cluster, ['bash', '-c', script], '', folder);
}

/** Applies the template for an input after `edit`; the name of the Job. */
async function submit(input: string, edit: string = ''): Promise<string> {
  const edited = APPLY.replace('\n# Add batch job', `${edit}\n# Add batch job`);
  const { code, stdout, stderr } = await type(edited, { INPUT_FILE_ID: input });
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const [, name = ''] = /^job\.batch\/(test-batch-job-\d+) created$/.exec(stdout.trim()) ?? [];
  expect(name).not.toBe('');
  return name;
}

async function conditionOf(job: string): Promise<string | undefined> {
  const { stdout } = await type(
    `kubectl get job ${job} -o jsonpath='{.status.conditions[?(@.status=="True")].type}'`,
  );
  return stdout;
}

async function ends(job: string, how: string): Promise<void> {
  await until(async () => (await conditionOf(job))?.split(' ').includes(how), {
    timeoutMs: 90_000,
    everyMs: 200,
    what: `${how} of ${job}`,
  });
}

/** What the commands print once they print `wanted`. */
async function prints(commands: string, wanted: RegExp | string): Promise<string> {
  let last = '';
  try {
    return await until(
      async () => {
        const { stdout, stderr } = await type(commands);
        last = stdout + stderr;
        return (typeof wanted === 'string' ? last.includes(wanted) : wanted.test(last))
          ? last
          : undefined;
      },
      { timeoutMs: 60_000, everyMs: 300 },
    );
  } catch (error) {
    throw new Error(`never printed ${String(wanted)}, but ${last}`, { cause: error });
  }
}

async function cleanUp(job: string): Promise<void> {
  // One second, one name: the next Job must have another.
  const { code, stderr } = await type(CLEANUP.replaceAll('test-batch-job-*', job));
  expect([code, stderr]).toEqual([0, '']);
  await until(
    async () => (await type('kubectl get pods -l app=aibrix-batch --no-headers')).stdout === '',
  );
  await until(() => Date.now() / 1000 > Number(job.split('-').at(-1)) + 1);
}

async function outputs(): Promise<string[]> {
  const text = await (await fetch(`${s3.url}/${bucket}?list-type=2`)).text();
  return [...text.matchAll(/<Key>([^<]*)<\/Key>/g)].map(([, key = '']) => key);
}

describe.skipIf(why !== undefined)(`the walkthrough${skipped}`, () => {
  test('create and run, monitor, verify, clean up', async () => {
    const watched = type(`
kubectl get jobs -w > /tmp/watch.txt & WATCH=$!
for look in $(seq 300); do grep -q Complete /tmp/watch.txt && break; sleep 0.2; done
kill $WATCH
cat /tmp/watch.txt`);
    const job = await submit('file-abc123');

    // Watch worker logs: they end with the worker.
    await prints('kubectl get pods -l app=aibrix-batch', /Running|Completed/);
    const worker = await type(`${POD}\nkubectl logs -f $POD_NAME -c batch-worker`);
    expect(worker.stdout).toContain('batch is over');
    const engine = await type(`${POD}\nkubectl logs -f $POD_NAME -c llm-engine`);
    expect(engine.stdout).toContain('Application startup complete');

    await ends(job, 'Complete');
    const wide = await type(`kubectl get job ${job} -o wide`);
    expect(wide.stdout).toMatch(
      new RegExp(`^NAME +STATUS +COMPLETIONS[^\\n]*\\n${job} +Complete +1/1 `),
    );
    const pods = await type('kubectl get pods -l app=aibrix-batch');
    expect(pods.stdout).toMatch(/ Completed +0 /);
    const code = await type(
      `${POD}\nkubectl get pod $POD_NAME -o jsonpath='{.status.containerStatuses[0].state.terminated.exitCode}'`,
    );
    expect(code.stdout).toBe('0');
    expect((await watched).stdout).toContain('Complete');

    const files = (await outputs()).filter(
      (key) => key.startsWith('files/') && key !== 'files/file-abc123',
    );
    const texts = await Promise.all(
      files.map(async (key) => (await fetch(`${s3.url}/${bucket}/${key}`)).text()),
    );
    const lines = texts.flatMap((text) =>
      text.split('\n').filter((line) => line.includes('"custom_id"')),
    );
    const answers = lines.map(
      (line) => JSON.parse(line) as { custom_id: string; response: { status_code: number } },
    );
    expect(answers.map(({ custom_id, response }) => [custom_id, response.status_code])).toEqual([
      ['request-1', 200],
      ['request-2', 200],
    ]);

    // A shell expands the star to files only, so that Kubernetes is asked for a Job of that very name.
    const starred = await type('kubectl get job test-batch-job-* -o wide');
    expect(starred.stderr).toContain('jobs.batch "test-batch-job-*" not found');
    await cleanUp(job);
    expect((await type('kubectl get jobs')).stderr).toContain('No resources found');
  });

  test('storage by variables of its own, another engine and DEBUG, as the advanced part has them', async () => {
    const file = path.join(folder, 'config/kubernetes/job-template.yaml');
    const original = await readFile(file, 'utf8');
    const job = parse(original) as Template;
    const { spec } = job.spec.template;
    const [worker] = spec.containers;
    const [engine] = spec.initContainers;
    if (worker === undefined || engine === undefined)
      throw new Error('the template lacks a container');
    const { data } = parse(
      (await type('kubectl get secret aibrix-s3-credentials -o yaml')).stdout,
    ) as { data: Record<string, string> };
    const endpoint = Buffer.from(data['endpoint-url'] ?? '', 'base64').toString();
    const own = {
      STORAGE_TYPE: 'S3',
      METASTORE_TYPE: 'S3',
      AWS_ACCESS_KEY_ID: 'access',
      AWS_SECRET_ACCESS_KEY: 'secret',
      AWS_REGION: 'us-west-2',
      S3_BUCKET: bucket,
      AWS_ENDPOINT_URL: endpoint,
      LOG_LEVEL: 'DEBUG',
    };
    worker.env = [
      ...worker.env.filter(({ name }) => !/^(STORAGE|METASTORE)_/.test(name)),
      ...Object.entries(own).map(([name, value]) => ({ name, value })),
    ];
    engine.image = 'aibrix/vllm:nightly';
    engine.args = [
      '--model',
      'microsoft/DialoGPT-medium',
      '--port',
      '8000',
      '--served-model-name',
      'gpt-3.5-turbo',
    ];
    const { metadata, ...rest } = job;
    await writeFile(file, stringify({ ...rest, metadata }));
    const name = await submit('file-abc123');
    await writeFile(file, original);
    await ends(name, 'Complete');
    const logs = await type(`${POD}\nkubectl logs $POD_NAME -c batch-worker`);
    expect(logs.stdout).toContain('batch is over');
    expect(logs.stdout).toMatch(/"level":"debug".*"answers stored"/);
    expect((await type(`${POD}\nkubectl logs $POD_NAME -c llm-engine`)).stdout).toContain(
      'microsoft/DialoGPT-medium',
    );
    await cleanUp(name);
  });
});

interface Template {
  metadata: object;
  spec: { template: { spec: { containers: ContainerPart[]; initContainers: ContainerPart[] } } };
}

interface ContainerPart {
  image: string;
  args: string[];
  env: { name: string; value?: string }[];
}

describe.skipIf(why !== undefined)(`debugging${skipped}`, () => {
  test('a worker that fails to start names the annotation', async () => {
    const job = await submit('');
    await ends(job, 'Failed');
    const logs = await type(
      `${POD}\nkubectl describe pod $POD_NAME\nkubectl logs $POD_NAME -c batch-worker`,
    );
    expect(logs.stdout).toMatch(/Exit Code: +64/);
    expect(logs.stdout).toContain('batch.job.aibrix.ai/input-file-id');
    const annotations = await type(`kubectl get job ${job} -o yaml | grep -A 10 annotations`);
    expect(annotations.stdout).toContain('batch.job.aibrix.ai/input-file-id: ""');
    expect((await type(`kubectl describe job ${job}`)).stdout).toContain('PodFailurePolicy');
    await cleanUp(job);
  });

  test('an engine that does not become healthy says why in its log', async () => {
    cluster.set({ engine: { crash: 'oom' } });
    const job = await submit('file-abc123');
    const logs = await prints(`${POD}\nkubectl logs $POD_NAME -c llm-engine`, 'CUDA out of memory');
    expect(logs).toContain('Engine core initialization failed');
    await prints('kubectl get pods -l app=aibrix-batch', 'Init:CrashLoopBackOff');
    await prints(
      `${POD}\nkubectl describe pod $POD_NAME`,
      'Back-off restarting failed container llm-engine in pod',
    );
    // It comes up in the end, and the batch with it.
    cluster.set({ engine: {} });
    await ends(job, 'Complete');
    await cleanUp(job);
  });

  test.runIf(LONG)('storage that cannot be reached or refuses is named', async () => {
    const edit = `sed -i 's/key: bucket-name/key: no-such-bucket/' /tmp/test-batch-job.yaml\n`;
    await type(
      `kubectl patch secret aibrix-s3-credentials -p '{"stringData": {"no-such-bucket": "nowhere-at-all"}}'`,
    );
    const job = await submit('file-abc123', edit);
    const logs = await prints(
      `${POD}\nkubectl logs $POD_NAME -c batch-worker | grep -i storage`,
      'nowhere-at-all',
    );
    expect(logs).toMatch(/NoSuchBucket|does not exist|no bucket/i);
    await cleanUp(job);
  });

  test('a Job that hangs tells of it in its events', async () => {
    const edit = `sed -i 's/nvidia.com\\/gpu: 1$/nvidia.com\\/gpu: 8/' /tmp/test-batch-job.yaml\n`;
    const job = await submit('file-abc123', edit);
    await prints(
      'kubectl get events --sort-by=.metadata.creationTimestamp',
      '1 Insufficient nvidia.com/gpu',
    );
    expect((await type(`kubectl describe job ${job}`)).stdout).toContain('SuccessfulCreate');
    expect((await type('kubectl get pods -l app=aibrix-batch')).stdout).toContain('Pending');
    await cleanUp(job);

    const unpulled = await submit(
      'file-abc123',
      `sed -i 's/image: sluice:.*/image: registry.example.com\\/nothing:1/' /tmp/test-batch-job.yaml\n`,
    );
    await prints('kubectl get pods -l app=aibrix-batch', 'ImagePullBackOff');
    await prints(
      'kubectl get events --sort-by=.metadata.creationTimestamp',
      'Failed to pull image "registry.example.com/nothing:1"',
    );
    await cleanUp(unpulled);
  });

  test('a worker that may not read its Job says which right it lacks', async () => {
    await type('kubectl delete rolebinding job-reader-binding');
    const job = await submit('file-abc123');
    await ends(job, 'Failed');
    const logs = await type(`${POD}\nkubectl logs $POD_NAME -c batch-worker`);
    expect(logs.stdout).toContain('cannot get resource \\"jobs\\"');
    await type('kubectl apply -f config/kubernetes/job-rbac.yaml');
    await cleanUp(job);
  });
});
