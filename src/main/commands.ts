import { readFileSync } from 'node:fs';
import { Command, InvalidArgumentError, Option } from 'commander';
import { loadSettings } from '../../config/load.ts';
import { engineBaseUrl } from '../domain/engine-url.ts';
import { describeError, SluiceError } from '../domain/errors.ts';
import { run } from './run.ts';
import type { RunOptions } from './run.ts';
import { serve } from './serve.ts';

function version(): string {
  const manifest: unknown = JSON.parse(
    readFileSync(new URL('../../package.json', import.meta.url), 'utf8'),
  );
  const found = typeof manifest === 'object' && manifest !== null && 'version' in manifest;
  return found ? String(manifest.version) : 'unknown';
}

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

/** Parses the command line and runs it; every failure ends in one clear message and exit code 1. */
export async function main(argv: readonly string[]): Promise<void> {
  const program = new Command('sluice')
    .description('Runs LLM batches: a JSONL file in, a JSONL file of answers out.')
    .version(version())
    .showHelpAfterError('(add --help for what there is)');
  program
    .command('start')
    .description('start the server; settings come from the environment, see .env.example')
    .action(async () => serve(loadSettings()));
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
      process.exitCode = await run(options, loadSettings());
    });
  try {
    await program.parseAsync(argv);
  } catch (error) {
    console.error(`sluice: ${describeError(error)}`);
    if (!(error instanceof SluiceError) && error instanceof Error) console.error(error.stack);
    process.exitCode = isBusy(error) ? EXIT_BUSY : 1;
  }
}

/** As sysexits.h has it: try again later. */
export const EXIT_BUSY = 75;

function isBusy(error: unknown): boolean {
  return error instanceof SluiceError && error.code === 'run.busy';
}
