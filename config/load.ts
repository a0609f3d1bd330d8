import { existsSync, readFileSync } from 'node:fs';
import { parseEnv } from 'node:util';
import * as v from 'valibot';
import { invalidInput } from '../src/domain/errors.ts';
import type { Setting } from './kinds.ts';
import { leaseConflicts } from './lease.ts';
import { placesConflicts } from './places.ts';
import { SETTINGS } from './schema.ts';
import type { SettingName, Settings } from './schema.ts';
import { storageConflicts, withWholeKeys } from './storage.ts';

type AnySetting = Setting<v.GenericSchema<string | undefined, unknown>>;
type Environment = Readonly<Record<string, string | undefined>>;

/**
 * The environment, with what a file `.env` in this folder adds to it. The file may be other programs', too, so names
 * that are none of ours are left alone, unless they look like a slip of the pen: that is `settings.invalid`.
 */
export function readEnvironment(path = '.env'): Environment {
  if (!existsSync(path)) return process.env;
  const file = parseEnv(readFileSync(path, 'utf8'));
  const all: AnySetting[] = Object.values(SETTINGS);
  const known = all.flatMap(({ env, also = [] }) => [env, ...also]);
  const problems = Object.keys(file)
    .filter((name) => !known.some((each) => each === name))
    .flatMap((name) => known.filter((each) => isSlip(name, each)).map((each) => [name, each]))
    .map(([name, meant]) => `${name} in ${path} is no setting: did you mean ${meant}?`);
  if (problems.length > 0) throw refusal(problems);
  return { ...file, ...process.env };
}

/** Whether two names differ by one letter that is missing, added, changed, or by two that changed places. */
function isSlip(name: string, known: string): boolean {
  const [long, short] = name.length >= known.length ? [name, known] : [known, name];
  if (long.length - short.length > 1) return false;
  let at = 0;
  while (at < short.length && long[at] === short[at]) at += 1;
  if (long.length > short.length) return long.slice(at + 1) === short.slice(at);
  const swapped = long.slice(at, at + 2) === [short[at + 1], short[at]].join('');
  const rest = swapped ? 2 : 1;
  return long.slice(at + rest) === short.slice(at + rest);
}

/**
 * Reads every setting from the environment, an empty variable counting as unset. All problems are reported at once,
 * each with the variable, what it may be and what it is for; secret values are never repeated.
 * Throws InvalidInput `settings.invalid`.
 */
export function loadSettings(environment: Environment = readEnvironment()): Settings {
  const problems: string[] = [];
  const values: Partial<Record<SettingName, unknown>> = {};
  const chosen = withWholeKeys(environment);
  for (const name of Object.keys(SETTINGS) as SettingName[]) {
    const setting: AnySetting = SETTINGS[name];
    const { env, raw } = rawOf(setting, chosen);
    const parsed = v.safeParse(setting.schema, raw ?? setting.default);
    if (parsed.success) values[name] = parsed.output;
    else problems.push(describeProblem({ ...setting, env }, raw, parsed.issues[0].message));
  }
  if (problems.length > 0) throw refusal(problems);
  const settings = values as Settings; // every name was parsed by its own schema just above
  const conflicts = findConflicts(settings);
  if (conflicts.length > 0) throw refusal(conflicts);
  const { provisioners, engineUrls } = settings;
  if (provisioners.length > 0 || engineUrls.length === 0) return settings;
  return { ...settings, provisioners: ['static'] };
}

/** The text of a setting and the name that it was found under; undefined where none of its names is set. */
function rawOf(
  { env, also = [] }: AnySetting,
  environment: Environment,
): { env: string; raw: string | undefined } {
  for (const name of [env, ...also]) {
    const raw = environment[name]?.trim();
    if (raw !== undefined && raw !== '') return { env: name, raw };
  }
  return { env, raw: undefined };
}

function refusal(problems: readonly string[]): Error {
  const count = problems.length === 1 ? 'One setting is' : `${problems.length} settings are`;
  return invalidInput('settings.invalid', `${count} wrong:\n  ${problems.join('\n  ')}`);
}

function describeProblem(
  setting: { env: string; doc: string; secret?: true },
  raw: string | undefined,
  message: string,
): string {
  // A URL with credentials is refused where it must have none, and then it is the credentials that are wrong.
  const hidden = setting.secret === true || /[@?]/.test(raw ?? '');
  const shown = hidden ? '' : `, got '${(raw ?? '').slice(0, 200)}'`;
  return `${setting.env} ${message}${shown}. (${setting.doc})`;
}

function findConflicts(settings: Settings): string[] {
  const conflicts: string[] = [];
  if (settings.maxResponseBytes > settings.memoryBudget) {
    conflicts.push('MAX_RESPONSE_BYTES must not exceed MEMORY_BUDGET: one answer has to fit.');
  }
  if (settings.maxLineBytes > settings.memoryBudget / 2) {
    conflicts.push(
      'MAX_LINE_BYTES must not exceed half of MEMORY_BUDGET: line and answer have to fit.',
    );
  }
  const { maxBatchFileBytes, maxFileBytes, maxUploadBytes, allowedBuckets } = settings;
  const isUploaded = allowedBuckets.length === 0;
  if (isUploaded && maxBatchFileBytes > Math.max(maxFileBytes, maxUploadBytes)) {
    conflicts.push(
      'MAX_BATCH_FILE_BYTES must not exceed both MAX_FILE_BYTES and MAX_UPLOAD_BYTES: no file could be so large.',
    );
  }
  if (settings.engineApiKey === undefined) {
    for (const name of ['keyRequestsPerSecond', 'keyTokensPerMinute'] as const) {
      if (settings[name] === undefined) continue;
      const { env } = SETTINGS[name];
      conflicts.push(
        `${env} limits what is sent with ENGINE_API_KEY, and has no effect without: set that, or leave ${env} out. ENGINE_REQUESTS_PER_SECOND and ENGINE_TOKENS_PER_MINUTE limit each engine.`,
      );
    }
  }
  const { engineUrls, engineWeights } = settings;
  if (engineWeights.length > 0 && engineWeights.length !== engineUrls.length) {
    conflicts.push(
      `ENGINE_WEIGHTS has ${engineWeights.length} numbers for the ${engineUrls.length} engines of ENGINE_URLS: give one each.`,
    );
  }
  return [
    ...conflicts,
    ...leaseConflicts(settings),
    ...remoteConflicts(settings),
    ...storageConflicts(settings),
    ...placesConflicts(settings),
  ];
}

function remoteConflicts({ metadataServiceUrl, metadataServiceApiKey }: Settings): string[] {
  if (metadataServiceApiKey === undefined || metadataServiceUrl !== undefined) return [];
  return [
    'METADATA_SERVICE_API_KEY is sent to METADATA_SERVICE_URL, and has no effect without: set that, or leave it out.',
  ];
}
