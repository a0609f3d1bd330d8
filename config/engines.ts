import * as v from 'valibot';
import { text } from './kinds.ts';
import type { Setting } from './kinds.ts';

const RUNPOD_PROXY = 'https://{pod}-{port}.proxy.runpod.net';
const PROXY_MESSAGE = `must be false, true or a URL such as ${RUNPOD_PROXY}`;

/** URL with places for the pod and the port; null: no proxy is used. */
const proxy = v.pipe(
  text,
  v.check(
    (value) =>
      value === 'false' ||
      value === 'true' ||
      /^https?:\/\/(?=.*\{pod\})(?=.*\{port\})[^\s?#@]+$/.test(value),
    PROXY_MESSAGE,
  ),
  v.transform((value) => {
    if (value === 'false') return null;
    return value === 'true' ? RUNPOD_PROXY : value.replace(/\/+$/, '');
  }),
);

const FOLDER_MESSAGE = 'must be the whole path of a folder, such as /etc/sluice/secrets';

/** What engines on leased machines are given. */
export const ENGINES_SETTINGS = {
  engineSecretsDir: {
    doc: "Folder of the secrets that templates name in auth_secret_ref: a folder each, a file an entry (token of a Hugging Face secret, access_key and secret_key of an object storage's), as Kubernetes mounts them. Nobody else may read the files. Unset: there are none.",
    env: 'ENGINE_SECRETS_DIR',
    isRare: true,
    default: undefined,
    schema: v.optional(v.pipe(text, v.regex(/^\//, FOLDER_MESSAGE))),
  },
  runpodProxy: {
    doc: "Whether engines on machines that RunPod leases from now on are reached through its public proxy, with a key of their own, and not through a tunnel: false, true, or the proxy's URL with {pod} and {port} in it. An answer has to begin within 100 s there.",
    env: 'RUNPOD_PROXY',
    isRare: true,
    default: 'false',
    schema: proxy,
  },
} as const satisfies Record<string, Setting<v.GenericSchema<string | undefined, unknown>>>;
