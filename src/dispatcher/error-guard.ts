/** A sign that something is wrong with the whole job and not with its lines, in words for people. */
export interface Trouble {
  code: 'same_error' | 'retries_exhausted';
  message: string;
}

/** Watches the answers of a job in this process. One trouble is reported once. */
export interface ErrorGuard {
  /** Lines that may be in flight at an engine: few until one is answered well, hardly any where there is trouble. */
  readonly most: number;
  /** When it told of trouble; null: it did not. */
  readonly toldAt: number | null;
  /** A line has its answer; `fault` says what is wrong with it, null: nothing. */
  answered(fault: string | null): void;
  /** An attempt at a line failed, and the engine is to blame, though it still answers. */
  failed(reason: string): void;
}

interface GuardOptions {
  /** Nothing of the job was answered before. */
  isFresh: boolean;
  /** Lines of the job that may be in flight at this moment. */
  places: () => number;
  now: () => number;
  onTrouble: (trouble: Trouble) => void;
}

/** So many lines are sent before the first good answer, and so many equal errors at the start are enough. */
export const CANARY_LINES = 50;
/** Engines refuse at once: one that has said nothing for so long is at work. */
export const SILENT_MS = 300;
const SPAN = 1_000;
const MOST_EQUAL = 200;
const MOST_FAULTS = 500;
/** Failed attempts that are allowed on top of one for each answer, as rounds of all lines in flight. */
const SPARE_ROUNDS = 3;
const LEAST_SPARE = 300;
/** An engine that stumbles for a moment, as one that restarts does, is no reason to stop. */
const OVERDRAWN_MS = 60_000;

/**
 * Finds two kinds of trouble: lines fail with one and the same error that no retry mends (a wrong model, endpoint or
 * key), or attempts fail so often that asking again multiplies what the job costs.
 */
export function createErrorGuard(options: GuardOptions): ErrorGuard {
  const { now, onTrouble, isFresh } = options;
  const span = createFaultSpan();
  const begun = now();
  let isCautious = isFresh;
  let toldAt: number | null = null;
  let answers = 0;
  let failures = 0;
  let overdrawnSince: number | null = null;

  function tell(trouble: Trouble): void {
    if (toldAt !== null) return;
    toldAt = now();
    onTrouble(trouble);
  }

  function judge(fault: string, equal: number): void {
    const isFirst = isFresh && answers === CANARY_LINES && equal === CANARY_LINES;
    const isCommon = answers >= SPAN && equal >= MOST_EQUAL;
    if (!isFirst && !isCommon) return;
    const of = isFirst ? `The first ${CANARY_LINES}` : `${equal} of the last ${SPAN}`;
    tell({ code: 'same_error', message: `${of} answers are the same error: ${fault}` });
  }

  return {
    get most() {
      if (toldAt !== null) return 1;
      if (isCautious && answers === 0 && now() - begun >= SILENT_MS) isCautious = false;
      return isCautious ? CANARY_LINES : Number.POSITIVE_INFINITY;
    },
    get toldAt() {
      return toldAt;
    },
    answered(fault) {
      const equal = span.add(fault);
      answers += 1;
      if (fault !== null) judge(fault, equal);
      if (fault === null || answers >= CANARY_LINES) isCautious = false;
    },
    failed(reason) {
      failures += 1;
      const spare = Math.max(LEAST_SPARE, SPARE_ROUNDS * options.places());
      if (failures <= answers + spare) {
        overdrawnSince = null;
        return;
      }
      overdrawnSince ??= now();
      if (now() - overdrawnSince < OVERDRAWN_MS) return;
      const message = `${failures} attempts failed while ${answers} requests were answered; the last reason is ${reason}.`;
      tell({ code: 'retries_exhausted', message });
    },
  };
}

/** Counts equal faults among the last answers. */
function createFaultSpan(): { add(fault: string | null): number } {
  // What each of the last answers had, by number; 0 is nothing, or a fault that is not counted.
  const last = new Uint16Array(SPAN);
  const numbers = new Map<string, number>();
  const counts: number[] = [0];
  const free: number[] = [];
  let at = 0;

  function forgetOld(): void {
    for (const [fault, number] of numbers) {
      if (counts[number] === 0 && numbers.delete(fault)) free.push(number);
    }
  }

  function numberOf(fault: string): number {
    const known = numbers.get(fault);
    if (known !== undefined) return known;
    if (numbers.size >= MOST_FAULTS) forgetOld();
    // Where each is another, none of them is common.
    if (numbers.size >= MOST_FAULTS) return 0;
    const number = free.pop() ?? counts.length;
    numbers.set(fault, number);
    counts[number] = 0;
    return number;
  }

  function count(number: number, change: 1 | -1): number {
    if (number === 0) return 0;
    const counted = (counts[number] ?? 0) + change;
    counts[number] = counted;
    return counted;
  }

  return {
    add(fault) {
      count(last[at] ?? 0, -1);
      const number = fault === null ? 0 : numberOf(fault);
      last[at] = number;
      at = (at + 1) % SPAN;
      return count(number, 1);
    },
  };
}

const LONGEST_FAULT = 300;

/** An engine's refusal in words that are equal for equal causes; numbers in it, as lengths and ids, say nothing. */
export function faultOf(status: number, body: unknown): string {
  const error = member(body, 'error') ?? body;
  const text = member(error, 'message') ?? member(body, 'detail') ?? '';
  const message = typeof text === 'string' ? text : JSON.stringify(text);
  return `${status} ${message.replaceAll(/\d+/g, '…')}`.trim().slice(0, LONGEST_FAULT);
}

function member(value: unknown, name: string): unknown {
  if (typeof value !== 'object' || value === null) return undefined;
  return Object.hasOwn(value, name) ? (value as Record<string, unknown>)[name] : undefined;
}
