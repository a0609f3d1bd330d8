import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import {
  access,
  chmod,
  copyFile,
  mkdir,
  mkdtemp,
  readFile,
  realpath,
  rm,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';

const ROOT = join(import.meta.dirname, '../..');

// What set-up and launcher use of a POSIX system; everything else is missing on this machine.
const TOOLS =
  'cat chmod cksum dirname grep head ln mkdir mv readlink rm sed sh sleep tail touch tr uname'.split(
    ' ',
  );

/**
 * Stands for npm, because a real `npm ci` takes twenty seconds: notes its call, waits while a
 * file `hold` is there, fails if there is a file `broken`, and lays down what the scripts look at.
 */
const NPM = `#!/bin/sh
echo "$*" >>npm-calls
[ ! -f broken ] || { echo 'npm error the reason' >&2; exit 1; }
rm -rf node_modules
mkdir -p node_modules/.bin node_modules/node
while [ -f hold ]; do sleep 0.02; done
printf '{\\n  "version": "%s"\\n}\\n' "$(cat node-version)" >node_modules/node/package.json
ln -s "${process.execPath}" node_modules/.bin/node`;

export interface Outcome {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

/** A clone of Sluice without packages, on a machine that has next to nothing. */
export interface Clone {
  folder: string;
  /** Folder of the machine's programs, the only one on PATH. */
  bin: string;
  /** Adds a program to the machine; without a script one that does nothing. */
  add(program: string, script?: string): Promise<void>;
  start(command: string, args: string[], env?: Record<string, string>): Started;
  run(command: string, args: string[], env?: Record<string, string>): Promise<Outcome>;
  write(file: string, text: string): Promise<void>;
  remove(file: string): Promise<void>;
  has(file: string): Promise<boolean>;
  /** How often packages were installed. */
  installs(): Promise<number>;
  [Symbol.asyncDispose](): Promise<void>;
}

export interface Started {
  child: ChildProcess;
  outcome: Promise<Outcome>;
}

export async function makeClone(): Promise<Clone> {
  const top = await realpath(await mkdtemp(join(tmpdir(), 'sluice-clone-')));
  const [folder, bin] = [join(top, 'a clone'), join(top, 'bin')];
  await mkdir(join(folder, 'src/main'), { recursive: true });
  await mkdir(bin);
  await Promise.all(TOOLS.map(async (tool) => symlink(await locate(tool), join(bin, tool))));
  for (const file of ['src/main/setup.sh', 'src/main/sluice']) {
    await copyFile(join(ROOT, file), join(folder, file));
  }
  const started: ChildProcess[] = [];

  async function write(file: string, text: string): Promise<void> {
    await writeFile(join(folder, file), text);
  }
  async function add(program: string, script = '#!/bin/sh'): Promise<void> {
    await writeFile(join(bin, program), `${script}\n`);
    await chmod(join(bin, program), 0o755);
  }
  function start(command: string, args: string[], env: Record<string, string> = {}): Started {
    const child = spawn(command, args, { cwd: folder, env: { PATH: bin, ...env }, detached: true });
    started.push(child);
    return { child, outcome: describeOutcome(child) };
  }

  await write('package.json', '{}');
  await write('package-lock.json', '{}');
  await write('node-version', process.versions.node);
  await add('npm', NPM);
  await add('redis-server');
  await add('id', '#!/bin/sh\necho 1000');
  return {
    folder,
    bin,
    add,
    start,
    write,
    run: (command, args, env) => start(command, args, env).outcome,
    remove: (file) => rm(join(folder, file), { recursive: true, force: true }),
    has: (file) => exists(join(folder, file)),
    async installs() {
      const calls = await readFile(join(folder, 'npm-calls'), 'utf8').catch(() => ''); // none yet
      return calls.split('\n').filter((call) => call.startsWith('ci ')).length;
    },
    async [Symbol.asyncDispose]() {
      for (const child of started) await end(child);
      await rm(top, { recursive: true, force: true });
    },
  };
}

async function describeOutcome(child: ChildProcess): Promise<Outcome> {
  const outcome: Outcome = { code: null, signal: null, stdout: '', stderr: '' };
  child.stdout?.setEncoding('utf8').on('data', (text: string) => (outcome.stdout += text));
  child.stderr?.setEncoding('utf8').on('data', (text: string) => (outcome.stderr += text));
  [outcome.code, outcome.signal] = await once(child, 'close');
  return outcome;
}

/** Ends a child together with what it started: it leads a process group of its own. */
async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
  const ended = once(child, 'close');
  process.kill(-child.pid, 'SIGKILL');
  await ended;
}

async function locate(tool: string): Promise<string> {
  for (const folder of (process.env['PATH'] ?? '').split(delimiter)) {
    if (await exists(join(folder, tool))) return join(folder, tool);
  }
  throw new Error(`${tool} is not on PATH`);
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
