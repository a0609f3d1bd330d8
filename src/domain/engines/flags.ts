import { invalidInput } from '../errors.ts';
import type { SluiceError } from '../errors.ts';
import type { Parallelism } from '../template.ts';
import type { EngineSite } from './contract.ts';

/** How an engine spells its command line. */
export interface Dialect {
  title: string;
  /** Other spellings of a flag. */
  aliases: Readonly<Record<string, string>>;
  /** Flags whose number is a part of the template's `parallelism`. */
  sizes: Readonly<Record<string, keyof Parallelism>>;
  /** Flags that would take the engine out of our hands, with what to write instead. */
  refused: Readonly<Record<string, string>>;
  /** Whether it takes `--max_num_seqs` for `--max-num-seqs`, and `--a.b` for an entry of the JSON of `--a`. */
  isFlexible: boolean;
}

/** A flag with what follows it. */
export interface Flag {
  /** The engine's own spelling of it, without a leading `no-`. */
  name: string;
  values: string[];
}

export const SERVED_NAME = '--served-model-name';

/** Why flags that every engine of ours has may not be given by hand. */
export const COMMON_REFUSED = {
  '--host': 'the engine listens where the runtime reaches it; leave it out',
  '--port': 'the port is chosen for each machine; leave it out',
  '--api-key':
    'every process of the machine can read a command line, and keys are made for each lease; leave it out',
  '--ssl-keyfile': 'the engine is reached through a tunnel that is encrypted already; leave it out',
  '--ssl-certfile':
    'the engine is reached through a tunnel that is encrypted already; leave it out',
  '--ssl-ca-certs':
    'the engine is reached through a tunnel that is encrypted already; leave it out',
  '--config': 'a file could hold any of the flags that are refused; write its lines as engine_args',
  '--nnodes': 'an engine is one machine here; ask for more of them with resource_request.replicas',
  '--node-rank': 'an engine is one machine here; leave it out',
  '--help': 'an engine that prints its help serves nothing; leave it out',
} as const;

export function refuse(param: string, message: string): SluiceError {
  return invalidInput('engine.refused', `${param}: ${message}`, { param });
}

/** The address that an engine listens on. A port that is published reaches no loopback inside a container. */
export function hostOf({ listensTo }: Pick<EngineSite, 'listensTo'>): string {
  return listensTo === 'machine' ? '127.0.0.1' : '0.0.0.0';
}

/** A flag as the engine spells it, its value apart; null for a word that is none. */
function readFlag(word: string, dialect: Dialect): { name: string; value: string | null } | null {
  if (!/^--?[A-Za-z]/.test(word)) return null;
  const at = word.indexOf('=');
  let name = at < 0 ? word : word.slice(0, at);
  if (dialect.isFlexible && name.startsWith('--')) {
    name = (name.split('.')[0] ?? name).replaceAll('_', '-');
  }
  const value = at < 0 ? null : word.slice(at + 1);
  return { name: canonical(name, dialect), value };
}

/** Python's argparse takes the beginning of a flag for the flag, so that `--po` and `-t` are read as it reads them. */
function canonical(given: string, dialect: Dialect): string {
  const name = given.replace(/^--no-/, '--');
  const exact = dialect.aliases[name] ?? name;
  const watched = [...Object.keys(dialect.refused), ...Object.keys(dialect.sizes), SERVED_NAME];
  if (exact !== name || watched.includes(exact)) return exact;
  if (name.startsWith('--')) return watched.find((each) => each.startsWith(name)) ?? exact;
  const short = Object.keys(dialect.aliases).find((each) => each.startsWith(name));
  // A flag of one letter may have its value joined to it: `-n2`.
  return dialect.aliases[short ?? name.slice(0, 2)] ?? exact;
}

/** The flags among a template's `serve_args`; throws for what the engine would not start with, or not for us. */
export function readServeArgs(
  words: readonly string[],
  dialect: Dialect,
  parallelism: Parallelism,
): Flag[] {
  const param = 'engine.serve_args';
  const flags: Flag[] = [];
  for (const word of words) {
    checkWord(word, param);
    const flag = readFlag(word, dialect);
    const last = flags.at(-1);
    if (flag !== null) {
      flags.push({ name: flag.name, values: flag.value === null ? [] : [flag.value] });
    } else if (last === undefined) {
      throw refuse(
        param,
        `'${word}' comes before any flag. The program and the model are put there already ` +
          '(engine.type, model_source.uri): begin with the first flag',
      );
    } else last.values.push(word);
  }
  for (const flag of flags) checkFlag(flag, dialect, parallelism, param);
  return flags;
}

function checkWord(word: string, param: string): void {
  if (word === '') throw refuse(param, 'an entry is empty; take it out');
  if (word.includes('\0')) throw refuse(param, 'no command line can hold a zero byte');
  if (word === '--') throw refuse(param, "'--' ends the flags; take it out");
  if (/^--?[A-Za-z][^=\s]*\s/.test(word)) {
    throw refuse(param, `'${word}' is one word to the engine: write flag and value as two entries`);
  }
}

function checkFlag(
  { name, values }: Flag,
  dialect: Dialect,
  parallelism: Parallelism,
  param: string,
): void {
  const mend = dialect.refused[name];
  if (mend !== undefined) throw refuse(param, `${name} is not possible: ${mend}`);
  const size = dialect.sizes[name];
  if (size === undefined || values[0] === String(parallelism[size])) return;
  throw refuse(
    param,
    `${name} ${values.join(' ')} contradicts parallelism.${size}, which is ${parallelism[size]} ` +
      'and decides how many GPUs are leased: leave the flag out and set that field',
  );
}

/**
 * Whether the user names what the engine serves, so that ours is left out; throws where lines would not find it, and for
 * more names than the engine takes.
 */
export function pinsServedName(
  given: readonly Flag[],
  servingName: string,
  most = Infinity,
): boolean {
  const pinned = given.findLast(({ name }) => name === SERVED_NAME);
  if (pinned === undefined) return false;
  if (pinned.values.length > most) {
    throw refuse('engine.serve_args', `${SERVED_NAME} takes one name here; leave it out`);
  }
  if (pinned.values.includes(servingName)) return true;
  throw refuse(
    'engine.serve_args',
    `${SERVED_NAME} ${pinned.values.join(' ')} leaves out '${servingName}', which the lines of a job name: ` +
      'add it, leave the flag out, or change serving_name of the model',
  );
}

/** Flags of a command line by name, each once. */
export interface FlagSet {
  /** What a field of the template, or the machine, asks for. */
  put(name: string, ...values: string[]): void;
  /** What is right unless `engine_args` say otherwise. */
  suggest(name: string, ...values: string[]): void;
  /** What an entry of `engine_args` asks for. */
  argue(key: string, name: string, ...values: string[]): void;
  /** All but those that the user gives himself. */
  render(given: readonly Flag[]): string[];
}

export function createFlagSet(dialect: Dialect): FlagSet {
  const flags = new Map<string, { spelled: string; values: string[]; isFirm: boolean }>();

  function set(spelled: string, values: string[], isFirm: boolean): void {
    flags.set(spelled.replace(/^--no-/, '--'), { spelled, values, isFirm });
  }

  return {
    put: (name, ...values) => set(name, values, true),
    suggest: (name, ...values) => set(name, values, false),
    argue(key, spelled, ...values) {
      const param = `engine_args.${key}`;
      const flag = readFlag(spelled, dialect)?.name ?? spelled;
      const mend = dialect.refused[flag];
      if (mend !== undefined) throw refuse(param, `is not possible: ${mend}`);
      const size = dialect.sizes[flag];
      if (size !== undefined) throw refuse(param, `write it as parallelism.${size}`);
      const known = flags.get(flag) ?? flags.get(spelled.replace(/^--no-/, '--'));
      if (known?.isFirm === true) {
        throw refuse(param, `${spelled} is said twice, here and by another field; leave one out`);
      }
      set(spelled, values, true);
    },
    render(given) {
      const theirs = new Set(given.map(({ name }) => name));
      const words: string[] = [];
      for (const [name, { spelled, values }] of flags) {
        if (theirs.has(name)) continue;
        const [first] = values;
        // What begins with a dash is another flag to argparse, unless it is joined to its own.
        if (values.length === 1 && first?.startsWith('-') === true)
          words.push(`${spelled}=${first}`);
        else words.push(spelled, ...values);
      }
      return words;
    },
  };
}

const KEY = /^[A-Za-z][\w-]*(?:\.[\w.-]+)?$/;

/** Hands each of `engine_args` to `argue` as `(key, flag, value)`; throws for keys that are no flags. */
export function readEngineArgs(
  engineArgs: Readonly<Record<string, string>>,
  argue: (key: string, flag: string, value: string) => void,
): void {
  const keys = Object.keys(engineArgs).toSorted();
  for (const key of keys) {
    const value = engineArgs[key] ?? '';
    const param = `engine_args.${key}`;
    if (!KEY.test(key) || /^no[-_]/.test(key)) {
      throw refuse(
        param,
        'write the name of a flag without its dashes, such as max_num_seqs, and false for a switch that is to be off',
      );
    }
    if (value.includes('\0')) throw refuse(param, 'no command line can hold a zero byte');
    const [head = '', ...rest] = key.split('.');
    argue(key, `--${[head.replaceAll('_', '-'), ...rest].join('.')}`, value);
  }
}

export function isSwitch(value: string, state: 'on' | 'off'): boolean {
  if (state === 'off') return /^false$/i.test(value);
  return value === '' || /^true$/i.test(value);
}
