import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { requireProgram } from '../support/require-program.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

/*
 * The commands of AIBrix's guide to its batch resource manager, letter by letter, as a user pastes them into a shell.
 * Only CONSOLE is another address, and `watch`, which needs a terminal, is run as the command that it repeats.
 */

/** A variable of the shell, so that the commands below look as they are. */
function variable(name: string): string {
  return `$\{${name}}`;
}
const [MODEL_ID, FILE_ID, JOB_ID, OUTPUT_FILE_ID] = [
  variable('MODEL_ID'),
  variable('FILE_ID'),
  variable('JOB_ID'),
  variable('OUTPUT_FILE_ID'),
];

const CREATE_MODEL = String.raw`
   MODEL_ID=$(curl -sS -X POST "$CONSOLE/api/v1/models" \
     -H "Content-Type: application/json" \
     -d '{
       "name": "Qwen2.5 7B Instruct",
       "categories": ["LLM"],
       "serving_name": "Qwen/Qwen2.5-7B-Instruct"
     }' | jq -r .id)
`;

const CREATE_TEMPLATE = String.raw`
   curl -sS -X POST "$CONSOLE/api/v1/models/${MODEL_ID}/deployment-templates" \
     -H "Content-Type: application/json" \
     -d '{
       "name": "qwen2-5-7b-cloud",
       "version": "v1.0.0",
       "status": "active",
       "spec": {
         "engine": {
           "type": "vllm",
           "version": "latest",
           "image": "vllm/vllm-openai:latest",
           "invocation": "http_server",
           "serve_args": ["--trust-remote-code"],
           "health_endpoint": "/health",
           "ready_timeout_seconds": 1800,
           "metrics_endpoint": "/metrics"
         },
         "model_source": {
           "type": "huggingface",
           "uri": "Qwen/Qwen2.5-7B-Instruct"
         },
         "accelerator": {
           "type": "H100",
           "count": 1,
           "vram_gb": 80,
           "interconnect": "pcie"
         },
         "parallelism": {
           "tp": 1,
           "pp": 1,
           "dp": 1,
           "ep": 1
         },
         "engine_args": {
           "gpu_memory_utilization": "0.90"
         },
         "quantization": {
           "weight": "fp16",
           "kv_cache": "auto"
         },
         "supported_endpoints": ["/v1/chat/completions"],
         "deployment_mode": "dedicated"
       }
     }'
`;

const INPUT = `{"custom_id":"request-1","method":"POST","url":"/v1/chat/completions","body":{"model":"Qwen/Qwen2.5-7B-Instruct","messages":[{"role":"user","content":"Explain AIBrix in one paragraph."}],"max_tokens":128}}
{"custom_id":"request-2","method":"POST","url":"/v1/chat/completions","body":{"model":"Qwen/Qwen2.5-7B-Instruct","messages":[{"role":"user","content":"What is batch inference?"}],"max_tokens":128}}
`;

const UPLOAD = String.raw`
   FILE_ID=$(curl -sS -X POST "$CONSOLE/api/v1/files/upload" \
     -F "purpose=batch" \
     -F "file=@batch_input.jsonl" | jq -r .id)
`;

const CREATE_JOB = String.raw`
   JOB_ID=$(curl -sS -X POST "$CONSOLE/api/v1/jobs" \
     -H "Content-Type: application/json" \
     -d "{
       \"input_dataset\": \"${FILE_ID}\",
       \"endpoint\": \"/v1/chat/completions\",
       \"completion_window\": \"24h\",
       \"name\": \"qwen-cloud-batch\",
       \"model_id\": \"${MODEL_ID}\",
       \"model_template_name\": \"qwen2-5-7b-cloud\",
       \"model_template_version\": \"v1.0.0\"
     }" | jq -r .id)
`;

const WATCH = String.raw`curl -sS $CONSOLE/api/v1/jobs/${JOB_ID} | jq '{id,status,batch_id,provision_id,provision,events}'`;

const CANCEL = String.raw`
   curl -sS -X POST "$CONSOLE/api/v1/jobs/${JOB_ID}/cancel" \
     -H "Content-Type: application/json" \
     -d '{}'
`;

const READ_RESULTS = String.raw`
   OUTPUT_FILE_ID=$(curl -sS "$CONSOLE/api/v1/jobs/${JOB_ID}" | jq -r .output_dataset)

   curl -sS "$CONSOLE/api/v1/files/${OUTPUT_FILE_ID}/content" \
     -o batch_output.jsonl

   jq . batch_output.jsonl
`;

beforeAll(() => {
  for (const program of ['jq', 'curl'] as const) requireProgram(program);
});
afterAll(requireNothingLeft);

interface Shell {
  /** Runs commands, and keeps the variables that they set for the next ones. Rejects unless all of them succeed. */
  run(commands: string): Promise<string>;
  variables: Record<string, string>;
}

const KEPT = ['MODEL_ID', 'FILE_ID', 'JOB_ID', 'OUTPUT_FILE_ID'];
const MARK = '--- variables ---';

function openShell(cwd: string, console: string): Shell {
  const variables: Record<string, string> = { CONSOLE: console };
  return {
    variables,
    async run(commands) {
      const tell = KEPT.map((name) => `printf '%s\\n' "$\{${name}-}"`).join('\n');
      const script = `set -euo pipefail\n${commands}\nprintf '%s\\n' '${MARK}'\n${tell}\n`;
      const child = spawn('bash', ['-c', script], {
        cwd,
        env: { PATH: process.env['PATH'] ?? '', ...variables },
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      const [out, said, [code]] = await Promise.all([
        text(child.stdout),
        text(child.stderr),
        once(child, 'close'),
      ]);
      const [printed = '', told = ''] = out.split(`${MARK}\n`);
      if (code !== 0) throw new Error(`bash ended with ${String(code)}: ${said}${out}`);
      for (const [n, value] of told.split('\n').entries()) {
        const name = KEPT[n];
        if (name !== undefined && value !== '') variables[name] = value;
      }
      return printed;
    },
  };
}

interface Watched {
  id: string;
  status: string;
  batch_id: string;
  provision_id: string;
  provision: { provision_id: string; provider: string; status: string } | null;
  events: { id: string }[];
}

async function watch(shell: Shell): Promise<Watched> {
  return JSON.parse(await shell.run(WATCH)) as Watched; // its fields are looked at below
}

test('the commands of the guide, run as they stand, end with the fields that it reads', async () => {
  await using engine = await startVllmProcess({
    flags: ['--profile', 'zero', '--model', 'Qwen/Qwen2.5-7B-Instruct'],
  });
  await using folder = await makeFolder();
  await using sluice = await startSluice({
    dataDir: join(folder.path, 'data'),
    engines: [engine.url],
    env: { PROVISIONER: 'static' },
  });
  const shell = openShell(folder.path, sluice.url);
  await writeFile(join(folder.path, 'batch_input.jsonl'), INPUT);

  await shell.run(CREATE_MODEL);
  expect(shell.variables['MODEL_ID']).toBe('model-qwen2.5-7b-instruct');
  const template = JSON.parse(await shell.run(CREATE_TEMPLATE));
  expect(template).toMatchObject({
    name: 'qwen2-5-7b-cloud',
    version: 'v1.0.0',
    status: 'active',
    model_id: 'model-qwen2.5-7b-instruct',
    spec: { accelerator: { type: 'H100', vram_gb: 80 }, engine: { ready_timeout_seconds: 1800 } },
  });
  await shell.run(UPLOAD);
  expect(shell.variables['FILE_ID']).toMatch(/^file-/);
  await shell.run(CREATE_JOB);
  expect(shell.variables['JOB_ID']).toMatch(/^job_/);

  const done = await until(
    async () => {
      const now = await watch(shell);
      if (/failed|expired|cancelled/.test(now.status)) throw new Error(JSON.stringify(now));
      return now.status === 'completed' && now.provision?.status === 'released' ? now : undefined;
    },
    { timeoutMs: 30_000, what: 'the end of the job' },
  );
  expect(done).toMatchObject({
    id: shell.variables['JOB_ID'],
    batch_id: expect.stringMatching(/^batch_/),
    provision_id: expect.stringMatching(/^prov_/),
    provision: { provider: 'static', provision_id: done.provision_id },
  });
  expect(done.events.map(({ id }) => id)).toEqual([
    'queued',
    'resource_preparing',
    'submitting',
    'batch_created',
    'in_progress',
    'finalizing',
    'completed',
  ]);

  const printed = await shell.run(READ_RESULTS);
  expect(shell.variables['OUTPUT_FILE_ID']).toMatch(/^file-/);
  expect(printed).toContain('"custom_id": "request-1"');
  const lines = (await readFile(join(folder.path, 'batch_output.jsonl'), 'utf8')).trimEnd();
  const answers = lines.split('\n').map((line) => JSON.parse(line));
  expect(answers).toMatchObject([
    { custom_id: 'request-1', response: { status_code: 200 }, error: null },
    { custom_id: 'request-2', response: { status_code: 200 }, error: null },
  ]);

  // A second one, whose requests hang until it is cancelled.
  await engine.setFaults([{ kind: 'hang_headers' }]);
  const first = shell.variables['JOB_ID'];
  await shell.run(CREATE_JOB);
  expect(shell.variables['JOB_ID']).not.toBe(first);
  await until(async () => (await watch(shell)).status === 'in_progress');
  const cancelling = JSON.parse(await shell.run(CANCEL));
  expect(cancelling).toMatchObject({
    id: shell.variables['JOB_ID'],
    // What was in flight may be collected before the answer is on its way.
    status: expect.stringMatching(/^(?:cancelling|finalizing|cancelled)$/),
  });
  const cancelled = await until(
    async () => {
      const now = await watch(shell);
      return now.status === 'cancelled' && now.provision?.status === 'released' ? now : undefined;
    },
    { timeoutMs: 20_000, what: 'the end of the cancelled job' },
  );
  expect(cancelled.events.at(-1)?.id).toBe('cancelled');
}, 90_000);
