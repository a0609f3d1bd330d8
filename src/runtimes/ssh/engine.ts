import { createHash } from 'node:crypto';
import * as v from 'valibot';
import { invalidInput, permanent, transient } from '../../domain/errors.ts';
import { showAddress } from './errors.ts';
import { runScript, SCRIPTS } from './scripts.ts';
import type { Session } from './session.ts';

/** In a container of its own, as on a virtual machine that has Docker. */
export interface DockerForm {
  kind: 'docker';
  image: string;
  /** Program in the image; null: the image's own entrypoint, and `argv` are its arguments. */
  entrypoint: string | null;
  /** As `docker run --gpus` takes it: `all`, or `device=0,1`; null: none. */
  gpus: string | null;
  /** `/dev/shm`, as `docker run --shm-size` takes it: `16g`. Tensor parallelism needs far more than Docker's 64 MB. */
  shmSize: string;
  /** The engine's port in the container, and on the machine's loopback. */
  port: number;
  /** Folders of the machine that appear in the container, such as the cache of the weights; made where they are missing. */
  volumes: readonly { from: string; to: string }[];
  /** Absolute paths that appear in the container where the machine has them, and else are left to the image. */
  shared: readonly string[];
}

/** As a process of the machine, as in a container that has been leased itself. */
export interface ProcessForm {
  kind: 'process';
}

export interface EngineStart {
  /** Unique on the machine: lower case letters, digits and `-`, at most 63 characters. */
  name: string;
  form: DockerForm | ProcessForm;
  /** Program and arguments; for an image with an entrypoint of its own only the arguments. */
  argv: readonly string[];
  /** Secrets among them: they go over stdin into a file of mode 0600, which is removed when the engine has them. */
  env: Readonly<Record<string, string>>;
  /** Further files with secrets, which stay while the engine runs; written over stdin, of mode 0600. */
  files: readonly { path: string; text: string }[];
}

/** Which engine of a machine. */
export interface EngineId {
  name: string;
  kind: EngineStart['form']['kind'];
}

/**
 * `absent`: there is none of that name. `launching`: its image is fetched, or its container made. `running`: its
 * process lives, which does not mean that it answers. `exited`: with `code` (null where nobody could note it), and
 * `lastWords`, the end of what it said.
 */
export type EngineLook = {
  /** Of the command that it was started with; '' where there is none. */
  digest: string;
} & (
  | { state: 'absent' | 'launching' | 'running' }
  | { state: 'exited'; code: number | null; lastWords: string }
);

const LAST_WORDS_BYTES = 16 * 1024;
const NAME = /^[a-z0-9][a-z0-9-]{0,62}$/;
const VARIABLE = /^[A-Za-z_][A-Za-z0-9_]*$/;
/** What docker would read as something else: a volume's parts are parted by colons. */
const FOLDER = /^\/[^:,\n]*$/;
const IMAGE = /^[a-z0-9][\w.\-/:@]*$/i;

const count = v.pipe(v.string(), v.regex(/^\d+$/), v.transform(Number));
const report = v.object({
  outcome: v.picklist(['started', 'adopted', 'seen']),
  state: v.picklist(['absent', 'launching', 'running', 'exited']),
  code: v.union([
    count,
    v.pipe(
      v.literal(''),
      v.transform(() => null),
    ),
  ]),
  digest: v.string(),
});

/** What tells one command from another: everything but the values of the environment, which may be secret. */
function commandDigest({ form, argv, env }: EngineStart): string {
  const parts = [form, argv, Object.keys(env).toSorted()];
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex').slice(0, 32);
}

/**
 * Starts the engine and comes back at once: an image is fetched, and a model loaded, after that. Where an engine of this
 * name and command is there already, it is adopted, whatever became of it: one that has ended is not started again
 * before it was stopped, since a crash at load would only be repeated. An engine of that name with another command
 * is a `Permanent` `engine.other_command`. Throws `InvalidInput` `engine.start` for what cannot be started anywhere.
 */
export async function startEngine(
  session: Session,
  start: EngineStart,
  signal?: AbortSignal,
): Promise<EngineLook & { isAdopted: boolean }> {
  const { form, name } = start;
  check(start);
  for (const { path, text } of start.files) {
    await runScript(session, SCRIPTS.file, [name, path], { stdin: text, ...withSignal(signal) });
  }
  const digest = commandDigest(start);
  const runner = form.kind === 'docker' ? SCRIPTS.runDocker : SCRIPTS.runProcess;
  const words = form.kind === 'docker' ? dockerWords(form, start.argv) : start.argv;
  const stdin = Object.entries(start.env).map(([key, value]) => `${key}=${value}\n`);
  const done = await runScript(
    session,
    SCRIPTS.start,
    [name, form.kind, digest, runner, ...words],
    { stdin: stdin.join(''), timeoutMs: 60_000, ...withSignal(signal) },
  );
  const { outcome, ...found } = parseReport(session, done.stdout.toString()).head;
  if (found.digest !== digest) {
    throw permanent(
      'engine.other_command',
      `${showAddress(session.address)} has an engine '${name}' with another command: stop that one first`,
    );
  }
  const look = found.state === 'exited' ? await lookAtEngine(session, idOf(start), signal) : found;
  return { ...toLook(look), isAdopted: outcome === 'adopted' };
}

export function idOf({ name, form }: EngineStart): EngineId {
  return { name, kind: form.kind };
}

/** How an engine is now. Changes nothing. */
export async function lookAtEngine(
  session: Session,
  { name, kind }: EngineId,
  signal?: AbortSignal,
): Promise<EngineLook> {
  const words = [name, kind, String(LAST_WORDS_BYTES)];
  const { stdout } = await runScript(session, SCRIPTS.look, words, withSignal(signal));
  const { head, rest } = parseReport(session, stdout.toString());
  return toLook({ ...head, lastWords: rest });
}

/**
 * Ends an engine, first by SIGTERM, and after `graceSeconds` by SIGKILL, and removes what there is of it, log included.
 * One that is not there is no error. Ends nothing but what was started under that name.
 */
export async function stopEngine(
  session: Session,
  { name, kind }: EngineId,
  graceSeconds = 10,
  signal?: AbortSignal,
): Promise<void> {
  const timeoutMs = (graceSeconds + 90) * 1_000;
  const words = [name, kind, String(graceSeconds)];
  await runScript(session, SCRIPTS.stop, words, { timeoutMs, ...withSignal(signal) });
}

export interface LogPart {
  text: string;
  /** Where the next part begins, in bytes. */
  next: number;
}

/**
 * Reads an engine's log from a byte on, whole lines only unless `maxBytes` hold none. An offset beyond its end, which a
 * log that was begun anew has, reads it from the start.
 */
export async function readEngineLog(
  session: Session,
  { name }: Pick<EngineId, 'name'>,
  offset: number,
  maxBytes = 64 * 1024,
  signal?: AbortSignal,
): Promise<LogPart> {
  const words = [name, String(offset), String(maxBytes)];
  const limits = { maxBytes: maxBytes + 64, ...withSignal(signal) };
  const { stdout } = await runScript(session, SCRIPTS.log, words, limits);
  const end = stdout.indexOf('\n');
  const size = Number(stdout.toString('latin1', 0, end));
  if (size < offset) return readEngineLog(session, { name }, 0, maxBytes, signal);
  const bytes = stdout.subarray(end + 1);
  const lastLine = bytes.lastIndexOf('\n') + 1;
  const whole = lastLine > 0 || bytes.length < maxBytes ? lastLine : bytes.length;
  return { text: bytes.toString('utf8', 0, whole), next: offset + whole };
}

/** What stands between `docker run` and the image, `--`, and what follows the image. */
function dockerWords(form: DockerForm, argv: readonly string[]): string[] {
  const { image, entrypoint, gpus, shmSize, port, volumes, shared } = form;
  const mounts = volumes.flatMap(({ from, to }) => ['--volume', `${from}:${to}`]);
  const words = [image, '--shm-size', shmSize, '--publish', `127.0.0.1:${port}:${port}`, ...mounts];
  // The runner looks whether the machine has them.
  words.push(...shared.map((path) => `?${path}`));
  if (gpus !== null) words.push('--gpus', gpus);
  if (entrypoint !== null) words.push('--entrypoint', entrypoint);
  // The engine says a line every ten seconds, for days.
  words.push('--log-opt', 'max-size=64m', '--log-opt', 'max-file=2');
  return [...words, '--', ...argv];
}

function check({ name, form, argv, env }: EngineStart): void {
  if (!NAME.test(name)) throw refused(`'${name}' is no name for an engine`);
  if (form.kind === 'process' && argv.length === 0) throw refused('there is no command');
  for (const [key, value] of Object.entries(env)) {
    if (!VARIABLE.test(key)) throw refused(`'${key}' is no name of an environment variable`);
    // Neither docker's --env-file nor ours has a way to write these.
    if (/[\n\0]/.test(value)) throw refused(`the value of ${key} has more than one line`);
  }
  if (form.kind === 'process') return;
  if (!IMAGE.test(form.image)) throw refused(`'${form.image}' is no name of an image`);
  const folders = [...form.volumes.flatMap(({ from, to }) => [from, to]), ...form.shared];
  const wrong = folders.find((folder) => !FOLDER.test(folder));
  if (wrong !== undefined) throw refused(`'${wrong}' cannot be mounted`);
}

/** Its own field, since an option that is `undefined` is none. */
function withSignal(signal: AbortSignal | undefined): { signal?: AbortSignal } {
  return signal === undefined ? {} : { signal };
}

function refused(why: string) {
  return invalidInput('engine.start', `the engine cannot be started: ${why}`);
}

/** `word value` lines, and after an empty one what the engine said. */
function parseReport(session: Session, text: string) {
  const end = text.indexOf('\n\n');
  const lines = (end < 0 ? text : text.slice(0, end)).trim().split('\n');
  const pairs = lines.map((line) => {
    const [key = '', ...rest] = line.split(' ');
    return [key, rest.join(' ')] as const;
  });
  const parsed = v.safeParse(report, Object.fromEntries(pairs));
  if (!parsed.success) {
    const where = showAddress(session.address);
    throw transient('ssh.script', `${where} says nonsense of its engine: ${text.slice(0, 200)}`);
  }
  return { head: parsed.output, rest: end < 0 ? '' : text.slice(end + 2) };
}

function toLook(found: {
  state: EngineLook['state'];
  digest: string;
  code?: number | null;
  lastWords?: string;
}): EngineLook {
  const { state, digest, code = null, lastWords = '' } = found;
  return state === 'exited' ? { state, digest, code, lastWords } : { state, digest };
}
