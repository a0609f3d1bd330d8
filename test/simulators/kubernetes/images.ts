import { chmod, mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
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
  /** As USER of an image; without one it is root's. */
  user?: number;
}

const HERE = path.dirname(fileURLToPath(import.meta.url));
export const REPOSITORY = path.resolve(HERE, '../../..');
/** Compiled programs of all containers. */
export const CACHE = path.join(REPOSITORY, 'node_modules/.cache/sluice-pods');

/** Where containers have the repository and its Node. */
const APP = '/app';
const NODE = '/opt/node';
const ENGINE = `${APP}/test/simulators/kubernetes/engine.ts`;

const PROGRAMS: Readonly<Record<string, string>> = {
  node: `exec ${NODE} "$@"`,
  sluice: `exec sh ${APP}/src/main/sluice "$@"`,
  aibrix_batch_worker: `exec sh ${APP}/src/main/sluice batch-worker "$@"`,
  vllm: `[ "\${1:-}" != serve ] || shift\nexec ${NODE} ${ENGINE} "$@"`,
  python3: `case "\${1:-} \${2:-}" in
'-m vllm.entrypoints.openai.api_server') shift 2; exec ${NODE} ${ENGINE} "$@" ;;
'app.py '*) shift; exec ${NODE} ${ENGINE} "$@" ;;
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
    user: 1000,
  },
  {
    match: /(^|\/)(vllm-openai|vllm)(:|@|$)/,
    argv: compose(['vllm', 'serve']),
    env: NODE_ENV,
  },
  {
    match: /(^|\/)(sluice|aibrix\/runtime)(:|@|$)/,
    argv: compose(['sluice'], ['start']),
    env: { ...NODE_ENV, NODE_ENV: 'production', DATA_DIR: '/data', HTTP_ADDR: '0.0.0.0:8080' },
    workingDir: '/app',
    user: 1000,
  },
  { match: /(^|\/)(busybox|debian|alpine)(:|@|$)/, argv: compose(['sh']) },
];
