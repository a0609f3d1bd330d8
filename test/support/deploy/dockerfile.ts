import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { readText, ROOT } from './manifests.ts';

/** One instruction, its continued lines joined; `stage` counts the FROMs before it. */
export interface Instruction {
  readonly word: string;
  readonly rest: string;
  readonly stage: number;
}

export interface Dockerfile {
  readonly path: string;
  readonly instructions: readonly Instruction[];
  /** Paths of the build context that its .dockerignore lets through. */
  readonly context: readonly string[];
}

/** The instructions of a Dockerfile; throws for a line that is none. */
export function parseInstructions(text: string): Instruction[] {
  const lines = text.split('\n').filter((line) => !/^\s*(?:#|$)/.test(line));
  const joined = lines
    .join('\n')
    .replaceAll(/\\\n\s*/g, '')
    .split('\n');
  let stage = -1;
  return joined.map((line) => {
    const match = /^([A-Z]+)\s+(.+)$/.exec(line);
    if (match === null) throw new Error(`no instruction: ${line}`);
    const [, word = '', rest = ''] = match;
    if (word === 'FROM') stage += 1;
    return { word, rest, stage };
  });
}

/** What is let through: ours begin with nothing, and name what an image needs. */
function parseIgnore(text: string): string[] {
  const [first, ...rest] = text.split('\n').filter((line) => !/^\s*(?:#|$)/.test(line));
  if (first !== '*' || rest.some((line) => !line.startsWith('!'))) {
    throw new Error('a .dockerignore begins with * and then names what is let through');
  }
  return rest.map((line) => line.slice(1));
}

export function readDockerfile(path: string): Dockerfile {
  const own = `${path}.dockerignore`;
  return {
    path,
    instructions: parseInstructions(readText(path)),
    context: parseIgnore(readText(existsSync(join(ROOT, own)) ? own : '.dockerignore')),
  };
}

/** Sources and target of a COPY out of the build context; null for one out of another stage. */
export function copyOf({ word, rest }: Instruction): { sources: string[]; target: string } | null {
  if (word !== 'COPY' || rest.startsWith('--from=')) return null;
  const words = rest.split(/\s+/).filter((each) => !each.startsWith('--'));
  return { sources: words.slice(0, -1), target: words.at(-1) ?? '' };
}

/** `exec` form: a list of words, which no shell reads. */
export function execForm(rest: string): string[] | null {
  if (!rest.startsWith('[')) return null;
  return JSON.parse(rest) as string[]; // a list of texts, or Docker would not take it
}

/** The images that it stands on, with the values that its ARGs have by default. */
export function basesOf(instructions: readonly Instruction[]): string[] {
  const defaults = new Map<string, string>();
  const bases: string[] = [];
  for (const { word, rest } of instructions) {
    const [name = '', value = ''] = rest.split('=');
    if (word === 'ARG') defaults.set(name, value);
    if (word === 'FROM') {
      const [image = ''] = rest.split(/\s+/);
      bases.push(
        image.replaceAll(/\$\{?(\w+)\}?/g, (_all, arg: string) => defaults.get(arg) ?? ''),
      );
    }
  }
  return bases;
}

const SECRET = /(?:KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL)/i;
const PINNED = /^[a-z0-9./-]+:\d+\.\d+\.\d+[a-z0-9.-]*(?:@sha256:[0-9a-f]{64})?$/;

/** What is wrong with a single instruction. */
function* lintOne({ word, rest }: Instruction): Generator<string> {
  if (word === 'ADD') yield 'ADD fetches and unpacks: COPY';
  if (word === 'MAINTAINER') yield 'MAINTAINER is no more: LABEL';
  if (word === 'WORKDIR' && !rest.startsWith('/'))
    yield `WORKDIR ${rest} depends on the one before`;
  if (['CMD', 'ENTRYPOINT'].includes(word) && execForm(rest) === null) {
    yield `${word} in a shell's form: signals reach the shell only`;
  }
  if (word === 'HEALTHCHECK' && !/CMD \[/.test(rest)) yield 'HEALTHCHECK in a shell’s form';
  const named = [...rest.matchAll(/(\w+)=/g)].map(([, name = '']) => name);
  const names = word === 'ARG' ? [rest.split('=')[0] ?? ''] : named;
  if (['ENV', 'ARG'].includes(word) && names.some((name) => SECRET.test(name))) {
    yield `${word} with a secret stays in the image`;
  }
  if (word === 'RUN') yield* lintRun(rest);
}

function* lintRun(script: string): Generator<string> {
  const { stderr } = spawnSync('/bin/sh', ['-n', '-c', script], { encoding: 'utf8' });
  if (stderr !== '') yield `no shell script: ${stderr.trim()}`;
  if (/\bsudo\b/.test(script)) yield 'sudo in an image';
  if (/\b(?:curl|wget)\b[^|]*\|\s*\w*sh\b/.test(script)) yield 'runs what it fetches';
  if (/\bnpm (?:install|i)\b/.test(script))
    yield 'npm install takes other versions than the lock: npm ci';
  if (/\bnpm ci\b/.test(script) && !script.includes('--ignore-scripts')) {
    yield 'npm ci without --ignore-scripts runs what packages bring';
  }
  if (/apt-get install/.test(script)) {
    if (!script.includes('--no-install-recommends'))
      yield 'apt-get without --no-install-recommends';
    if (!/apt-get update.*apt-get install/.test(script)) yield 'apt-get install of an old list';
    if (!script.includes('rm -rf /var/lib/apt/lists/*')) yield 'leaves the lists of apt-get';
  }
}

function* lintCopies({ instructions, context }: Dockerfile): Generator<string> {
  const stages = new Set(
    instructions.flatMap(({ word, rest }) =>
      word === 'FROM' ? [/ AS (\S+)$/.exec(rest)?.[1] ?? ''] : [],
    ),
  );
  for (const each of instructions) {
    const from = /^--from=(\S+)/.exec(each.rest)?.[1];
    if (each.word === 'COPY' && from !== undefined && !stages.has(from)) {
      yield `there is no stage ${from}`;
    }
    for (const source of copyOf(each)?.sources ?? []) {
      if (source === '.' || source.includes('*'))
        yield `COPY ${source} takes what it does not name`;
      else if (!existsSync(join(ROOT, source))) yield `there is no ${source}`;
      else if (!context.some((path) => source === path || source.startsWith(`${path}/`))) {
        yield `.dockerignore holds ${source} back`;
      }
    }
  }
}

/** Everything that is wrong with a Dockerfile by rules of ours; `root` where it says why it runs as root. */
export function lint(file: Dockerfile, { root = false } = {}): string[] {
  const { instructions } = file;
  const last = Math.max(...instructions.map(({ stage }) => stage));
  const final = instructions.filter(({ stage }) => stage === last);
  const user = final.findLast(({ word }) => word === 'USER')?.rest ?? 'root';
  const faults = instructions.flatMap((each) => [...lintOne(each)]);
  for (const base of basesOf(instructions)) {
    if (!PINNED.test(base))
      faults.push(`${base} is another image tomorrow: name its whole version`);
  }
  // As a number, since Kubernetes cannot look up who a name is.
  if (root ? user !== 'root' : !/^[1-9]\d*:[1-9]\d*$/.test(user)) faults.push(`USER ${user}`);
  if (!final.some(({ word }) => word === 'ENTRYPOINT')) faults.push('no ENTRYPOINT');
  const labels = final.filter(({ word }) => word === 'LABEL').map(({ rest }) => rest);
  for (const label of ['title', 'licenses']) {
    if (!labels.some((each) => each.includes(`org.opencontainers.image.${label}=`))) {
      faults.push(`no label ${label}`);
    }
  }
  return [...faults, ...lintCopies(file)];
}
