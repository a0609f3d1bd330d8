import * as v from 'valibot';
import { invalidInput, permanent, SluiceError, transient } from '../../domain/errors.ts';
import type { ApiVersion } from './settings.ts';

/** An answer whose status is none of those that its call expects. */
export interface Refused {
  status: number;
  /** Its body as it came. */
  text: string;
  /** ms, as its headers say. */
  retryAfterMs: number | null;
  /** `POST /pods` and the like, for people. */
  what: string;
  /** A machine may have come of it. */
  creates: boolean;
  version: ApiVersion;
}

/**
 * A create has no code that says "none left", only words (REST v2: "400 covers both"); v1 says them with 500. Those of
 * late 2026 come first, then older ones of the same API.
 */
const CAPACITY_WORDS = [
  /no longer any instances available/i,
  /not enough free gpus/i,
  /no instances (are )?(currently )?available/i,
  /does not have the resources/i,
  /could not be placed/i,
  /insufficient capacity|out of stock/i,
];

const MOST_WORDS = 300;

/** v2: RFC 9457. v1 has no schema: `error` was seen as text and as an object, its document's examples have `message`. */
const problem = v.pipe(
  v.string(),
  v.parseJson(),
  v.object({
    status: v.optional(v.unknown()),
    title: v.optional(v.unknown()),
    detail: v.optional(v.unknown()),
    error: v.optional(v.unknown()),
    message: v.optional(v.unknown()),
    errors: v.optional(v.unknown()),
  }),
);

/** Whether it is the API that speaks, and not a gateway before it. */
export function isProblem(text: string): boolean {
  return v.is(problem, text);
}

/** The provider's own words, without anything that looks like a key. */
function wordsOf(text: string): string {
  const parsed = v.safeParse(problem, text);
  if (!parsed.success) return '';
  const { title, detail, error, message, errors } = parsed.output;
  const own = [detail, error, message, title].find((one) => typeof one === 'string' && one !== '');
  const list = Array.isArray(errors) ? errors.filter((one) => typeof one === 'string') : [];
  const words = [own, ...list].filter((one) => typeof one === 'string').join(' ');
  if (/PRIVATE KEY|SLUICE_HOST_KEY/.test(words)) return '';
  return words.slice(0, MOST_WORDS);
}

function noCapacity(message: string): SluiceError {
  return new SluiceError('NoCapacity', 'lease.no_capacity', message);
}

/** What no other call than this one and no other machine would change; undefined for anything else. */
function ofAccount(
  { status, retryAfterMs, version }: Refused,
  said: string,
): SluiceError | undefined {
  if (status === 401) {
    const message = `RunPod refuses the key${said}: set RUNPOD_API_KEY to a key that is valid and may manage pods.`;
    return permanent('lease.unauthorized', message);
  }
  if (status === 402) {
    const message = `RunPod wants more credit before it rents anything${said}: add some to the account.`;
    return permanent('lease.quota', message);
  }
  if (status === 410) {
    const mend =
      version === 'v1'
        ? 'set RUNPOD_API_VERSION=v2, and RUNPOD_BASE_URL, if it is set, to one that does not end in /v1'
        : 'set RUNPOD_BASE_URL and RUNPOD_API_VERSION to an API that answers';
    return permanent(
      'lease.retired_api',
      `RunPod has retired its REST API ${version}${said}: ${mend}.`,
    );
  }
  if (status === 429) {
    const details = retryAfterMs === null ? {} : { retryAfterMs };
    return transient('lease.unavailable', `RunPod has been asked too often${said}.`, details);
  }
  return undefined;
}

function ofForbidden({ creates, text }: Refused, said: string): SluiceError {
  // Cloudflare stands before the API and answers in HTML, for a moment or until somebody talks to RunPod.
  if (!isProblem(text)) {
    const message =
      'A gateway before RunPod has turned the request away (403 without words of the API).';
    return transient('lease.unavailable', message);
  }
  // REST v2: "Your account cannot access the requested pool. Skip this candidate, keep going."
  if (creates) return noCapacity(`RunPod does not rent this to the account${said}.`);
  const message = `RunPod's key may not do this${said}: give RUNPOD_API_KEY the right to manage pods.`;
  return permanent('lease.unauthorized', message);
}

/** The error that the contract has for an answer of this status; total. */
export function refusalOf(refused: Refused): SluiceError {
  const { status, text, what, creates } = refused;
  const words = wordsOf(text);
  const said = words === '' ? '' : ` ("${words}")`;
  const account = ofAccount(refused, said);
  if (account !== undefined) return account;
  if (status === 403) return ofForbidden(refused, said);
  const answered = `RunPod answers ${what} with ${status}${said}.`;
  if (!creates) {
    const details = refused.retryAfterMs === null ? {} : { retryAfterMs: refused.retryAfterMs };
    return transient('lease.unavailable', answered, details);
  }
  if (CAPACITY_WORDS.some((pattern) => pattern.test(words))) {
    return noCapacity(`RunPod has none left${said}.`);
  }
  const definite = [400, 404, 413, 422].includes(status) && isProblem(text);
  if (definite) return invalidInput('lease.refused', answered);
  // 500 was answered for pods that existed and were billed; 408 and 409 say nothing about what was done.
  return transient('lease.unknown', `${answered} A machine may have come of it.`);
}
