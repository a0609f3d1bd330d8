/** What a simulated engine does that its command line does not say. */
export interface EngineKnobs {
  /** A file of ../profiles; default `zero`. */
  profile?: string;
  /** Fields that differ from the profile. */
  set?: Record<string, unknown>;
  /** Answers to every model name. */
  anyModel?: boolean;
  /** Loads its model so long, and listens only then. */
  startDelayMs?: number;
  /** Listens, answers 503 and never becomes healthy. */
  neverHealthy?: boolean;
  /** Ends so while it loads, with vLLM's words. */
  crash?: 'oom' | 'arch';
  /** Faults as POST /admin/faults takes them. */
  faults?: Record<string, unknown>[];
}
