import process from 'node:process';
import { parseArgs } from 'node:util';
import { InvalidSetting } from './vllm/profile.ts';
import { startVllm } from './vllm/simulator.ts';
import type { LocalVllm, VllmOptions } from './vllm/simulator.ts';

const USAGE = `A vLLM server without a GPU. Prints {"listening": URL} once it listens.

  --port N               0 takes a free one (default: env PORT, else 8000)
  --host ADDRESS         default: env HOST, else 127.0.0.1
  --model NAME           may be repeated (default: env MODEL_NAME, else sim-model)
  --any-model            answers to every model name
  --profile NAME|FILE    zero, small (default), h100-8b, slow, or a JSON file
  --set FIELD=VALUE      a field of the profile, or log=off|counts|full; may be repeated
  --max-num-seqs N       the same as --set max_num_seqs=N
  --seed N               of the draw of faults
  --log FILE             appends the request log as JSONL
  --api-key KEY          wanted under /v1 and /v2
  --start-delay MS       loads its model so long, and listens only then
  --start-503            listens at once and answers 503 while it loads
  --keep-alive-timeout S idle connections (default 5)
  --enable-request-id-headers
  --old-metric-names     vllm:gpu_cache_usage_perc, as older releases
  --parent-pid PID       ends when that process is gone
  --until-stdin-closes   ends when its standard input does
  --help`;

const FLAGS = {
  port: { type: 'string' },
  host: { type: 'string' },
  model: { type: 'string', multiple: true },
  'any-model': { type: 'boolean' },
  profile: { type: 'string' },
  set: { type: 'string', multiple: true },
  'max-num-seqs': { type: 'string' },
  seed: { type: 'string' },
  log: { type: 'string' },
  'api-key': { type: 'string' },
  'start-delay': { type: 'string' },
  'start-503': { type: 'boolean' },
  'keep-alive-timeout': { type: 'string' },
  'enable-request-id-headers': { type: 'boolean' },
  'old-metric-names': { type: 'boolean' },
  'parent-pid': { type: 'string' },
  'until-stdin-closes': { type: 'boolean' },
  help: { type: 'boolean' },
} as const;

type Flags = ReturnType<typeof parseFlags>;

function parseFlags(args: string[]) {
  return parseArgs({ args, options: FLAGS }).values;
}

function toNumber(text: string | undefined, flag: string, fallback: number): number {
  if (text === undefined || text === '') return fallback;
  const value = Number(text);
  if (Number.isFinite(value) && value >= 0) return value;
  throw new InvalidSetting(`${flag} must be a number, got ${text}`);
}

/** Words stay words, so that the check of the field can say what it wants instead. */
function toValue(text: string): unknown {
  if (text === 'true' || text === 'false') return text === 'true';
  const value = Number(text);
  return text === '' || Number.isNaN(value) ? text : value;
}

function toConfig(flags: Flags): Record<string, unknown> {
  const config: Record<string, unknown> = {};
  for (const pair of flags.set ?? []) {
    const at = pair.indexOf('=');
    if (at < 1) throw new InvalidSetting(`--set wants FIELD=VALUE, got ${pair}`);
    config[pair.slice(0, at)] = toValue(pair.slice(at + 1));
  }
  const seqs = flags['max-num-seqs'];
  if (seqs !== undefined) config['max_num_seqs'] = toValue(seqs);
  return config;
}

function toOptions(flags: Flags, env: NodeJS.ProcessEnv): VllmOptions {
  const apiKey = flags['api-key'] ?? env['VLLM_API_KEY'];
  return {
    port: toNumber(flags.port ?? env['PORT'], '--port', 8000),
    host: flags.host ?? env['HOST'] ?? '127.0.0.1',
    models: flags.model ?? [env['MODEL_NAME'] ?? 'sim-model'],
    anyModel: flags['any-model'] ?? false,
    profile: flags.profile ?? 'small',
    config: toConfig(flags),
    seed: toNumber(flags.seed, '--seed', 1),
    startDelayMs: toNumber(flags['start-delay'], '--start-delay', 0),
    startAnswers503: flags['start-503'] ?? false,
    keepAliveTimeoutMs: 1000 * toNumber(flags['keep-alive-timeout'], '--keep-alive-timeout', 5),
    requestIdHeaders: flags['enable-request-id-headers'] ?? false,
    oldMetricNames: flags['old-metric-names'] ?? false,
    onExit: (code) => process.exit(code),
    ...(flags.log === undefined ? {} : { logFile: flags.log }),
    ...(apiKey === undefined || apiKey === '' ? {} : { apiKey }),
  };
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false; // ESRCH: gone, or EPERM: its number belongs to somebody else by now
  }
}

/** Nobody else ends a simulator whose parent was killed: SIGKILL tells no child. */
function followParent(flags: Flags): void {
  const pid = toNumber(flags['parent-pid'], '--parent-pid', 0);
  if (pid > 0) setInterval(() => isAlive(pid) || process.exit(0), 250).unref();
  if (flags['until-stdin-closes'] === true) {
    process.stdin.on('end', () => process.exit(0)).on('error', () => process.exit(0));
    process.stdin.resume();
  }
}

const GRACE_MS = 10_000;

function stopOnSignals(simulator: LocalVllm): void {
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.once(signal, () => {
      void simulator.stop(GRACE_MS).then(() => process.exit(0));
    });
  }
}

async function main(): Promise<void> {
  try {
    const flags = parseFlags(process.argv.slice(2));
    if (flags.help === true) {
      console.log(USAGE);
      return;
    }
    const options = toOptions(flags, process.env);
    followParent(flags);
    const simulator = await startVllm(options);
    stopOnSignals(simulator);
    console.log(JSON.stringify({ listening: simulator.url }));
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1); // an open standard input would keep a failed start alive
  }
}

if (import.meta.main) await main();
