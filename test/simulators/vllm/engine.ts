import { blockHashes, BLOCK_TOKENS, createKvCache } from './kv-cache.ts';
import type { Lease } from './kv-cache.ts';
import type { Metrics } from './metrics.ts';
import type { Profile } from './profile.ts';

/** One sequence to compute. `outputTokens` 0 is a pooling request: done when its prompt is. */
export interface EngineJob {
  prompt: string;
  promptTokens: number;
  outputTokens: number;
  /** Called as each token comes, with its index. */
  onToken?: ((index: number) => void) | undefined;
}

export type JobEnd = 'finished' | 'aborted' | 'dead';

export interface Ticket {
  ended: Promise<JobEnd>;
  /** Takes the job out of queue or batch, as vLLM does when a client hangs up. */
  abort(): void;
}

export interface EngineStats {
  running: number;
  waiting: number;
  kvUsage: number;
}

/**
 * Continuous batching in steps, after vllm/v1/core/sched/scheduler.py: a step serves running sequences
 * first (one token each, or a chunk of an unfinished prompt), then admits waiting ones while
 * `max_num_seqs`, `max_num_batched_tokens` and KV blocks last; without a free block the sequence that
 * came last is preempted, goes to the head of the queue and is computed anew.
 */
export interface Engine {
  submit(job: EngineJob): Ticket;
  stats(): EngineStats;
  /** Takes effect at the next step. */
  configure(profile: Profile): void;
  /** No more steps: whatever runs or comes never ends, unless it is aborted or the engine dies. */
  stall(): void;
  /** The engine process dies: all jobs end `dead`, as do all that follow. */
  die(): void;
  readonly dead: boolean;
}

interface Slot {
  job: EngineJob;
  hashes: number[];
  lease: Lease | undefined;
  computed: number;
  generated: number;
  preemptions: number;
  arrivedAt: number;
  admittedAt: number;
  firstTokenAt: number;
  lastTokenAt: number;
  end(how: JobEnd): void;
}

interface Step {
  work: { slot: Slot; tokens: number }[];
  prefill: number;
  decodes: number;
}

/** Steps that a late timer may make up for at once, before sockets get their turn. */
const CATCH_UP_STEPS = 50;
const LARGEST_LAG_MS = 250;

/** An idle engine. It writes its counters and histograms to `metrics`, in seconds of real time. */
export function createEngine(initial: Profile, metrics: Metrics): Engine {
  let profile = initial;
  let dead = false;
  let stalled = false;
  // Virtual time: a timer that fires late does not slow the engine, the next step just ends sooner.
  let clock = performance.now();
  let timer: NodeJS.Timeout | undefined;
  const kv = createKvCache(profile.num_gpu_blocks);
  const waiting: Slot[] = [];
  const running: Slot[] = [];
  const { counters } = metrics;

  const pending = (slot: Slot): number => slot.job.promptTokens + slot.generated - slot.computed;
  const idle = (): boolean => running.length === 0 && waiting.length === 0;

  function release(slot: Slot): void {
    if (slot.lease !== undefined) kv.release(slot.lease);
    slot.lease = undefined;
  }

  function preempt(slot: Slot): void {
    release(slot);
    slot.computed = 0;
    slot.preemptions += 1;
    running.pop();
    waiting.unshift(slot);
    counters.preemptions += 1;
  }

  /** Room for the next token of `slot`, at the price of those that came after it; false if it fell itself. */
  function makeRoom(slot: Slot): boolean {
    const tokens = slot.job.promptTokens + slot.generated;
    for (;;) {
      // A sequence alone in the batch goes on in any case: there is nobody left to preempt.
      if (slot.lease !== undefined && kv.grow(slot.lease, tokens, running.length === 1))
        return true;
      const victim = running.at(-1);
      if (victim === undefined) return false;
      preempt(victim);
      if (victim === slot) return false;
    }
  }

  function plan(step: Step, slot: Slot, budget: number): number {
    const tokens = Math.min(budget, pending(slot));
    if (slot.generated > 0 && tokens === 1) step.decodes += 1;
    else step.prefill += tokens;
    step.work.push({ slot, tokens });
    return tokens;
  }

  function admit(step: Step, room: number): void {
    let budget = room;
    while (budget > 0 && running.length < profile.max_num_seqs) {
      const slot = waiting[0];
      if (slot === undefined) return;
      const tokens = slot.job.promptTokens + slot.generated;
      // The last token is always computed, else there would be nothing to sample from.
      const cached = Math.min(kv.match(slot.hashes) * BLOCK_TOKENS, tokens - 1);
      slot.lease = kv.allocate(slot.hashes, tokens, running.length === 0);
      if (slot.lease === undefined) return;
      waiting.shift();
      running.push(slot);
      slot.computed = cached;
      if (slot.preemptions === 0) {
        slot.admittedAt = clock;
        counters.prefixQueries += slot.job.promptTokens;
        counters.prefixHits += cached;
        counters.promptTokensCached += cached;
      }
      budget -= plan(step, slot, budget);
    }
  }

  function schedule(): Step {
    const step: Step = { work: [], prefill: 0, decodes: 0 };
    let budget = profile.max_num_batched_tokens;
    const preemptions = counters.preemptions;
    for (let i = 0; i < running.length && budget > 0; i += 1) {
      const slot = running[i];
      if (slot === undefined || !makeRoom(slot)) break;
      budget -= plan(step, slot, budget);
    }
    // As the scheduler: nobody is admitted in a step that had to preempt.
    if (counters.preemptions === preemptions) admit(step, budget);
    return step;
  }

  function stepMs({ prefill, decodes }: Step): number {
    const decode = decodes === 0 ? 0 : (decodes / profile.decode_tokens_per_s) * 1000;
    const read = (prefill / profile.prefill_tokens_per_s) * 1000;
    const { knee_seqs: knee, knee_power: power } = profile;
    const thrash = knee > 0 && running.length > knee ? (running.length / knee) ** power : 1;
    return (thrash * (profile.decode_step_ms + decode + read)) / profile.speed;
  }

  function observeEnd({ job, arrivedAt, admittedAt, firstTokenAt, preemptions }: Slot): void {
    const seconds = (from: number): number => (clock - from) / 1000;
    metrics.observe('vllm:e2e_request_latency_seconds', seconds(arrivedAt));
    metrics.observe('vllm:request_queue_time_seconds', (admittedAt - arrivedAt) / 1000);
    metrics.observe('vllm:request_inference_time_seconds', seconds(admittedAt));
    metrics.observe('vllm:request_prompt_tokens', job.promptTokens);
    metrics.observe('vllm:request_num_preemptions', preemptions);
    metrics.observe('vllm:request_max_num_generation_tokens', job.outputTokens);
    if (job.outputTokens === 0) return;
    metrics.observe('vllm:request_prefill_time_seconds', (firstTokenAt - admittedAt) / 1000);
    metrics.observe('vllm:request_decode_time_seconds', seconds(firstTokenAt));
    metrics.observe('vllm:request_generation_tokens', job.outputTokens);
    const gaps = Math.max(1, job.outputTokens - 1);
    metrics.observe('vllm:request_time_per_output_token_seconds', seconds(firstTokenAt) / gaps);
  }

  function finish(slot: Slot): void {
    running.splice(running.indexOf(slot), 1);
    release(slot);
    observeEnd(slot);
    slot.end('finished');
  }

  function token(slot: Slot): void {
    if (slot.generated === 0) {
      slot.firstTokenAt = clock;
      metrics.observe('vllm:time_to_first_token_seconds', (clock - slot.arrivedAt) / 1000);
    } else {
      metrics.observe('vllm:inter_token_latency_seconds', (clock - slot.lastTokenAt) / 1000);
    }
    slot.lastTokenAt = clock;
    slot.generated += 1;
    counters.generationTokens += 1;
    slot.job.onToken?.(slot.generated - 1);
  }

  function apply({ work, prefill, decodes }: Step): void {
    metrics.observe('vllm:iteration_tokens_total', prefill + decodes);
    for (const { slot, tokens } of work) {
      if (slot.lease === undefined) continue; // aborted while the step ran
      slot.computed += tokens;
      if (pending(slot) > 0) continue;
      if (slot.generated === 0) counters.promptTokens += slot.job.promptTokens;
      if (slot.job.outputTokens > 0) token(slot);
      if (slot.generated >= slot.job.outputTokens) finish(slot);
    }
  }

  function wait(step: Step): void {
    if (stalled) return;
    timer = setTimeout(endStep, Math.max(0, clock - performance.now()), step);
  }

  function startStep(): Step {
    const step = schedule();
    clock += stepMs(step);
    return step;
  }

  function endStep(ended: Step): void {
    timer = undefined;
    let step = ended;
    for (let i = 0; i < CATCH_UP_STEPS; i += 1) {
      apply(step);
      if (dead || idle()) return;
      clock = Math.max(clock, performance.now() - LARGEST_LAG_MS);
      step = startStep();
      if (clock > performance.now()) break;
    }
    wait(step);
  }

  function abort(slot: Slot): void {
    const queued = waiting.indexOf(slot);
    if (queued >= 0) waiting.splice(queued, 1);
    const active = running.indexOf(slot);
    if (active >= 0) running.splice(active, 1);
    if (queued < 0 && active < 0) return;
    release(slot);
    counters.success.abort += 1; // FinishReason.ABORT of vllm/v1/engine/__init__.py
    slot.end('aborted');
  }

  function submit(job: EngineJob): Ticket {
    if (dead) return { ended: Promise.resolve('dead'), abort: () => {} };
    const { promise, resolve } = Promise.withResolvers<JobEnd>();
    const now = performance.now();
    const slot: Slot = {
      job,
      hashes: blockHashes(job.prompt),
      lease: undefined,
      computed: 0,
      generated: 0,
      preemptions: 0,
      arrivedAt: now,
      admittedAt: now,
      firstTokenAt: now,
      lastTokenAt: now,
      end: resolve,
    };
    waiting.push(slot);
    if (timer === undefined) {
      clock = Math.max(clock, now);
      wait(startStep());
    }
    return { ended: promise, abort: () => abort(slot) };
  }

  return {
    submit,
    stats: () => ({ running: running.length, waiting: waiting.length, kvUsage: kv.usage() }),
    configure(next) {
      profile = next;
      kv.resize(next.num_gpu_blocks);
    },
    stall() {
      stalled = true;
      clearTimeout(timer);
    },
    die() {
      dead = true;
      clearTimeout(timer);
      for (const slot of [...running.splice(0), ...waiting.splice(0)]) {
        release(slot);
        slot.end('dead');
      }
    },
    get dead() {
      return dead;
    },
  };
}
