import { request } from 'undici';
import * as v from 'valibot';
import { describeError } from '../../domain/errors.ts';
import type { Catalog, Offer } from '../contract.ts';

interface CatalogOptions {
  engineUrls: readonly string[];
  engineApiKey: string | undefined;
  /** How long one engine may take to answer, ms. */
  timeoutMs?: number;
  /** How long an answer is good for, ms. */
  keepMs?: number;
  now?: () => number;
}

/** A person waits for the list, and an engine that is busy answers this late. */
const TIMEOUT_MS = 2_000;
const KEEP_MS = 10_000;
const MOST_BYTES = 1024 * 1024;

const modelList = v.pipe(
  v.string(),
  v.parseJson(),
  v.object({ data: v.array(v.object({ id: v.string() })) }),
);

/** The engines of `ENGINE_URLS` with the models that each serves now. */
export function createStaticCatalog(options: CatalogOptions): Catalog {
  const { engineUrls, timeoutMs = TIMEOUT_MS, keepMs = KEEP_MS, now = Date.now } = options;
  const headers: Record<string, string> =
    options.engineApiKey === undefined ? {} : { authorization: `Bearer ${options.engineApiKey}` };
  let kept: { until: number; offers: Promise<Offer[]> } | null = null;
  return {
    offers() {
      // The promise is kept, so that all who ask at once share one round.
      if (kept === null || now() >= kept.until) {
        const offers = Promise.all(engineUrls.map((url) => offerOf(url, headers, timeoutMs, now)));
        kept = { until: now() + keepMs, offers };
      }
      return kept.offers;
    },
  };
}

/** One engine as it is now. Never rejects: an engine that does not answer is an offer that cannot be had. */
async function offerOf(
  address: string,
  headers: Record<string, string>,
  timeoutMs: number,
  now: () => number,
): Promise<Offer> {
  const { models, error } = await modelsOf(address, headers, timeoutMs);
  return {
    provider: 'static',
    id: address,
    kind: 'engine',
    type: '',
    count: null,
    architecture: null,
    vramGb: null,
    pricePerHour: null,
    stock: error === '' ? 'available' : 'unavailable',
    regions: [],
    address,
    models,
    error,
    checkedAt: now(),
  };
}

async function modelsOf(
  address: string,
  headers: Record<string, string>,
  timeoutMs: number,
): Promise<{ models: string[]; error: string }> {
  const url = `${address}/v1/models`;
  try {
    const signal = AbortSignal.timeout(timeoutMs);
    const { statusCode, body } = await request(url, { headers, signal, reset: true });
    let text = '';
    for await (const chunk of body.setEncoding('utf8')) {
      text += String(chunk);
      if (text.length > MOST_BYTES) throw new Error('the answer has more than 1 MiB');
    }
    if (statusCode !== 200) return { models: [], error: `${url} answers ${statusCode}.` };
    const parsed = v.safeParse(modelList, text);
    if (!parsed.success) return { models: [], error: `${url} answers no list of models.` };
    return { models: parsed.output.data.map(({ id }) => id), error: '' };
  } catch (error) {
    return { models: [], error: `${url} does not answer: ${describeError(error)}` };
  }
}
