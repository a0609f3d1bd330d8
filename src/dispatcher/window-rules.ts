import { DEFAULT_ADAPTIVE } from '../domain/job.ts';
import type { Adaptive } from '../domain/job.ts';
import type { WindowRules } from './window.ts';

/** What a job wants of the windows of its engines. */
interface Wish {
  maxConcurrency: number;
  adaptive: Adaptive | null;
}

/** Lines in flight with which an engine begins of which nothing is known: few of vLLM's defaults take less. */
const FIRST_LIMIT = 64;
/** More than any job may ask for: what bounds a window is the engine, and what bounds a job is its own cap. */
const MOST_LIMIT = 16_384;

/** Lines in flight that a job may have at one engine, all processes together. */
export function mostOf({ maxConcurrency, adaptive }: Wish): number {
  const factor = adaptive?.maxFactor ?? null;
  return factor === null
    ? maxConcurrency
    : Math.min(maxConcurrency, Math.ceil(FIRST_LIMIT * factor));
}

/** How the window of an engine moves: in the most cautious steps that the jobs there ask for. */
export function windowRules(jobs: readonly Wish[]): WindowRules {
  const wishes = jobs.flatMap(({ adaptive }) => (adaptive === null ? [] : [adaptive]));
  const { additiveIncrease, healthyWindow } = wishes[0] ?? DEFAULT_ADAPTIVE;
  return {
    least: 1,
    most: MOST_LIMIT,
    start: FIRST_LIMIT,
    additiveIncrease: Math.min(additiveIncrease, ...wishes.map((wish) => wish.additiveIncrease)),
    healthyWindow: Math.max(healthyWindow, ...wishes.map((wish) => wish.healthyWindow)),
  };
}
