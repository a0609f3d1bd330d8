import { createReadStream, createWriteStream } from 'node:fs';
import { access, constants, rename, rm, stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { pipeline } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import * as v from 'valibot';
import type { Settings } from '../../config/schema.ts';
import { describeError, invalidInput } from '../domain/errors.ts';
import { ENDPOINTS, isEndpoint, isFinal, JOB_STATES } from '../domain/job.ts';
import { createLogger } from '../observability/log.ts';
import { createProgress } from './progress.ts';
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
  output: string | null;
  errors: string | null;
}

const POLL_MS = 100;
const EXIT_INTERRUPTED = 130;
/** A run on one's own machine has no tenant to be protected from. */
const NO_LIMIT = {
  maxBatchLines: 1_000_000_000,
  maxFileBytes: 2 ** 50,
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
  const stopped = untilStopped();
  const folder = await openRunFolder(settings.dataDir, options);
  let done = false;
  try {
    const server = await startServer({
      settings: {
        ...settings,
        ...NO_LIMIT,
        engineUrls: [...engines],
        dataDir: folder.path,
        httpAddr: { host: '127.0.0.1', port: 0 },
        queues: ['planning', 'provisioning', 'submission', 'dispatch', 'release'],
      },
      namespace: `sluice-run-${folder.path.slice(-16)}`,
      roles: ['api', 'worker', 'sweeper'],
      log: createLogger({
        level: process.stderr.isTTY
          ? 'silent'
          : settings.logLevel === 'info'
            ? 'error'
            : settings.logLevel,
      }),
    });
    try {
      const code = await runOn(server, folder, { ...options, endpoint, engines }, stopped);
      done = code !== EXIT_INTERRUPTED;
      return code;
    } finally {
      await server.close();
    }
  } finally {
    await folder.close(done);
  }
}

async function runOn(
  server: RunningServer,
  folder: RunFolder,
  options: RunOptions & { endpoint: string; engines: readonly string[] },
  stopped: Promise<NodeJS.Signals>,
): Promise<number> {
  const begun = performance.now();
  const client = createRunClient(server.url ?? '');
  const where = options.note ?? options.engines.join(', ');
  process.stderr.write(`${options.input} → ${where} → ${options.output}\n`);
  const batchId = folder.batchId ?? (await submit(client, options));
  if (folder.batchId !== null) process.stderr.write('Going on where the last run stopped.\n');
  await folder.remember(batchId);
  const job = await follow(client, server, batchId, stopped);
  if (job === null) {
    process.stderr.write('Interrupted. The same command goes on where it stopped.\n');
    return EXIT_INTERRUPTED;
  }
  const output = await download(client, job.output_dataset, options.output);
  const errors = await download(client, job.error_dataset, `${options.output}.errors.jsonl`);
  const seconds = (performance.now() - begun) / 1_000;
  report(job, { output, errors, seconds }, options.json === true);
  return job.status === 'completed' ? 0 : 1;
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

/** Shows progress until the job is over; null when the user stopped it. */
async function follow(
  client: RunClient,
  server: RunningServer,
  batchId: string,
  stopped: Promise<NodeJS.Signals>,
): Promise<RunJob | null> {
  const progress = createProgress(process.stderr);
  let isStopped = false;
  void stopped.then(() => {
    isStopped = true;
  });
  try {
    while (!isStopped) {
      const job = await client.job(batchId);
      const counts = job.request_counts ?? { total: 0, completed: 0, failed: 0 };
      const note = counts.total === 0 ? 'reading the input' : job.error_message;
      const { inFlight, uncommitted } = server.load() ?? { inFlight: 0, uncommitted: 0 };
      progress.tick({ ...counts, inFlight, uncommitted, note });
      if (JOB_STATES.some((state) => state === job.status && isFinal(state))) return job;
      await Promise.race([sleep(POLL_MS), stopped]);
    }
    return null;
  } finally {
    progress.stop();
  }
}

/** Writes a file of the job beside its final place and renames it: what is there is whole. Null when there is none. */
async function download(client: RunClient, fileId: string, path: string): Promise<string | null> {
  if (fileId === '') {
    await rm(path, { force: true });
    return null;
  }
  const partial = `${path}.${process.pid}.partial`;
  try {
    await pipeline(await client.content(fileId), createWriteStream(partial));
    await rename(partial, path);
    return path;
  } catch (error) {
    await rm(partial, { force: true });
    throw error;
  }
}

function report(
  job: RunJob,
  { output, errors, seconds }: { output: string | null; errors: string | null; seconds: number },
  asJson: boolean,
): void {
  const {
    total: lines,
    completed,
    failed,
  } = job.request_counts ?? { total: 0, completed: 0, failed: 0 };
  const rate = Math.round((lines / seconds) * 10) / 10;
  for (const error of job.errors) {
    const where = error.line === 0 ? '' : `line ${error.line}: `;
    process.stderr.write(`${where}${error.message} (${error.code})\n`);
  }
  const headline = `${job.status}: ${completed} of ${lines} answered, ${failed} failed`;
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
  const folder = dirname(resolve(output));
  await access(folder, constants.W_OK).catch((error: unknown) => {
    throw invalidInput(
      'run.output',
      `--output cannot be written in ${folder}: ${describeError(error)}`,
    );
  });
  const there = await stat(output).catch(() => null);
  if (there?.isDirectory()) throw invalidInput('run.output', `--output ${output} is a folder.`);
}

const MOST_PEEK_BYTES = 16 * 1024 * 1024;
const firstLine = v.pipe(v.string(), v.parseJson(), v.object({ url: v.string() }));

/** The endpoint that the file asks: that of its first line. */
async function readEndpoint(input: string): Promise<string> {
  const source = createReadStream(input, { end: MOST_PEEK_BYTES });
  try {
    for await (const line of createInterface({ input: source })) {
      if (line.trim() === '') continue;
      const parsed = v.safeParse(firstLine, line.replace(/^\uFEFF/, ''));
      const url = parsed.success ? parsed.output.url : '';
      if (isEndpoint(url)) return url;
      throw invalidInput(
        'run.input',
        `The first line of ${input} is no request of the Batch API: it needs custom_id, method, url and body, with a ` +
          `url of ${ENDPOINTS.join(', ')}.`,
      );
    }
    throw invalidInput('run.input', `${input} is empty.`);
  } finally {
    source.destroy();
  }
}
