import * as v from 'valibot';
import { engineBaseUrl } from '../domain/engine-url.ts';
import { invalidInput } from '../domain/errors.ts';
import { exactObject } from './body.ts';

/** Targets of `aibrix.runtime` that this server runs: of each it is an engine that runs already, on whatever machine. */
const TARGETS = ['External', 'RunPod', 'LambdaCloud', 'Kubernetes'] as const;
const URL_RULE =
  'an absolute http or https URL without credentials, query or fragment, such as http://127.0.0.1:8000';
const URLS_RULE = 'a list of 1 to 1024 such URLs';
const MACHINE_RULE =
  'left out: this server starts no engine on a machine that you provide. Start it there, and name its URL in base_url; ' +
  'or leave aibrix.runtime out where the server leases machines itself';
const MODEL_RULE = 'left out: the model that all lines must name is said in aibrix.model';

const urlSchema = v.pipe(v.string(URL_RULE), v.transform(engineBaseUrl), v.string(URL_RULE));

function refused(rule: string) {
  return v.nullish(
    v.pipe(
      v.unknown(),
      v.check(() => false, rule),
    ),
  );
}

const optionsSchema = exactObject({
  base_url: v.nullish(urlSchema),
  http_base_url: v.pipe(v.nullish(urlSchema), v.description("AIBrix's word for `base_url`.")),
  base_urls: v.nullish(
    v.pipe(v.array(urlSchema, URLS_RULE), v.minLength(1, URLS_RULE), v.maxLength(1_024, URLS_RULE)),
  ),
  // What AIBrix logs in with, and what it starts then.
  host: refused(MACHINE_RULE),
  ssh_host: refused(MACHINE_RULE),
  ssh_port: refused(MACHINE_RULE),
  ssh_user: refused(MACHINE_RULE),
  host_key: refused(MACHINE_RULE),
  image: refused(MACHINE_RULE),
  vllm_args: refused(MACHINE_RULE),
  model: refused(MODEL_RULE),
});

/** The caller's own engines: `{target: 'External', options: {base_url}}`, or `base_urls` for several. */
export const runtimeSchema = v.pipe(
  exactObject({
    target: v.pipe(
      v.picklist(TARGETS, `one of ${TARGETS.join(', ')}`),
      v.description(
        'Where the engine runs that you have started. It is used and never stopped, whichever it is, and a job shows it ' +
          'as `External`.',
      ),
    ),
    options: optionsSchema,
  }),
  v.transform(({ options }) => {
    const { base_url: one, http_base_url: other, base_urls: more } = options;
    return [...new Set([one, other, ...(more ?? [])].filter((url) => typeof url === 'string'))];
  }),
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
