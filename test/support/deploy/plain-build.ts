import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import process from 'node:process';
import { copyOf, execForm } from './dockerfile.ts';
import type { Dockerfile, Instruction } from './dockerfile.ts';
import { ROOT } from './manifests.ts';
import { linkFile } from './packages.ts';

/*
 * A Dockerfile carried out in a plain folder, which stands for the image's root: no registry, no daemon. What its base
 * brings is a Node and the names of its package managers; a step that only a registry can serve is given to the caller.
 */

export interface PlainImage extends Disposable {
  /** Stands for `/`. */
  readonly root: string;
  readonly workdir: string;
  readonly env: Readonly<Record<string, string>>;
  readonly entrypoint: readonly string[];
  readonly cmd: readonly string[];
  readonly healthcheck: readonly string[];
  /** Who its processes are; null: who we are, since only root can be another one. */
  readonly user: string | null;
  /** Environment and words of a process in it, and the place where it starts. */
  command(argv: readonly string[], env?: Readonly<Record<string, string>>): PlainCommand;
}

export interface PlainCommand {
  readonly program: string;
  readonly args: string[];
  readonly options: { cwd: string; env: Record<string, string> };
}

export interface BuildOptions {
  /** Carries out a RUN in its stead; false: it is to be run. */
  readonly instead: (script: string, place: { root: string; cwd: string }) => boolean;
}

const isRoot = process.getuid?.() === 0;
const SYSTEM = ['/usr/local/sbin', '/usr/sbin', '/usr/bin', '/sbin', '/bin'];

interface State {
  readonly top: string;
  readonly root: string;
  workdir: string;
  user: string | null;
  env: Record<string, string>;
  entrypoint: string[];
  cmd: string[];
  healthcheck: string[];
}

/** A script's own absolute paths as paths below the folder. */
function below(root: string, script: string): string {
  return script.replaceAll(/(^|[\s="'])(\/(?:app|data|opt|usr\/local)\b)/g, `$1${root}$2`);
}

function commandOf(state: State, argv: readonly string[], env = {}): PlainCommand {
  const [word = '', ...rest] = argv;
  const asUser = ['setpriv', `--reuid=${state.user}`, `--regid=${state.user}`, '--clear-groups'];
  const words = [word, ...rest];
  const [program = '', ...args] = state.user === null ? words : [...asUser, ...words];
  const path = [join(state.root, 'usr/local/bin'), ...SYSTEM].join(delimiter);
  const set = Object.entries(state.env).map(([name, value]) => [name, below(state.root, value)]);
  return {
    program,
    args,
    options: {
      cwd: join(state.root, state.workdir),
      env: { PATH: path, HOME: '/nonexistent', ...Object.fromEntries(set), ...env } as Record<
        string,
        string
      >, // texts only
    },
  };
}

/** What `FROM node:…` brings. */
function layBase(root: string): void {
  for (const folder of ['usr/local/bin', 'usr/local/lib/node_modules/npm', 'opt/yarn-v1']) {
    mkdirSync(join(root, folder), { recursive: true });
  }
  linkFile(process.execPath, join(root, 'usr/local/bin/node'));
  for (const name of ['npm', 'npx', 'corepack']) {
    writeFileSync(join(root, 'usr/local/bin', name), '#!/bin/sh\nexit 1\n', { mode: 0o755 });
  }
}

function copyIn(state: State, instruction: Instruction): void {
  const place = (path: string): string =>
    path.startsWith('/') ? join(state.root, path) : join(state.root, state.workdir, path);
  const from = /^--from=(\S+)\s+(\S+)\s+(\S+)$/.exec(instruction.rest);
  if (from !== null) {
    const [, stage = '', source = '', target = ''] = from;
    mkdirSync(join(place(target), '..'), { recursive: true });
    renameSync(join(state.top, stage, source), place(target));
    return;
  }
  const { sources, target } = copyOf(instruction) ?? { sources: [], target: '' };
  for (const source of sources) {
    const isFolder = statSync(join(ROOT, source)).isDirectory();
    const to = isFolder || !/(?:^\.|\/)$/.test(target) ? target : join(target, source);
    cpSync(join(ROOT, source), place(to), { recursive: true });
  }
}

function runStep(state: State, script: string): void {
  const known = isRoot ? script : script.replaceAll(/ -[og] \d+/g, '');
  const { program, args, options } = commandOf(state, ['/bin/sh', '-c', below(state.root, known)]);
  const { status, stdout, stderr } = spawnSync(program, args, { ...options, encoding: 'utf8' });
  if (status === 0) return;
  throw new Error(`RUN ${script} ended with ${String(status)}:\n${stdout}${stderr}`);
}

function carryOut(state: State, each: Instruction, { instead }: BuildOptions): void {
  const { word, rest } = each;
  const cwd = join(state.root, state.workdir);
  if (word === 'WORKDIR') {
    state.workdir = rest;
    mkdirSync(join(state.root, rest), { recursive: true });
  } else if (word === 'COPY') copyIn(state, each);
  else if (word === 'RUN') {
    if (!instead(rest, { root: state.root, cwd })) runStep(state, rest);
  } else if (word === 'ENV') {
    for (const [, name = '', value = ''] of rest.matchAll(/(\w+)=(\S+)/g)) state.env[name] = value;
  } else if (word === 'USER') {
    const [id = ''] = rest.split(':');
    state.user = isRoot && id !== 'root' ? id : null;
  } else if (word === 'ENTRYPOINT') state.entrypoint = execForm(rest) ?? [];
  else if (word === 'CMD') state.cmd = execForm(rest) ?? [];
  else if (word === 'HEALTHCHECK') {
    state.healthcheck = execForm(rest.slice(rest.indexOf('CMD ') + 4)) ?? [];
  }
}

/** Carries out all stages; throws with the step's output where one fails. Dispose of it. */
export function buildPlainly(file: Dockerfile, options: BuildOptions): PlainImage {
  const top = mkdtempSync(join(tmpdir(), 'sluice-image-'));
  chmodSync(top, 0o755);
  const root = join(top, 'root');
  let state: State | null = null;
  let name = '';
  const dispose = (): void => rmSync(top, { recursive: true, force: true, maxRetries: 3 });
  try {
    for (const each of file.instructions) {
      if (each.word === 'FROM') {
        // Every stage is built at the same place, so that links in it lead to the same paths in the next one.
        if (state !== null) renameSync(root, join(top, name));
        name = / AS (\S+)$/.exec(each.rest)?.[1] ?? '';
        layBase(root);
        state = {
          top,
          root,
          workdir: '/',
          user: null,
          env: {},
          entrypoint: [],
          cmd: [],
          healthcheck: [],
        };
      }
      if (state !== null) carryOut(state, each, options);
    }
    if (state === null) throw new Error('a Dockerfile without FROM');
  } catch (error) {
    dispose();
    throw error;
  }
  const built = state;
  return {
    ...built,
    command: (argv, env) => commandOf(built, argv, env),
    [Symbol.dispose]: dispose,
  };
}
