import { createReadStream, createWriteStream } from 'node:fs';
import { lstat, realpath, rename, rm, stat, writeFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { pipeline } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import * as v from 'valibot';
import type { Settings } from '../../config/schema.ts';
import { describeError, invalidInput } from '../domain/errors.ts';
import { ENDPOINTS, isEndpoint, isFinalName, QUEUE_NAMES } from '../domain/job.ts';
import { createLogger } from '../observability/log.ts';
import { createProgress } from './progress.ts';
import type { Tick } from './progress.ts';
import { createRunClient } from './run-client.ts';
import type { RunClient, RunJob } from './run-client.ts';
import { openRunFolder } from './run-folder.ts';
import type { RunFolder } from './run-folder.ts';
import { startServer } from './server.ts';
import type { RunningServer } from './server.ts';
import { untilStopped } from './signals.ts';

export interface RunOptions {
  input: string;
  output: string;
  engine?: string;
  maxConcurrency?: number;
  /** Gives up when no engine was healthy for so many ms. */
  wait?: number;
  /** Writes over an output that is there already. */
  force?: true;
  json?: true;
  note?: string;
}

/** What is printed at the end; with `--json` as one object. */
interface Summary {
  lines: number;
  completed: number;
  failed: number;
  seconds: number;
  lines_per_second: number;
  status: string;
  /** Why the input was refused; empty otherwise. */
  problems: RunJob['errors'];
  output: string | null;
  errors: string | null;
}

const POLL_MS = 100;
const EXIT_INTERRUPTED = 130;
/** A run on one's own machine has no tenant to be protected from. */
const NO_LIMIT = {
  maxBatchLines: 1_000_000_000,
  maxFileBytes: 2 ** 50,
  maxUploadBytes: 2 ** 50,
  maxBatchFileBytes: 2 ** 50,
};
const WINDOW = '365d';

/**
 * `sluice run`: a whole Sluice for one file, in this process, with Redis and storage in a folder of its own. The file
 * goes through the same API and queues as on a server. Interrupted, the same command goes on where it stopped.
 * Returns the exit code: 0 only when the batch completed.
 */
export async function run(options: RunOptions, settings: Settings): Promise<number> {
  const engines = options.engine === undefined ? settings.engineUrls : [options.engine];
  if (engines.length === 0) {
    throw invalidInput(
      'run.no_engine',
      'Name an engine: --engine http://localhost:8000, or set ENGINE_URLS.',
    );
  }
  await checkPaths(options);
  const endpoint = await readEndpoint(options.input);
  // A link is followed, so that the file behind it is written and not the link replaced.
  // Where it cannot be looked at it is missing, since a file beside it could just be written.
  const isLink = (await lstat(options.output).catch(() => null))?.isSymbolicLink() ?? false;
  const output = isLink ? await realpath(options.output) : options.output;
  const folder = await openRunFolder(settings.dataDir, { ...options, output });
  let done = false;
  try {
    if (folder.batchId === null && options.force !== true && (await hasContent(output))) {
      done = true;
      const mend = 'name another file, or write over it with --force';
      throw invalidInput('run.output', `--output ${options.output} has content already: ${mend}.`);
    }
    const server = await startServer({
      settings: {
        ...settings,
        ...NO_LIMIT,
        provisioners: ['static'],
        engineUrls: [...engines],
        // One file on one's own machine is not sent away.
        metadataServiceUrl: undefined,
        dataDir: folder.path,
        httpAddr: { host: '127.0.0.1', port: 0 },
        queues: [...QUEUE_NAMES],
      },
      namespace: folder.namespace,
      roles: ['api', 'worker', 'sweeper'],
      log: createLogger({ level: levelOf(settings) }),
    });
    // Until here nothing is in hand: a signal's own effect was the right one.
    const stopped = untilStopped();
    try {
      const asked = { ...options, output, endpoint, engines };
      const end = await runOn(server, folder, asked, stopped);
      ({ done } = end);
      return end.code;
    } finally {
      await server.close();
    }
  } finally {
    await folder.close(done);
  }
}

/** The log shares stderr with the progress: on a terminal nothing may break into it, elsewhere only errors. */
function levelOf({ logLevel }: Settings): string {
  if (process.stderr.isTTY) return 'silent';
  return logLevel === 'info' ? 'error' : logLevel;
}

async function runOn(
  server: RunningServer,
  folder: RunFolder,
  options: RunOptions & { endpoint: string; engines: readonly string[] },
  stopped: Promise<NodeJS.Signals>,
): Promise<{ code: number; done: boolean }> {
  const begun = performance.now();
  const client = createRunClient(server.url ?? '');
  const where = options.note ?? options.engines.join(', ');
  process.stderr.write(`${options.input} → ${where} → ${options.output}\n`);
  const batchId = folder.batchId ?? (await submit(client, options));
  if (folder.batchId !== null) process.stderr.write('Going on where the last run stopped.\n');
  await folder.remember(batchId);
  const { wait } = options;
  const { why, job, before } = await follow(client, server, batchId, { stopped, wait });
  const asJson = options.json === true;
  if (why !== 'over') {
    const seconds = (performance.now() - begun) / 1_000;
    process.stderr.write('Stopped before the end. The same command goes on where it stopped.\n');
    report(
      { ...job, status: 'interrupted' },
      { output: null, errors: null, seconds, before },
      asJson,
    );
    return { code: why === 'stopped' ? EXIT_INTERRUPTED : 1, done: false };
  }
  const output = await download(client, job, 'output_dataset', options.output);
  const errors = await download(client, job, 'error_dataset', `${options.output}.errors.jsonl`);
  const seconds = (performance.now() - begun) / 1_000;
  report(job, { output, errors, seconds, before }, asJson);
  return { code: job.status === 'completed' ? 0 : 1, done: true };
}

async function submit(
  client: RunClient,
  { input, endpoint, maxConcurrency }: RunOptions & { endpoint: string },
): Promise<string> {
  const file = await client.upload(input);
  return client.submit({
    input_file_id: file,
    endpoint,
    completion_window: WINDOW,
    ...(maxConcurrency === undefined
      ? {}
      : { aibrix: { client: { max_concurrency: maxConcurrency } } }),
  });
}

/**
 * Shows progress until the job is over, the user stops it, or no engine was healthy for as long as `wait` allows.
 * `before` is how many lines an earlier run had finished.
 */
async function follow(
  client: RunClient,
  server: RunningServer,
  batchId: string,
  { stopped, wait }: { stopped: Promise<NodeJS.Signals>; wait: number | undefined },
): Promise<{ why: 'over' | 'stopped' | 'tired'; job: RunJob; before: number }> {
  const progress = createProgress(process.stderr);
  let isStopped = false;
  void stopped.then(() => {
    isStopped = true;
  });
  let servedAt = performance.now();
  let before: number | null = null;
  let job = UNKNOWN;
  try {
    for (;;) {
      const found = await client.job(batchId);
      if (found === null && !isStopped) {
        await Promise.race([sleep(POLL_MS), stopped]);
        continue;
      }
      job = found ?? job;
      before ??= countsOf(job).completed + countsOf(job).failed;
      if (isFinalName(job.status)) return { why: 'over', job, before };
      if (!ENGINELESS.has(job.status)) servedAt = performance.now();
      if (isStopped) return { why: 'stopped', job, before };
      if (performance.now() - servedAt > (wait ?? Infinity)) {
        process.stderr.write(`No engine was healthy: ${job.error_message}\n`);
        return { why: 'tired', job, before };
      }
      progress.tick(tickOf(job, server));
      await Promise.race([sleep(POLL_MS), stopped]);
    }
  } finally {
    progress.stop();
  }
}

/** A job before it was ever told of. */
const UNKNOWN: RunJob = {
  id: '',
  status: 'queued',
  batch_id: '',
  output_dataset: '',
  error_dataset: '',
  error_message: '',
  request_counts: null,
  errors: [],
};

/** States in which a job waits for an engine. */
const ENGINELESS = new Set(['resource_preparing', 'submitting']);

function countsOf(job: RunJob) {
  return job.request_counts ?? { total: 0, completed: 0, failed: 0 };
}

function tickOf(job: RunJob, server: RunningServer): Tick {
  const counts = countsOf(job);
  const { inFlight, uncommitted } = server.load() ?? { inFlight: 0, uncommitted: 0 };
  const waiting = job.error_message === '' ? '' : `waiting: ${job.error_message}`;
  const note = counts.total === 0 ? 'reading the input' : waiting;
  return { ...counts, inFlight, uncommitted, note };
}

/**
 * Writes a file of the job beside its final place and renames it: what is there is whole, and durable, since the run's
 * own folder goes next. Null when the job has none; then an earlier run's goes, too, unless this one came to nothing.
 */
async function download(
  client: RunClient,
  job: RunJob,
  kind: 'output_dataset' | 'error_dataset',
  path: string,
): Promise<string | null> {
  if (job[kind] === '') {
    if (job.status === 'completed') await rm(path, { force: true });
    return null;
  }
  const partial = partialOf(path);
  try {
    await pipeline(await client.content(job[kind]), createWriteStream(partial, { flush: true }));
    await rename(partial, path);
    return path;
  } catch (error) {
    await rm(partial, { force: true });
    throw error;
  }
}

/** What a run has to show for itself. */
interface Found {
  output: string | null;
  errors: string | null;
  seconds: number;
  /** Lines that an earlier run had finished. */
  before: number;
}

function report(job: RunJob, { output, errors, seconds, before }: Found, asJson: boolean): void {
  const { total: lines, completed, failed } = countsOf(job);
  const rate = Math.round(((completed + failed - before) / seconds) * 10) / 10;
  for (const error of job.errors) {
    const where = error.line === 0 ? '' : `line ${error.line}: `;
    process.stderr.write(`${where}${error.message} (${error.code})\n`);
  }
  const headline =
    job.errors.length > 0 && lines === 0
      ? `${job.status}: the input is not valid`
      : `${job.status}: ${completed} of ${lines} answered, ${failed} failed`;
  process.stderr.write(`${headline}, ${seconds.toFixed(1)} s, ${rate} lines/s\n`);
  if (output !== null) process.stderr.write(`answers: ${output}\n`);
  if (errors !== null) process.stderr.write(`errors:  ${errors}\n`);
  const summary: Summary = {
    lines,
    completed,
    failed,
    seconds: Math.round(seconds * 1_000) / 1_000,
    lines_per_second: rate,
    status: job.status,
    problems: job.errors,
    output,
    errors,
  };
  if (asJson) process.stdout.write(`${JSON.stringify(summary)}\n`);
}

/** Everything that can be known to fail does so before anything is started. */
async function checkPaths({ input, output }: RunOptions): Promise<void> {
  const found = await stat(input).catch((error: unknown) => {
    throw invalidInput('run.input', `--input ${input} cannot be read: ${describeError(error)}`);
  });
  if (!found.isFile()) throw invalidInput('run.input', `--input ${input} is no file.`);
  if (resolve(input) === resolve(output)) {
    throw invalidInput('run.output', '--output must be another file than --input.');
  }
  // The answers are renamed into place: what is no file, such as /dev/stdout, would be replaced.
  // One that cannot be looked at is missing, or cannot be written: the try below tells.
  const there = await stat(output).catch(() => null);
  if (output === '-' || (there !== null && !there.isFile())) {
    throw invalidInput('run.output', `--output ${output} is no file: name one, and print that.`);
  }
  const partial = partialOf(output);
  try {
    await writeFile(partial, '');
    await rm(partial);
  } catch (error) {
    const message = `--output ${output} cannot be written: ${describeError(error)}`;
    throw invalidInput('run.output', message);
  }
}

/** Answers of an earlier run were paid for. One that cannot be looked at is missing: checkPaths has tried to write it. */
async function hasContent(output: string): Promise<boolean> {
  const there = await stat(output).catch(() => null);
  return there !== null && there.size > 0;
}

/** Where a file is written before it is whole; a later run writes over what a killed one left. */
function partialOf(path: string): string {
  return `${path}.partial`;
}

const MOST_PEEK_BYTES = 16 * 1024 * 1024;
const firstLine = v.pipe(
  v.string(),
  v.parseJson({}, 'is not JSON in UTF-8'),
  v.object({ url: v.string('has no url') }, 'is no JSON object'),
);
const REQUEST_RULE = `A request of the Batch API has custom_id, method, url and body; the url is one of ${ENDPOINTS.join(', ')}.`;

/** The endpoint that the file asks: that of its first line. */
async function readEndpoint(input: string): Promise<string> {
  const source = createReadStream(input, { end: MOST_PEEK_BYTES });
  try {
    for await (const line of createInterface({ input: source })) {
      if (line.trim() === '') continue;
      const parsed = v.safeParse(firstLine, line.replace(/^\uFEFF/, ''));
      if (parsed.success && isEndpoint(parsed.output.url)) return parsed.output.url;
      const found = parsed.success
        ? `asks ${parsed.output.url.slice(0, 100)}`
        : parsed.issues[0].message;
      const message = `The first line of ${input} ${found}. ${REQUEST_RULE}`;
      throw invalidInput('run.input', message);
    }
    throw invalidInput('run.input', `${input} is empty.`);
  } finally {
    source.destroy();
  }
}
