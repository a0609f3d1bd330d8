import type { Offer } from '../contract.ts';
import type { LeaseAccount, Pace } from '../lease-contract.ts';
import type { PaceLimits } from '../pace.ts';
import { fixedCatalog } from './catalog-v1.ts';
import { askCatalog } from './catalog-v2.ts';
import { createHttp } from './http.ts';
import type { Fetcher } from './http.ts';
import { createPod, describeVolume } from './orders.ts';
import { destroyPod, listPods, lookAtPod } from './pods.ts';
import { paceFor, quotasTold } from './rate-limit.ts';
import type { Headers } from './rate-limit.ts';
import { apiOf } from './settings.ts';
import type { RunPodSettings } from './settings.ts';
import { V1 } from './v1.ts';
import { V2 } from './v2.ts';

interface RunPodOptions {
  pace: Pace;
  /** Carries requests; undici's unless given. */
  fetcher?: Fetcher;
  now?: () => number;
  /** Hears how often the account may be used, as each answer tells it. */
  onLimits?: (limits: PaceLimits) => void;
}

/**
 * By its documents (REST v2), counted by account in whole windows. These are 48 calls at most in a minute and 47,500 in a
 * day, for everything but giving back; where a window is full all the same, the headers of the answer say until when. A
 * catalog is four calls, and a create two or three, which need not come one by one.
 */
const DOCUMENTED = [
  { requests: 60, seconds: 60 },
  { requests: 3_000, seconds: 3_600 },
  { requests: 50_000, seconds: 86_400 },
];
const OTHER_LIMITS = { createsPerSecond: null, releasesPerSecond: 10 } as const;

/** Before an answer says what the account may do. */
export const RUNPOD_LIMITS: PaceLimits = { ...paceFor(DOCUMENTED), ...OTHER_LIMITS };

const TIMEOUT_MS = 30_000;
const KEEP_MS = 30_000;

/**
 * RunPod, by its REST API v2, or by v1 where the settings say so. Throws InvalidInput where they contradict each other.
 */
export function createRunPod(settings: RunPodSettings, options: RunPodOptions): LeaseAccount {
  const api = apiOf(settings);
  const dialect = api.version === 'v1' ? V1 : V2;
  const { apiKey, cloudType, dataCenters, timeoutMs = TIMEOUT_MS } = settings;
  const { pace, fetcher, now = Date.now, onLimits } = options;
  function onAnswer(headers: Headers): void {
    const quotas = quotasTold(headers);
    if (quotas !== null) onLimits?.({ ...paceFor(quotas), ...OTHER_LIMITS });
  }
  const http = createHttp({ api, apiKey, timeoutMs, pace, fetcher, now, onAnswer });
  const account = { http, dialect, settings };
  let kept: { until: number; offers: Promise<Offer[]> } | null = null;
  const fixed = api.version === 'v1';
  /** What the last catalog said; a create asks for none. */
  let known = fixed ? fixedCatalog(now) : [];

  async function askOffers(): Promise<Offer[]> {
    const catalog = { cloudType, dataCenters, now };
    known = fixed ? fixedCatalog(now) : await askCatalog(http, catalog);
    return known;
  }

  return {
    provider: 'runpod',
    capabilities: dialect.capabilities,
    async catalog() {
      if (kept !== null && now() < kept.until) return kept.offers;
      // The promise is kept, so that all who ask at once share one round; a failed one is not.
      const mine = { until: now() + KEEP_MS, offers: askOffers() };
      kept = mine;
      try {
        return await mine.offers;
      } catch (error) {
        if (kept === mine) kept = null;
        throw error;
      }
    },
    create: async (wish) => createPod(account, wish, known),
    describe: async (id) => lookAtPod(http, dialect, id),
    destroy: async (id) => destroyPod(http, id),
    list: async (stamp) => listPods(http, dialect, (name) => name.startsWith(stamp)),
    // A pod is told its key when it is created.
    checkLogin: async () => null,
    checkModelCache: async (wished) => describeVolume(account, wished),
  };
}
