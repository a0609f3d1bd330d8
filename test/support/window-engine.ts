import { rejectWindow, startWindow, stepWindow } from '../../src/dispatcher/window.ts';
import type { WindowRules, WindowSample, WindowState } from '../../src/dispatcher/window.ts';
import { seededRandom } from '../simulators/vllm/digest.ts';

/** An engine as functions: continuous batching in steps, each of which gives every running line one token. */
export interface EngineModel {
  /** Lines that run at once; the rest waits. */
  maxSeqs: number;
  /** Time of a step in which so many lines run. */
  stepMs(running: number): number;
  promptTokens: number;
  prefillPerSecond: number;
  /** Tokens for which the KV cache has room; the line that came last is preempted and computed anew. */
  kvTokens: number;
  /** Lines beyond which new ones are refused at that moment. */
  maxQueued(atMs: number): number;
  /** Tokens of an answer. */
  tokens(random: () => number): number;
  hasMetrics: boolean;
  /** Factor on all times at that moment. */
  slowness(atMs: number): number;
}

interface Line {
  left: number;
  done: number;
  /** Tokens to read before the next is generated. */
  prefill: number;
  sentAt: number;
  tokens: number;
}

interface Tally {
  answered: number;
  tokens: number;
  latencyMs: number;
  rejected: number;
  preemptions: number;
  generated: number;
}

const NOTHING: Tally = {
  answered: 0,
  tokens: 0,
  latencyMs: 0,
  rejected: 0,
  preemptions: 0,
  generated: 0,
};

/** A refused line is sent again so much later. */
const RETRY_MS = 500;

/** A run in simulated time: an endless supply of lines, sent under a window. */
class WindowRun {
  readonly #model: EngineModel;
  readonly #random: () => number;
  readonly #running: Line[] = [];
  readonly #waiting: Line[] = [];
  #retries: number[] = [];
  #kv = 0;
  #prefill = 0;
  #since: Tally = { ...NOTHING };
  now = 0;
  /** Tokens generated, lines answered and refused so far. */
  readonly all = { tokens: 0, answered: 0, rejected: 0 };

  constructor(model: EngineModel, seed: number) {
    this.#model = model;
    this.#random = seededRandom(seed);
  }

  get inFlight(): number {
    return this.#running.length + this.#waiting.length;
  }

  /** Fills the window up to `limit()`, runs until that time, and says what a dispatcher saw. */
  until(time: number, limit: () => number, onReject: (inFlight: number) => void): WindowSample {
    const begun = this.now;
    this.#since = { ...NOTHING };
    while (this.now < time) {
      this.#send(limit, onReject);
      this.#step();
    }
    this.#send(limit, onReject);
    this.#admit();
    const { answered, tokens, latencyMs, rejected, preemptions, generated } = this.#since;
    return {
      elapsedMs: this.now - begun,
      answered,
      outputTokens: tokens,
      latencyPerTokenMs: tokens === 0 ? null : latencyMs / tokens,
      meanLatencyMs: answered === 0 ? null : latencyMs / answered,
      rejected,
      timedOut: 0,
      wasFull: true,
      inFlight: this.inFlight,
      metrics: this.#model.hasMetrics
        ? {
            running: this.#running.length,
            waiting: this.#waiting.length,
            kvUse: Math.min(1, this.#kv / this.#model.kvTokens),
            preemptions,
            generationTokens: generated,
          }
        : null,
    };
  }

  #send(limit: () => number, onReject: (inFlight: number) => void): void {
    this.#retries = this.#retries.filter((due) => due > this.now);
    while (this.inFlight < limit()) {
      if (this.inFlight >= this.#model.maxQueued(this.now)) {
        // So many wait to be sent again that no new one is taken in hand.
        if (this.#retries.length >= limit()) return;
        this.#since.rejected += 1;
        this.all.rejected += 1;
        this.#retries.push(this.now + RETRY_MS);
        onReject(this.inFlight + 1);
        continue;
      }
      const tokens = this.#model.tokens(this.#random);
      const prefill = this.#model.promptTokens;
      this.#waiting.push({ left: tokens, done: 0, prefill, sentAt: this.now, tokens });
    }
  }

  #admit(): void {
    for (;;) {
      const line = this.#waiting[0];
      if (line === undefined || this.#running.length >= this.#model.maxSeqs) return;
      const room = line.prefill + this.#kv;
      if (room > this.#model.kvTokens && this.#running.length > 0) return;
      this.#waiting.shift();
      this.#running.push(line);
      this.#kv += line.prefill;
      this.#prefill += line.prefill;
    }
  }

  #step(): void {
    this.#admit();
    const count = this.#running.length;
    if (count === 0) {
      this.now += 1;
      return;
    }
    const { stepMs, prefillPerSecond, slowness, promptTokens } = this.#model;
    const ms = stepMs(count) + (this.#prefill / prefillPerSecond) * 1_000;
    this.#prefill = 0;
    this.now += ms * slowness(this.now);
    this.#since.generated += count;
    this.all.tokens += count;
    this.#kv += count;
    let kept = 0;
    for (const line of this.#running) {
      line.left -= 1;
      line.done += 1;
      if (line.left > 0) {
        this.#running[kept] = line;
        kept += 1;
        continue;
      }
      this.#kv -= promptTokens + line.done;
      this.#answer(line);
    }
    this.#running.length = kept;
    this.#preempt();
  }

  #answer(line: Line): void {
    this.all.answered += 1;
    this.#since.answered += 1;
    this.#since.tokens += line.tokens;
    this.#since.latencyMs += this.now - line.sentAt;
  }

  #preempt(): void {
    const { kvTokens, promptTokens } = this.#model;
    while (this.#kv > kvTokens && this.#running.length > 1) {
      const line = this.#running.pop();
      if (line === undefined) return;
      this.#kv -= promptTokens + line.done;
      line.prefill = promptTokens + line.done;
      this.#waiting.unshift(line);
      this.#since.preemptions += 1;
    }
  }
}

export interface Outcome {
  /** Tokens per second from `fromMs` on. */
  perSecond: number;
  rejectedShare: number;
  /** The limit at each step. */
  limits: number[];
  states: WindowState[];
}

interface RunOptions {
  seed?: number;
  fromMs: number;
  toMs: number;
  everyMs?: number;
}

/** The engine under a limit that stands still. */
export function runFixed(model: EngineModel, limit: number, options: RunOptions): number {
  const run = new WindowRun(model, options.seed ?? 1);
  run.until(
    options.fromMs,
    () => limit,
    () => {},
  );
  const before = run.all.tokens;
  const begun = run.now;
  run.until(
    options.toMs,
    () => limit,
    () => {},
  );
  return ((run.all.tokens - before) / (run.now - begun)) * 1_000;
}

/** The engine under a window that adapts. */
export function runAdaptive(
  model: EngineModel,
  rules: WindowRules,
  { seed = 1, fromMs, toMs, everyMs = 500 }: RunOptions,
): Outcome {
  const run = new WindowRun(model, seed);
  let state = startWindow(rules);
  const limits: number[] = [];
  const states: WindowState[] = [];
  let from: { tokens: number; now: number } | null = null;
  while (run.now < toMs) {
    const sample = run.until(
      run.now + everyMs,
      () => state.limit,
      (inFlight) => {
        state = rejectWindow(state, inFlight, rules);
      },
    );
    state = stepWindow(state, sample, rules);
    limits.push(state.limit);
    states.push(state);
    if (from === null && run.now >= fromMs) from = { tokens: run.all.tokens, now: run.now };
  }
  const { tokens, now } = from ?? { tokens: 0, now: 0 };
  return {
    perSecond: ((run.all.tokens - tokens) / (run.now - now)) * 1_000,
    rejectedShare: run.all.rejected / (run.all.rejected + run.all.answered),
    limits,
    states,
  };
}

/** The best of many limits that stand still. */
export function bestFixed(
  model: EngineModel,
  options: RunOptions,
): { limit: number; perSecond: number } {
  let best = { limit: 0, perSecond: 0 };
  for (let limit = 4; limit <= 1_024; limit = Math.ceil(limit * 1.19)) {
    const perSecond = runFixed(model, limit, options);
    if (perSecond > best.perSecond) best = { limit, perSecond };
  }
  return best;
}
