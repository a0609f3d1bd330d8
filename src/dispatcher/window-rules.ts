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

/** What the jobs at an engine want of its window: all that they may have together, in the most cautious steps. */
export function windowRules(jobs: readonly Wish[]): WindowRules {
  let most = 0;
  let additiveIncrease = Number.POSITIVE_INFINITY;
  let healthyWindow = 1;
  for (const { adaptive, maxConcurrency } of jobs) {
    const wish = adaptive ?? DEFAULT_ADAPTIVE;
    const grown =
      wish.maxFactor === null ? maxConcurrency : Math.ceil(FIRST_LIMIT * wish.maxFactor);
    most += Math.min(grown, maxConcurrency);
    additiveIncrease = Math.min(additiveIncrease, wish.additiveIncrease);
    healthyWindow = Math.max(healthyWindow, wish.healthyWindow);
  }
  const adaptive = jobs.some((job) => job.adaptive !== null);
  if (jobs.length === 0) return { ...IDLE_RULES, adaptive };
  const start = Math.min(FIRST_LIMIT, most);
  return { least: 1, most, start, adaptive, additiveIncrease, healthyWindow };
}

const IDLE_RULES = {
  least: 1,
  most: FIRST_LIMIT,
  start: FIRST_LIMIT,
  additiveIncrease: 1,
  healthyWindow: 1,
} as const;
