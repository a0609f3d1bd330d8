import { quoteModels } from '../domain/provision.ts';
import { customIdOf } from './check-line.ts';
import type { Refusal } from './check-line.ts';
import type { InputLine } from './lines.ts';

/** The models of a job that nobody waits for any more, for lines that name them. */
export interface GivenUp {
  has(model: string | null): boolean;
  /** What the error file says of a line that names this one. */
  refusalOf(line: InputLine, model: string): Refusal;
  /** Aborted with `stop`, or as soon as the model is given up: until then a line may wait for it. */
  whileWanted(model: string | null, stop: AbortSignal): AbortSignal;
  /** Looks again which are given up; whoever waits for one is told. */
  check(): void;
}

/** `job` tells what the job is now: all models that it names, and those of them that are given up. */
export function createGivenUp(
  job: () => { models: readonly string[]; givenUp: () => readonly string[] },
): GivenUp {
  const awaited = new Map<string, AbortController>();
  // Made once a shard and model, not once a line: lines that wait are many.
  const signals = new WeakMap<AbortSignal, Map<string, AbortSignal>>();

  function has(model: string | null): boolean {
    return model !== null && job().givenUp().includes(model);
  }
  function check(): void {
    for (const [model, controller] of awaited) if (has(model)) controller.abort();
  }
  function controllerOf(model: string): AbortController {
    const controller = awaited.get(model) ?? new AbortController();
    awaited.set(model, controller);
    if (has(model)) controller.abort();
    return controller;
  }
  return {
    has,
    check,
    refusalOf(line, model) {
      const { models, givenUp } = job();
      const served = models.filter((each) => !givenUp().includes(each));
      const message = `No engine serves ${quoteModels([model])}, which this request asks for; they serve ${quoteModels(served)}.`;
      return { customId: customIdOf(line), code: 'model_not_found', message };
    },
    whileWanted(model, stop) {
      if (model === null) return stop;
      const ofShard = signals.get(stop) ?? new Map<string, AbortSignal>();
      signals.set(stop, ofShard);
      const known = ofShard.get(model) ?? AbortSignal.any([stop, controllerOf(model).signal]);
      ofShard.set(model, known);
      return known;
    },
  };
}
