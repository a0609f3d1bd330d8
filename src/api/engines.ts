import * as v from 'valibot';
import { engineBaseUrl } from '../domain/engine-url.ts';
import { invalidInput } from '../domain/errors.ts';
import { exactObject } from './body.ts';

/** Targets of `aibrix.runtime` that this server runs. */
const TARGETS = ['External'] as const;
const URL_RULE =
  'an absolute http or https URL without credentials, query or fragment, such as http://127.0.0.1:8000';
const URLS_RULE = 'a list of 1 to 1024 such URLs';

const urlSchema = v.pipe(v.string(URL_RULE), v.transform(engineBaseUrl), v.string(URL_RULE));

/** The caller's own engines: `{target: 'External', options: {base_url}}`, or `base_urls` for several. */
export const runtimeSchema = v.pipe(
  exactObject({
    target: v.picklist(TARGETS, `one of ${TARGETS.join(', ')}`),
    options: exactObject({
      base_url: v.nullish(urlSchema),
      base_urls: v.nullish(
        v.pipe(
          v.array(urlSchema, URLS_RULE),
          v.minLength(1, URLS_RULE),
          v.maxLength(1_024, URLS_RULE),
        ),
      ),
    }),
  }),
  v.transform(({ options }) => [
    ...new Set([...(options.base_url ? [options.base_url] : []), ...(options.base_urls ?? [])]),
  ]),
);

/** Refuses a runtime that names no engine at all. */
export function requireEngines(engines: string[], param: string): string[] {
  if (engines.length > 0) return engines;
  throw invalidInput(
    'missing_required_parameter',
    `'${param}' must have 'base_url' or 'base_urls': ${URL_RULE}.`,
    { param: `${param}.base_url` },
  );
}
