import { globSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const FILES = globSync('{src,queues,processors,config}/**/*.{ts,tsx}', { cwd: ROOT }).toSorted();

/** Layers that a file of a layer may load, and those whose types it may name besides; itself is always allowed. */
interface Rule {
  loads: readonly string[];
  types: readonly string[];
}

const REST = ['config', 'store', 'storage', 'resources', 'runtimes', 'dispatcher', 'observability'];
const leaf: Rule = { loads: ['domain'], types: [] };

const RULES: Record<string, Rule> = {
  domain: { loads: [], types: [] },
  config: leaf,
  queues: leaf,
  store: leaf,
  storage: leaf,
  resources: leaf,
  runtimes: leaf,
  dispatcher: leaf,
  observability: leaf,
  processors: { loads: ['queues', 'domain'], types: REST },
  api: { loads: ['domain', 'queues'], types: [...REST, 'processors'] },
  web: { loads: ['domain'], types: ['api'] },
  main: { loads: [...REST, 'domain', 'queues', 'processors', 'api'], types: [] },
};

interface Import {
  /** As it is written. */
  from: string;
  typesOnly: boolean;
}

/** Static and dynamic imports and re-exports of a source. */
function importsOf(text: string): Import[] {
  const code = text.replaceAll(/\/\*[\s\S]*?\*\//g, '').replaceAll(/^\s*\/\/.*$/gm, '');
  const found: Import[] = [];
  const statements = /^(import|export)\s+(type\s+)?([^'";]*?\s+from\s+)?'([^']+)'/gm;
  for (const [, word, type, names = '', from = ''] of code.matchAll(statements)) {
    if (word === 'export' && names === '') continue;
    const braces = /^\{([^}]*)\}\s+from\s+$/.exec(names)?.[1];
    const each = braces?.split(',').map((name) => name.trim()) ?? [];
    const named = each.filter((name) => name !== '');
    const allTypes = named.length > 0 && named.every((name) => name.startsWith('type '));
    found.push({ from, typesOnly: type !== undefined || allTypes });
  }
  for (const [, from = ''] of code.matchAll(/\bimport\(\s*'([^']+)'/g)) {
    found.push({ from, typesOnly: false });
  }
  return found;
}

function layerOf(path: string): string {
  const [top = '', second = ''] = path.split('/');
  return top === 'src' ? second : top;
}

/** What a file imports against the rule, as sentences. */
function breaches(file: string, text: string): string[] {
  const layer = layerOf(file);
  const rule = RULES[layer];
  if (rule === undefined) return [`${file} is in no layer that the rule knows`];
  const found: string[] = [];
  for (const { from, typesOnly } of importsOf(text)) {
    if (!from.startsWith('.')) {
      if (layer === 'domain') found.push(`${file} imports ${from}, and domain is pure`);
      continue;
    }
    const to = relative(ROOT, resolve(ROOT, dirname(file), from));
    const target = layerOf(to);
    const isAllowed =
      target === layer || rule.loads.includes(target) || (typesOnly && rule.types.includes(target));
    if (!isAllowed) found.push(`${file} ${typesOnly ? 'names types of' : 'loads'} ${to}`);
  }
  return found;
}

function read(file: string): string {
  return readFileSync(join(ROOT, file), 'utf8');
}

describe('who may import whom', () => {
  test('there are files in every layer', () => {
    const layers = new Set(FILES.map(layerOf));
    for (const layer of [
      'domain',
      'store',
      'dispatcher',
      'queues',
      'processors',
      'config',
      'main',
    ]) {
      expect(layers).toContain(layer);
    }
  });

  test.for(FILES)('%s', (file) => {
    expect(breaches(file, read(file))).toEqual([]);
  });

  const BREACHES: [string, string][] = [
    ['src/domain/job.ts', "import { readFile } from 'node:fs/promises';"],
    ['src/domain/job.ts', "import type { Store } from '../store/store.ts';"],
    ['src/dispatcher/ask.ts', "import type { Store } from '../store/store.ts';"],
    ['src/dispatcher/ask.ts', "import {\n  one,\n  two,\n} from '../storage/local.ts';"],
    ['src/store/jobs.ts', "import '../observability/log.ts';"],
    ['src/resources/static/index.ts', "import { x } from '../../runtimes/endpoint.ts';"],
    ['src/storage/index.ts', "export { x } from '../store/keys.ts';"],
    ['src/storage/index.ts', "export * from '../store/keys.ts';"],
    ['src/store/jobs.ts', "const late = await import('../../queues/queues.ts');"],
    ['processors/dispatch.ts', "import { Dispatcher } from '../src/dispatcher/dispatcher.ts';"],
    ['processors/dispatch.ts', "import { type A, b } from '../src/storage/contract.ts';"],
    ['src/api/app.ts', "import { startServer } from '../main/server.ts';"],
    ['queues/worker.ts', "import type { Deps } from '../processors/deps.ts';"],
    ['config/load.ts', "import { createLogger } from '../src/observability/log.ts';"],
    ['src/other/file.ts', ''],
  ];
  test.for(BREACHES)('a breach in %s is seen: %s', ([file, text]) => {
    expect(breaches(file, `/** What it is for. */\n${text}\n`)).toHaveLength(1);
  });

  const ALLOWED: [string, string][] = [
    [
      'processors/dispatch.ts',
      "import type { Dispatcher } from '../src/dispatcher/dispatcher.ts';",
    ],
    ['processors/dispatch.ts', "import { type A, type B } from '../src/storage/contract.ts';"],
    [
      'src/store/jobs.ts',
      "import { JOB } from '../domain/job.ts';\nimport { Redis } from 'ioredis';",
    ],
    ['src/store/jobs.ts', "// import { x } from '../storage/local.ts';"],
    ['src/store/jobs.ts', "/*\nimport { x } from '../storage/local.ts';\n*/"],
    ['src/main/cli.ts', "const { main } = await import('./commands.ts');"],
  ];
  test.for(ALLOWED)('%s may: %s', ([file, text]) => {
    expect(breaches(file, text)).toEqual([]);
  });

  test('an import that the reader of this test cannot see does not hide', () => {
    const blind = FILES.filter((file) => {
      const text = read(file);
      const written = text.match(/^(?:import|export)\b[^;]*?'\.[^']*';/gm)?.length ?? 0;
      return importsOf(text).filter(({ from }) => from.startsWith('.')).length < written;
    });
    expect(blind).toEqual([]);
  });
});

describe('what stands in one place only', () => {
  test('the environment is read in config/load.ts', () => {
    const readers = FILES.filter((file) => /\bprocess\.env\b|\bprocess\[/.test(read(file)));
    // A program that is started gets the environment handed on, which is no reading of settings.
    expect(readers.filter((file) => layerOf(file) !== 'main')).toEqual(['config/load.ts']);
    const main = readers.filter((file) => layerOf(file) === 'main');
    expect(main.filter((file) => /process\.env[.[]/.test(read(file)))).toEqual([]);
  });

  test('BullMQ is loaded in queues only, so that deliveries are added in one place', () => {
    const users = FILES.filter((file) =>
      importsOf(read(file)).some(({ from, typesOnly }) => from === 'bullmq' && !typesOnly),
    );
    expect(users).toEqual(['queues/queues.ts', 'queues/worker.ts']);
  });

  test('states follow each other in the tables: no other file names successors', () => {
    const owners = FILES.filter((file) => /\bnext: \[/.test(read(file)));
    expect(owners).toEqual(['src/domain/job.ts', 'src/domain/provision.ts']);
  });
});
