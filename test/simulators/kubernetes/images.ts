import { chmod, mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import type { Container } from './objects.ts';

/** What runs in place of an image that matches. */
export interface ImageProgram {
  match: RegExp;
  /** The whole command line; `container.command` and `args` are what the pod says beside the image. */
  argv(container: Container): string[];
  /** As ENV of an image. */
  env?: Readonly<Record<string, string>>;
  /** As WORKDIR of an image. */
  workingDir?: string;
}

const HERE = path.dirname(fileURLToPath(import.meta.url));
export const REPOSITORY = path.resolve(HERE, '../../..');
/** Compiled programs of all containers. */
export const CACHE = path.join(REPOSITORY, 'node_modules/.cache/sluice-pods');

const PROGRAMS: Readonly<Record<string, string>> = {
  node: `exec ${process.execPath} "$@"`,
  sluice: `exec sh ${REPOSITORY}/src/main/sluice "$@"`,
  aibrix_batch_worker: `exec sh ${REPOSITORY}/src/main/sluice batch-worker "$@"`,
  vllm: `[ "\${1:-}" != serve ] || shift\nexec ${process.execPath} ${HERE}/engine.ts "$@"`,
  python3: `case "\${1:-} \${2:-}" in
'-m vllm.entrypoints.openai.api_server') shift 2; exec ${process.execPath} ${HERE}/engine.ts "$@" ;;
'app.py '*) shift; exec ${process.execPath} ${HERE}/engine.ts "$@" ;;
esac
echo "python3: can't open file '\${1:-}': [Errno 2] No such file or directory" >&2
exit 2`,
};
const ALIASES: Readonly<Record<string, string>> = { python: 'python3' };

/** Writes the programs that containers find in /usr/local/bin, whatever their image. */
export async function writePrograms(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true });
  await mkdir(CACHE, { recursive: true });
  await chmod(CACHE, 0o777);
  const all = { ...PROGRAMS };
  for (const [alias, name] of Object.entries(ALIASES)) all[alias] = PROGRAMS[name] ?? '';
  for (const [name, text] of Object.entries(all)) {
    await writeFile(path.join(folder, name), `#!/bin/sh\n${text}\n`, { mode: 0o755 });
  }
}

/** A command line as Kubernetes makes it of entrypoint and default arguments of the image. */
function compose(entrypoint: readonly string[], defaults: readonly string[] = []) {
  return ({ command = [], args = [] }: Container): string[] => {
    if (command.length > 0) return [...command, ...args];
    return [...entrypoint, ...(args.length > 0 ? args : defaults)];
  };
}

const NODE_ENV = { NODE_COMPILE_CACHE: '/var/cache/node', HOME: '/tmp' };

/** Images that a cluster of ours runs; what a caller maps comes first. */
export const DEFAULT_IMAGES: readonly ImageProgram[] = [
  {
    match: /(^|\/)vllm-mock(:|@|$)/,
    argv: compose(['vllm', 'serve']),
    env: { ...NODE_ENV, HOST: '0.0.0.0' },
    workingDir: '/app',
  },
  {
    match: /(^|\/)(vllm-openai|vllm)(:|@|$)/,
    argv: compose(['vllm', 'serve']),
    env: NODE_ENV,
  },
  { match: /(^|\/)(sluice|aibrix\/runtime)(:|@|$)/, argv: compose(['sluice']), env: NODE_ENV },
  { match: /(^|\/)(busybox|debian|alpine)(:|@|$)/, argv: compose(['sh']) },
];
