import * as v from 'valibot';
import { engineBaseUrl } from '../domain/engine-url.ts';
import { invalidInput } from '../domain/errors.ts';
import type { SluiceError } from '../domain/errors.ts';
import type { CallerMachine } from '../domain/lease.ts';
import type { MachineProvider } from '../domain/provision.ts';
import { exactObject } from './body.ts';

/** Targets of `aibrix.runtime`: engines that run already, on whatever machine, or a machine that is logged in to. */
const TARGETS = ['External', 'RunPod', 'LambdaCloud', 'Kubernetes', 'KubernetesJob'] as const;
type Target = (typeof TARGETS)[number];

/** What the machines are like that a target stands for; null: none that is logged in to. */
const KINDS: Readonly<Record<Target, { provider: MachineProvider; user: string } | null>> = {
  RunPod: { provider: 'runpod', user: 'root' },
  LambdaCloud: { provider: 'lambdaCloud', user: 'ubuntu' },
  External: null,
  Kubernetes: null,
  KubernetesJob: null,
};

const URL_RULE =
  'an absolute http or https URL without credentials, query or fragment, such as http://127.0.0.1:8000';
const URLS_RULE = 'a list of 1 to 1024 such URLs';
const HOST_RULE = 'the name or IP address of a machine, such as 203.0.113.7';
const PORT_RULE = 'an integer from 1 to 65535';
const USER_RULE = "a user's name of 1 to 32 letters, digits and ._-";
const KEY_RULE =
  "the machine's public host key in one line, such as ssh-ed25519 AAAA…, or its SHA256:… as ssh-keygen -lf shows it";
const IMAGE_RULE = 'the name of an image, such as vllm/vllm-openai:v0.11.0';
const ARGS_RULE = 'a list of at most 256 texts, such as ["--max-model-len", "8192"]';
const MODEL_RULE = 'a text of 1 to 512 characters';
const NAMESPACE_RULE =
  'the name of a namespace: at most 63 small letters, digits and -, such as batch';
const NAMESPACE = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;
const SSH_HOST_RULE = 'left out: the machine is named in host';

const HOST = /^(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:.]{2,45})$/;
const USER = /^[A-Za-z_][A-Za-z0-9_.-]{0,31}$/;
const HOST_KEY =
  /^(?:SHA256:[A-Za-z0-9+/]{43}=?|(?:ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) [A-Za-z0-9+/]{16,4096}={0,2}(?: [^\n]{0,256})?)$/;
const IMAGE = /^[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}$/;

const urlSchema = v.pipe(v.string(URL_RULE), v.transform(engineBaseUrl), v.string(URL_RULE));

function textOf(pattern: RegExp, rule: string) {
  return v.nullish(v.pipe(v.string(rule), v.regex(pattern, rule)));
}

const optionsSchema = exactObject({
  base_url: v.nullish(urlSchema),
  http_base_url: v.pipe(v.nullish(urlSchema), v.description("AIBrix's word for `base_url`.")),
  base_urls: v.nullish(
    v.pipe(v.array(urlSchema, URLS_RULE), v.minLength(1, URLS_RULE), v.maxLength(1_024, URLS_RULE)),
  ),
  host: v.pipe(
    textOf(HOST, HOST_RULE),
    v.description(
      'Of `RunPod` and `LambdaCloud`, in place of `base_url`: a machine of yours, which the server logs in to with ' +
        '`AIBRIX_BATCH_SSH_KEY_FILE`. The engine of the template is started there, reached through an SSH tunnel, and ' +
        'stopped when the batch is over; the machine is never destroyed, and waited for while it is away.',
    ),
  ),
  ssh_port: v.nullish(
    v.pipe(
      v.number(PORT_RULE),
      v.integer(PORT_RULE),
      v.minValue(1, PORT_RULE),
      v.maxValue(65_535, PORT_RULE),
    ),
  ),
  ssh_user: v.pipe(
    textOf(USER, USER_RULE),
    v.description(
      'Left out: `root` with `RunPod`, `ubuntu` with `LambdaCloud`, who may use `sudo`.',
    ),
  ),
  host_key: v.pipe(
    textOf(HOST_KEY, KEY_RULE),
    v.description(
      'By which the machine has to prove itself. Left out: the first key that it shows, which it has to keep.',
    ),
  ),
  image: v.pipe(
    textOf(IMAGE, IMAGE_RULE),
    v.description(
      "Of `LambdaCloud`, where the engine runs in a container: in place of the template's `engine.image`.",
    ),
  ),
  vllm_args: v.pipe(
    v.nullish(v.pipe(v.array(v.string(ARGS_RULE), ARGS_RULE), v.maxLength(256, ARGS_RULE))),
    v.description("Come after the template's `engine.serve_args`."),
  ),
  model: v.pipe(
    v.nullish(v.pipe(v.string(MODEL_RULE), v.nonEmpty(MODEL_RULE), v.maxLength(512, MODEL_RULE))),
    v.description('With `host`: the model of the template, which it has to be.'),
  ),
  namespace: v.pipe(
    textOf(NAMESPACE, NAMESPACE_RULE),
    v.description(
      'Of `Kubernetes` and `KubernetesJob` without `base_url`: one of `KUBERNETES_NAMESPACE` of the server. Left out: the first.',
    ),
  ),
  ssh_host: v.nullish(
    v.pipe(
      v.unknown(),
      v.check(() => false, SSH_HOST_RULE),
    ),
  ),
});

/** A machine of the caller's, and what is to be otherwise there than in the template; null: nothing. */
export interface MachineWish extends CallerMachine {
  provider: MachineProvider;
  image: string | null;
  vllmArgs: readonly string[];
  model: string | null;
}

/** In which form a cluster is to run a job, and in which of the server's namespaces; null: its first. */
export interface ClusterWish {
  form: 'deployment' | 'job';
  namespace: string | null;
}

/** The caller's own: `{target: 'External', options: {base_url}}`, `base_urls` for several, or `host` for a machine. */
export const runtimeSchema = exactObject({
  target: v.pipe(
    v.picklist(TARGETS, `one of ${TARGETS.join(', ')}`),
    v.description(
      'Where the engine runs that you have started, which is used and never stopped: a job shows it as `External`. With ' +
        '`host` what your machine is like: `RunPod` has vLLM on it, `LambdaCloud` has Docker. `Kubernetes` and ' +
        '`KubernetesJob` without `base_url`: the server runs the engine in its cluster, as a Deployment that its workers ' +
        'send lines to, or the whole batch in a Job.',
    ),
  ),
  options: v.nullish(optionsSchema, {}),
});

type RuntimeFields = v.InferOutput<typeof runtimeSchema>;

/**
 * What a job is to run on. Refused is one that names neither an engine nor a machine, or both; and what would have no
 * effect.
 */
export function runtimeWish(
  { target, options }: RuntimeFields,
  param: string,
): { engines: string[]; machine?: MachineWish; cluster?: ClusterWish } {
  const { base_url: one, http_base_url: other, base_urls: more, host } = options;
  const urls = [one, other, ...(more ?? [])].filter((url) => typeof url === 'string');
  const form = FORMS[target] ?? null;
  checkNamespace(options.namespace, form !== null && urls.length === 0, param);
  if (host) return { engines: [], machine: machineWish(target, host, options, param) };
  const field = MACHINE_FIELDS.find((name) => isGiven(options[name]));
  if (field !== undefined) {
    const mend =
      field === 'model'
        ? 'the model that all lines must name is said in aibrix.model'
        : 'name the machine in host, or leave it out';
    throw wrong(
      `${param}.${field}`,
      `is said of a machine that the engine is started on: ${mend}.`,
    );
  }
  if (urls.length > 0 && form === 'job') {
    const mend = 'leave it out, or say External as target';
    throw wrong(
      `${param}.base_url`,
      `has no effect: a KubernetesJob brings its engine along. ${mend}.`,
    );
  }
  if (urls.length > 0) return { engines: [...new Set(urls)] };
  if (form !== null)
    return { engines: [], cluster: { form, namespace: options.namespace ?? null } };
  throw invalidInput(
    'missing_required_parameter',
    `'${param}' must have 'base_url' or 'base_urls': ${URL_RULE}; or 'host', a machine of yours to start the engine on.`,
    { param: `${param}.base_url` },
  );
}

const FORMS: Partial<Record<Target, ClusterWish['form']>> = {
  Kubernetes: 'deployment',
  KubernetesJob: 'job',
};
function checkNamespace(
  namespace: string | null | undefined,
  isForCluster: boolean,
  param: string,
): void {
  if (!isGiven(namespace) || isForCluster) return;
  const mend = 'leave it out, or ask for Kubernetes or KubernetesJob without base_url';
  const what = `is where the server is to run an engine in its cluster: ${mend}.`;
  throw wrong(`${param}.namespace`, what);
}

const URL_FIELDS = ['base_url', 'http_base_url', 'base_urls'] as const;
const MACHINE_FIELDS = ['ssh_port', 'ssh_user', 'host_key', 'image', 'vllm_args', 'model'] as const;

function isGiven(value: unknown): boolean {
  return value !== null && value !== undefined;
}

function machineWish(
  target: Target,
  host: string,
  options: RuntimeFields['options'],
  param: string,
): MachineWish {
  const kind = KINDS[target];
  if (kind === null) {
    const mend = `leave it out and name the engine in base_url, or say RunPod or LambdaCloud as target`;
    throw wrong(`${param}.host`, `has no effect with the target ${target}: ${mend}.`);
  }
  const url = URL_FIELDS.find((name) => isGiven(options[name]));
  if (url !== undefined) {
    const why =
      'the engine on the machine in host is started there and reached through an SSH tunnel';
    throw wrong(`${param}.${url}`, `has no effect: ${why}. Leave one of the two out.`);
  }
  const { image = null, model = null } = options;
  if (image !== null && kind.provider === 'runpod') {
    const why = `on a machine of ${target} the vLLM is started that it has, in no container`;
    throw wrong(`${param}.image`, `has no effect: ${why}. Leave it out.`);
  }
  return {
    provider: kind.provider,
    login: { host, port: options.ssh_port ?? 22, user: options.ssh_user ?? kind.user },
    hostKey: options.host_key ?? null,
    image,
    vllmArgs: options.vllm_args ?? [],
    model,
  };
}

function wrong(param: string, what: string): SluiceError {
  return invalidInput('invalid_value', `'${param}' ${what}`, { param });
}
