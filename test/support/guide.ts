import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';

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

export const CREATE_MODEL = String.raw`
   MODEL_ID=$(curl -sS -X POST "$CONSOLE/api/v1/models" \
     -H "Content-Type: application/json" \
     -d '{
       "name": "Qwen2.5 7B Instruct",
       "categories": ["LLM"],
       "serving_name": "Qwen/Qwen2.5-7B-Instruct"
     }' | jq -r .id)
`;

export const CREATE_TEMPLATE = String.raw`
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

export const INPUT = `{"custom_id":"request-1","method":"POST","url":"/v1/chat/completions","body":{"model":"Qwen/Qwen2.5-7B-Instruct","messages":[{"role":"user","content":"Explain AIBrix in one paragraph."}],"max_tokens":128}}
{"custom_id":"request-2","method":"POST","url":"/v1/chat/completions","body":{"model":"Qwen/Qwen2.5-7B-Instruct","messages":[{"role":"user","content":"What is batch inference?"}],"max_tokens":128}}
`;

export const UPLOAD = String.raw`
   FILE_ID=$(curl -sS -X POST "$CONSOLE/api/v1/files/upload" \
     -F "purpose=batch" \
     -F "file=@batch_input.jsonl" | jq -r .id)
`;

export const CREATE_JOB = String.raw`
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

export const CANCEL = String.raw`
   curl -sS -X POST "$CONSOLE/api/v1/jobs/${JOB_ID}/cancel" \
     -H "Content-Type: application/json" \
     -d '{}'
`;

export const READ_RESULTS = String.raw`
   OUTPUT_FILE_ID=$(curl -sS "$CONSOLE/api/v1/jobs/${JOB_ID}" | jq -r .output_dataset)

   curl -sS "$CONSOLE/api/v1/files/${OUTPUT_FILE_ID}/content" \
     -o batch_output.jsonl

   jq . batch_output.jsonl
`;

/** As the guide tells it of a job that goes well. */
export const STATE_FLOW = [
  'queued',
  'resource_preparing',
  'submitting',
  'batch_created',
  'in_progress',
  'finalizing',
  'completed',
];

export interface Shell {
  /** Runs commands, and keeps the variables that they set for the next ones. Rejects unless all of them succeed. */
  run(commands: string): Promise<string>;
  variables: Record<string, string>;
}

const KEPT = ['MODEL_ID', 'FILE_ID', 'JOB_ID', 'OUTPUT_FILE_ID'];
const MARK = '--- variables ---';

/** A shell in a folder, whose commands go to the server at `console`. */
export function openShell(cwd: string, console: string): Shell {
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

/** What the guide's `watch` prints. */
export interface Watched {
  id: string;
  status: string;
  batch_id: string;
  provision_id: string;
  provision: { provision_id: string; provider: string; status: string; raw_json: string } | null;
  events: { id: string }[];
}

/** Runs the command that the guide's `watch` repeats. */
export async function watch(shell: Shell): Promise<Watched> {
  return JSON.parse(await shell.run(WATCH)) as Watched; // its fields are looked at below
}
