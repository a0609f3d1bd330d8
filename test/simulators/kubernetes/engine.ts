import { mkdirSync } from 'node:fs';
import { createServer } from 'node:http';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseEngineArgs, RefusedArguments } from '../machines/engine-args.ts';
import type { EngineArgs } from '../machines/engine-args.ts';
import { startVllm } from '../vllm/simulator.ts';
import type { FaultInput } from '../vllm/simulator.ts';
import type { EngineKnobs } from './engine-knobs.ts';

/*
 * `vllm serve` and the vllm-mock image of a simulated pod: reads the command line strictly, and is
 * the vLLM simulator of this repository behind it. GET /ready answers as the mock of AIBrix does.
 */

const SIM = '/sim';

const CRASHES: Record<NonNullable<EngineKnobs['crash']>, readonly string[]> = {
  oom: [
    '(EngineCore_DP0 pid=412) ERROR [core.py:708] EngineCore failed to start.',
    '(EngineCore_DP0 pid=412) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.09 GiB. GPU 0 has a total capacity of 79.10 GiB of which 322.88 MiB is free.',
    'RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}',
  ],
  arch: [
    'pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig',
    "  Value error, Model architectures ['WeirdForCausalLM'] are not supported for now.",
  ],
};

function die(lines: readonly string[], code: number): never {
  for (const line of lines) console.error(line);
  process.exit(code);
}

async function serveNothing(port: number): Promise<void> {
  const server = createServer((_request, response) => {
    response.writeHead(503).end();
  });
  const { promise, resolve } = Promise.withResolvers<undefined>();
  server.listen(port, '0.0.0.0', () => resolve(undefined));
  await promise;
}

interface Command {
  args: EngineArgs;
  port: number;
}

/** vllm-mock takes its model and port from variables where its command line does not say them. */
function readCommand(words: readonly string[]): Command {
  const isPlain = words[0] !== undefined && !words[0].startsWith('-');
  const isNamed = isPlain || words.some((word) => word.startsWith('--model'));
  const model = process.env['MODEL_NAME'] ?? 'sim-model';
  const args = parseEngineArgs('vllm', isNamed ? words : ['--model', model, ...words]);
  const hasPort = words.some((word) => word.startsWith('--port'));
  return { args, port: hasPort ? args.port : Number(process.env['PORT'] ?? args.port) };
}

async function main(): Promise<void> {
  const knobs = JSON.parse(process.env['SIM_ENGINE'] ?? '{}') as EngineKnobs; // written by the simulator
  const { args, port } = readCommand(process.argv.slice(2));
  console.log(`INFO [api_server.py:1896] vLLM API server version 0.11.2, model ${args.model}`);
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => process.exit(0));
  await sleep(knobs.startDelayMs ?? 0);
  if (knobs.crash !== undefined) die(CRASHES[knobs.crash], 1);
  if (knobs.neverHealthy === true) {
    await serveNothing(port);
    return;
  }
  const apiKey = args.apiKey ?? process.env['VLLM_API_KEY'];
  mkdirSync(SIM, { recursive: true });
  const vllm = await startVllm({
    host: args.host ?? process.env['HOST'] ?? '0.0.0.0',
    port,
    models: args.servedNames,
    anyModel: knobs.anyModel ?? false,
    profile: knobs.profile ?? 'zero',
    config: {
      ...knobs.set,
      ...(args.maxNumSeqs === undefined ? {} : { max_num_seqs: args.maxNumSeqs }),
    },
    // What came and when is read from here, also after this process was killed.
    logFile: `${SIM}/${Date.now()}-${process.pid}.jsonl`,
    onExit: (code) => process.exit(code),
    ...(apiKey === undefined || apiKey === '' ? {} : { apiKey }),
  });
  if (knobs.faults !== undefined) await vllm.setFaults(knobs.faults as unknown as FaultInput[]);
  process.removeAllListeners('SIGTERM').removeAllListeners('SIGINT');
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.once(signal, () => {
      void vllm.stop(1000).then(() => process.exit(0));
    });
  }
  console.log(`INFO:     Started server process [${process.pid}]`);
  console.log('INFO:     Application startup complete.');
  console.log(`INFO:     Uvicorn running on http://0.0.0.0:${port}`);
}

try {
  await main();
} catch (error) {
  if (error instanceof RefusedArguments) die([error.message], error.exitCode);
  if (error instanceof Error && 'code' in error && error.code === 'EADDRINUSE') {
    die(['OSError: [Errno 98] Address already in use'], 1);
  }
  throw error;
}
