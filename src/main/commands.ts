import { Command, InvalidArgumentError, Option } from 'commander';
import { loadSettings } from '../../config/load.ts';
import { engineBaseUrl } from '../domain/engine-url.ts';
import { describeError, SluiceError } from '../domain/errors.ts';
import { WORKER_EXITS } from '../domain/worker-progress.ts';
import type { BatchWorkerOptions } from './batch/run-worker.ts';
import type { GcOptions } from './gc.ts';
import type { DoctorOptions } from './doctor.ts';
import type { ExportOptions } from './export.ts';
import { addProvisions } from './provision-commands.ts';
import type { RunOptions } from './run.ts';
import type { VerifyOptions } from './verify.ts';
import { version } from './version.ts';

function engine(value: string): string {
  const address = engineBaseUrl(value);
  if (address === null) throw new InvalidArgumentError('It must be like http://localhost:8000.');
  return address;
}

function concurrency(value: string): number {
  const count = Number(value);
  if (Number.isInteger(count) && count >= 1 && count <= 1_024) return count;
  throw new InvalidArgumentError('It must be a whole number from 1 to 1024.');
}

function duration(value: string): number {
  const match = /^(\d+)(s|m|h)$/.exec(value);
  if (match === null) throw new InvalidArgumentError('It must be like 90s, 15m or 2h.');
  return Number(match[1]) * { s: 1_000, m: 60_000, h: 3_600_000 }[match[2] as 's' | 'm' | 'h'];
}

function addRun(program: Command): void {
  program
    .command('run')
    .description('send a JSONL file of requests through an engine and write the answers to a file')
    .requiredOption(
      '-i, --input <file>',
      'JSONL file, one request a line, as of the OpenAI Batch API',
    )
    .requiredOption('-o, --output <file>', 'file for the answers, one a line, in input order')
    .option(
      '-e, --engine <url>',
      'base URL of a vLLM or compatible server (default: ENGINE_URLS)',
      engine,
    )
    .option(
      '-c, --max-concurrency <n>',
      'requests in flight at once (default: MAX_CONCURRENCY)',
      concurrency,
    )
    .option(
      '-w, --wait <duration>',
      'give up when no engine was healthy for so long, such as 90s or 15m (default: wait)',
      duration,
    )
    .option('-f, --force', 'write over an output that has content already')
    .option('--json', 'print the summary as one JSON object, the last line of stdout')
    .addOption(new Option('--note <text>', 'shown beside the engine').hideHelp())
    .action(async (options: RunOptions) => {
      const { run } = await import('./run.ts');
      process.exitCode = await run(options, loadSettings());
    });
}

function addJobs(program: Command): void {
  const jobs = program.command('jobs').description('look after single jobs');
  jobs
    .command('export')
    .description(
      'write the answers that are stored of a job to a local folder, and leave the job as it is',
    )
    .argument('<batch>', 'id of the batch or job: batch_… or job_…')
    .option('-t, --to <dir>', 'folder for the files', '.')
    .option('-f, --force', 'write over files that are there')
    .option('--json', 'print what was written as one JSON object')
    .action(async (batch: string, options: ExportOptions) => {
      const { exportJob } = await import('./export.ts');
      process.exitCode = await exportJob(batch, options, loadSettings());
    });
}

/** What looks after a server and what it wrote. */
function addCare(program: Command): void {
  program
    .command('verify')
    .description('check that what a batch wrote is whole and unchanged, by its manifest')
    .argument('[batch]', 'id of the batch or job: batch_… or job_…')
    .option('-u, --url <url>', 'base URL of the server (default: SLUICE_URL, else HTTP_ADDR)')
    .option('-d, --dir <dir>', 'check the manifest and files in this folder, without a server')
    .option('--json', 'print the checks as one JSON object')
    .action(async (batch: string | undefined, options: VerifyOptions) => {
      const { verify } = await import('./verify.ts');
      process.exitCode = await verify(batch, options, loadSettings());
    });
  program
    .command('gc')
    .description('remove what is over and what crashes left in storage, as the sweeper does hourly')
    .option('-n, --dry-run', 'only say what would be removed')
    .option('--confirm', 'remove orphans even where the records look incomplete')
    .option('--json', 'print the report as one JSON object')
    .action(async (options: GcOptions) => {
      const { gc } = await import('./gc.ts');
      process.exitCode = await gc(options, loadSettings());
    });
  program
    .command('doctor')
    .description('try Redis, storage and engines of the settings, and say what to mend')
    .option('--json', 'print what was found as one JSON object')
    .action(async (options: DoctorOptions) => {
      const { doctor } = await import('./doctor.ts');
      process.exitCode = await doctor(options, loadSettings());
    });
}

function addBatchWorker(program: Command): void {
  program
    .command('batch-worker')
    .description('answer the batch of a Kubernetes Job with the engine in its pod, without Redis')
    .option(
      '--load-job-from-api',
      'end where the Job cannot be read, whatever the environment says',
    )
    .option('--llm-engine-container-name <name>', "name of the engine's container", 'llm-engine')
    .action(async (options: BatchWorkerOptions) => {
      const { runBatchWorker } = await import('./batch/run-worker.ts');
      process.exitCode = await runBatchWorker(options, loadSettings());
    });
}

/**
 * Parses the command line and runs it; each command loads what it needs, which is most of its start. Every failure ends
 * in one clear message and exit code 1.
 */
export async function main(argv: readonly string[]): Promise<void> {
  const program = new Command('sluice')
    .description('Runs LLM batches: a JSONL file in, a JSONL file of answers out.')
    .version(version())
    .showHelpAfterError('(add --help for what there is)');
  program
    .command('start')
    .description('start the server; settings come from the environment, see .env.example')
    .action(async () => {
      const { serve } = await import('./serve.ts');
      await serve(loadSettings());
    });
  addRun(program);
  addJobs(program);
  addProvisions(program);
  addCare(program);
  addBatchWorker(program);
  try {
    await program.parseAsync(argv);
  } catch (error) {
    console.error(`sluice: ${describeError(error)}`);
    if (!(error instanceof SluiceError) && error instanceof Error) console.error(error.stack);
    process.exitCode = exitCodeOf(error, argv);
  }
}

/** As sysexits.h has it: try again later. */
export const EXIT_BUSY = 75;

/** What a batch worker ends with is told apart by the Job's `podFailurePolicy`. */
function exitCodeOf(error: unknown, argv: readonly string[]): number {
  if (isBusy(error)) return EXIT_BUSY;
  const isSettings = error instanceof SluiceError && error.code === 'settings.invalid';
  return isSettings && argv[2] === 'batch-worker' ? WORKER_EXITS.usage.code : 1;
}

function isBusy(error: unknown): boolean {
  return error instanceof SluiceError && ['run.busy', 'gc.busy'].includes(error.code);
}
