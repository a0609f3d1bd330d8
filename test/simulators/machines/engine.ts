import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { startVllm } from '../vllm/simulator.ts';
import { parseEngineArgs, RefusedArguments } from './engine-args.ts';
import type { EngineArgs } from './engine-args.ts';
import type { EngineKnobs, EngineReport } from './knobs.ts';

/*
 * `vllm serve`, `python -m vllm.entrypoints.openai.api_server` and `python -m sglang.launch_server` of
 * a simulated machine: reads the command line strictly, loads for a while, and then is the vLLM
 * simulator of this repository, bound to what it was told inside the machine.
 */

const SIM = '/sim';

function say(line: string): void {
  const at = new Date().toISOString();
  console.log(`INFO ${at.slice(5, 10)} ${at.slice(11, 19)} ${line}`);
}

function readKnobs(): EngineKnobs {
  return JSON.parse(readFileSync(`${SIM}/engine.json`, 'utf8')) as EngineKnobs; // written by machine.ts
}

function gpuCount(): number {
  return readFileSync(`${SIM}/gpus`, 'utf8').trim().split('\n').filter(Boolean).length;
}

function die(lines: readonly string[], code: number): never {
  for (const line of lines) console.error(line);
  process.exit(code);
}

/** What an engine prints before it goes, by kind of crash. */
const CRASHES: Record<NonNullable<EngineKnobs['crash']>, readonly string[]> = {
  oom: [
    '(EngineCore_DP0 pid=412) ERROR [core.py:708] EngineCore failed to start.',
    '(EngineCore_DP0 pid=412) Traceback (most recent call last):',
    '(EngineCore_DP0 pid=412)   File "/usr/local/lib/python3.12/dist-packages/vllm/v1/engine/core.py", line 699, in run_engine_core',
    '(EngineCore_DP0 pid=412) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.09 GiB. GPU 0 has a total capacity of 79.10 GiB of which 322.88 MiB is free.',
    'Traceback (most recent call last):',
    'RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}',
  ],
  arch: [
    'Traceback (most recent call last):',
    '  File "/usr/local/lib/python3.12/dist-packages/vllm/engine/arg_utils.py", line 1132, in create_model_config',
    'pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig',
    "  Value error, Model architectures ['WeirdForCausalLM'] are not supported for now.",
  ],
  driver: [
    'Traceback (most recent call last):',
    'RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that might have already set an error? Error 804: forward compatibility was attempted on non supported HW',
  ],
};

/** The hub's layout of a model that was downloaded: `models--org--name` (huggingface_hub, file_download.py). */
function cacheFolder(args: EngineArgs): string {
  const { HF_HUB_CACHE, HF_HOME, HOME } = process.env;
  const hub =
    HF_HUB_CACHE ?? path.join(HF_HOME ?? path.join(HOME ?? '/root', '.cache/huggingface'), 'hub');
  return path.join(args.downloadDir ?? hub, `models--${args.model.replaceAll('/', '--')}`);
}

function isCached(folder: string): boolean {
  try {
    return readFileSync(path.join(folder, 'complete'), 'utf8') !== '';
  } catch {
    return false; // not downloaded yet
  }
}

async function download(args: EngineArgs, knobs: EngineKnobs): Promise<boolean> {
  const token = process.env['HF_TOKEN'] ?? process.env['HUGGING_FACE_HUB_TOKEN'];
  if (knobs.gated_token !== null && token !== knobs.gated_token) {
    const where = `https://huggingface.co/${args.model}/resolve/main/config.json`;
    die(
      [
        'Traceback (most recent call last):',
        `huggingface_hub.errors.GatedRepoError: 401 Client Error. Cannot access gated repo for url ${where}.`,
        `OSError: You are trying to access a gated repo. Make sure to have access to it at https://huggingface.co/${args.model}.`,
      ],
      1,
    );
  }
  if (args.model.startsWith('/')) return true;
  const folder = cacheFolder(args);
  if (isCached(folder)) return true;
  say(`[weight_utils.py:392] Downloading weights of ${args.model}`);
  await sleep(knobs.download_ms);
  mkdirSync(folder, { recursive: true });
  writeFileSync(path.join(folder, 'complete'), `${args.model}\n`);
  say('[weight_utils.py:413] Time spent downloading weights');
  return false;
}

/** Written beside and renamed: the simulator reads it whenever it likes. */
function createReport(args: EngineArgs) {
  const file = `${SIM}/engines/${process.pid}.json`;
  const report: EngineReport = {
    pid: process.pid,
    model: args.model,
    served_names: args.servedNames,
    port: args.port,
    started_at: Date.now() - Math.round(process.uptime() * 1000),
    weights_cached: false,
    healthy_at: null,
    first_request_at: null,
    last_answer_at: null,
    requests: 0,
    exit_code: null,
    ended_at: null,
  };
  mkdirSync(path.dirname(file), { recursive: true });

  function save(changes: Partial<EngineReport>): void {
    Object.assign(report, changes);
    writeFileSync(`${file}.next`, JSON.stringify(report));
    renameSync(`${file}.next`, file);
  }

  save({});
  process.on('exit', (code) => save({ exit_code: code, ended_at: Date.now() }));
  return { save, report };
}

type Report = ReturnType<typeof createReport>;

async function serve(args: EngineArgs, knobs: EngineKnobs, report: Report): Promise<void> {
  const apiKey = args.apiKey ?? process.env['VLLM_API_KEY'];
  const vllm = await startVllm({
    host: args.host ?? '0.0.0.0',
    port: args.port,
    models: args.servedNames,
    profile: knobs.profile,
    config: {
      ...knobs.set,
      ...(args.maxNumSeqs === undefined ? {} : { max_num_seqs: args.maxNumSeqs }),
    },
    // What came and when it was answered is read from here, also after this process was killed.
    logFile: `${SIM}/engines/${process.pid}.jsonl`,
    onExit: (code) => process.exit(code),
    ...(apiKey === undefined || apiKey === '' ? {} : { apiKey }),
  });
  await vllm.setFaults(knobs.faults ?? []);
  report.save({ healthy_at: Date.now() });
  console.log(`INFO:     Started server process [${process.pid}]`);
  console.log('INFO:     Application startup complete.');
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.once(signal, () => {
      void vllm.stop(1000).then(() => process.exit(0));
    });
  }
}

async function run(args: EngineArgs): Promise<void> {
  const knobs = readKnobs();
  const report = createReport(args);
  say(`[api_server.py:1896] vLLM API server version ${knobs.version}`);
  say(`[utils.py:233] non-default args: ${JSON.stringify({ model: args.model, port: args.port })}`);
  const gpus = gpuCount();
  if (args.worldSize > gpus) {
    die(
      [
        'Traceback (most recent call last):',
        `pydantic_core._pydantic_core.ValidationError: World size (${args.worldSize}) is larger than the number of available GPUs (${gpus}) in this node.`,
      ],
      1,
    );
  }
  const began = Date.now();
  if (knobs.crash !== null) {
    await sleep(knobs.crash_after_ms);
    die(CRASHES[knobs.crash], 1);
  }
  report.save({ weights_cached: await download(args, knobs) });
  say('[gpu_model_runner.py:2338] Starting to load model');
  await sleep(knobs.load_ms);
  say(`[gpu_model_runner.py:2392] Model loading took ${(Date.now() - began) / 1000} seconds`);
  if (knobs.never_healthy)
    setInterval(
      () => say('[shm_broadcast.py:466] No available shared memory broadcast block found'),
      1000,
    );
  else await serve(args, knobs, report);
}

async function main(): Promise<void> {
  const [program, ...rest] = process.argv.slice(2);
  try {
    if (program === 'vllm' && rest[0] === '--version') {
      console.log(readKnobs().version);
      return;
    }
    if (program === 'vllm' && rest.shift() !== 'serve') {
      die(
        [
          "vllm: error: argument subparser: invalid choice (choose from 'chat', 'complete', 'serve', 'bench', 'collect-env', 'run-batch')",
        ],
        2,
      );
    }
    await run(parseEngineArgs(program === 'sglang' ? 'sglang' : 'vllm', rest));
  } catch (error) {
    if (error instanceof RefusedArguments) die([error.message], error.exitCode);
    const taken = error instanceof Error && 'code' in error && error.code === 'EADDRINUSE';
    if (taken) die(['OSError: [Errno 98] Address already in use'], 1);
    throw error;
  }
}

await main();
