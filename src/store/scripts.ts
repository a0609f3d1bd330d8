import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { Cluster, Redis } from 'ioredis';
import { permanent } from '../domain/errors.ts';
import type { SluiceError } from '../domain/errors.ts';
import { isFinal, isSealed, JOB_STATES } from '../domain/job.ts';
import { ATTEMPT_STATES, isOver } from '../domain/lease.ts';
import { MANY_TAKES } from '../domain/plan.ts';
import { PROVISION, PROVISION_STATES } from '../domain/provision.ts';
import { ATTEMPT_FIELD, LIMIT_PARTS, SUFFIXES, WEBHOOK_PARTS } from './keys.ts';

export type Client = Redis | Cluster;
export type Argument = string | number | Buffer;

/** Every script of the folder; each says in its head what it takes, returns, and answers when it is sent again. */
export const SCRIPT_NAMES = [
  'create',
  'move',
  'wake',
  'note',
  'keep',
  'attempt',
  'hand',
  'bump',
  'tell',
  'seat',
  'amend',
  'give-up',
  'remote',
  'remove',
  'file-amend',
  'file-expire',
  'collect',
  'erase',
  'open',
  'take',
  'alone',
  'commit',
  'give',
  'rewake',
  'strike',
  'pending',
  'enter',
  'leave',
  'age',
  'due',
  'page',
  'beat',
  'nodes',
  'engine-beat',
  'lease',
  'yield',
  'model-remove',
  'template-create',
  'template-change',
  'template-use',
  'template-remove',
  'idempotency-claim',
  'idempotency-renew',
  'idempotency-answer',
  'told',
  'webhook-register',
  'webhook-remove',
  'webhook-disable',
  'webhook-add',
  'webhook-due',
  'webhook-attempt',
  'webhook-erase',
  'limit-draw',
  'upload-part',
  'upload-begin',
  'upload-end',
] as const;
export type ScriptName = (typeof SCRIPT_NAMES)[number];

function readScript(name: string): string {
  return readFileSync(new URL(`scripts/${name}.lua`, import.meta.url), 'utf8');
}

function luaSet(name: string, members: readonly string[]): string {
  return `local ${name} = { ${members.map((member) => `${member} = true`).join(', ')} }`;
}

/** What the scripts share with the rest: how keys end, and which states are final or sealed. */
function renderConstants(): string {
  const suffixes = Object.entries({ ...SUFFIXES, ...WEBHOOK_PARTS, ...LIMIT_PARTS }).map(
    ([name, text]) => `local ${name} = '${text}'`,
  );
  const released = PROVISION_STATES.filter((state) => PROVISION[state].next.length === 0);
  return [
    ...suffixes,
    `local MANY_TAKES = ${MANY_TAKES}`,
    `local ATTEMPT = '${ATTEMPT_FIELD}'`,
    luaSet(
      'OVER',
      ATTEMPT_STATES.filter((state) => isOver({ state })),
    ),
    luaSet('FINAL', [...JOB_STATES.filter(isFinal), ...released]),
    luaSet('SEALED', JOB_STATES.filter(isSealed)),
  ].join('\n');
}

function loadScripts(): ReadonlyMap<ScriptName, string> {
  const head = `${renderConstants()}\n${readScript('prelude')}`;
  return new Map(SCRIPT_NAMES.map((name) => [name, `${head}\n${readScript(name)}`]));
}

/** The whole text of each script, as Redis gets it. */
export const SCRIPTS = loadScripts();

/** The name under which a script is a command of the client; `move` and others are commands of Redis itself. */
export function commandName(script: ScriptName): string {
  return `sluice_${script}`;
}

/** Runs scripts. A script touches keys of one hash tag, so it is told one key and derives the rest. */
export interface Scripts {
  /** Replies with strings and numbers, in arrays. */
  run(name: ScriptName, key: string, ...args: Argument[]): Promise<unknown>;
  /** The same with Buffers for strings: bitmaps are no text. */
  runBinary(name: ScriptName, key: string, ...args: Argument[]): Promise<unknown>;
}

export function defineScripts(redis: Client): Scripts {
  for (const [name, lua] of SCRIPTS) {
    redis.defineCommand(commandName(name), { numberOfKeys: 1, lua });
  }
  async function call(command: string, key: string, args: Argument[]): Promise<unknown> {
    // ioredis adds commands at run time, so their types know nothing of them.
    const method: unknown = Reflect.get(redis, command);
    if (typeof method !== 'function') throw new Error(`the client has no command ${command}`);
    try {
      return await Reflect.apply(method, redis, [key, ...args]);
    } catch (error) {
      throw fromScript(error);
    }
  }
  return {
    run: (name, key, ...args) => call(commandName(name), key, args),
    runBinary: (name, key, ...args) => call(`${commandName(name)}Buffer`, key, args),
  };
}

/** An error that a script answers on purpose is ours; any other stays what it is. */
function fromScript(error: unknown): unknown {
  if (!(error instanceof Error)) return error;
  const [word, key, ...rest] = error.message.split(' ');
  if (word === 'DAMAGED') return damaged(key ?? '', rest.join(' '));
  if (word === 'MASK') return permanent('store.bad_mask', error.message, { cause: error });
  return error;
}

/** A record that is not what this version of Sluice writes. */
export function damaged(record: string, field: string): SluiceError {
  return permanent('store.damaged_record', `record ${record}: field ${field} cannot be read`);
}

/** A fresh id by which a compare-and-set recognises itself when ioredis sends it again. */
export function newOp(): string {
  return randomBytes(9).toString('base64url');
}
