import * as v from 'valibot';
import { PLANNING_POLICIES } from '../src/domain/choose-offer.ts';
import { LEASE_PROVIDERS, machineProvider, PROVIDERS } from '../src/domain/provision.ts';
import type { LeaseProvider, Provider } from '../src/domain/provision.ts';
import { bearerToken, duration, oneOf, text, whole } from './kinds.ts';
import type { Setting } from './kinds.ts';

const PROVISIONER_MESSAGE = `must be one of ${PROVIDERS.join(', ')}, or several of ${LEASE_PROVIDERS.join(', ')} with commas between`;

function words(value: string): string[] {
  const parts = value.split(',').map((part) => part.trim());
  return [...new Set(parts.filter((part) => part !== ''))];
}

const provisioners = v.pipe(
  text,
  v.transform(words),
  v.array(v.picklist(PROVIDERS, PROVISIONER_MESSAGE)),
  v.check((list) => list.length < 2 || !list.includes('static'), PROVISIONER_MESSAGE),
  v.readonly(),
);

const NAMES_MESSAGE = 'must be a comma-separated list of names of at most 64 characters';

const names = v.pipe(
  text,
  v.transform(words),
  v.array(v.pipe(text, v.maxLength(64, NAMES_MESSAGE)), NAMES_MESSAGE),
  v.readonly(),
);

const PLACES_MESSAGE = 'must be a comma-separated list of ids out of A-Z, a-z, 0-9 and -';

const places = v.pipe(
  text,
  v.transform(words),
  v.array(v.pipe(text, v.regex(/^[A-Za-z0-9-]{1,64}$/, PLACES_MESSAGE)), PLACES_MESSAGE),
  v.readonly(),
);

const word = v.optional(v.pipe(text, v.regex(/^\S+$/, 'must be without spaces')));

const baseUrl = v.optional(
  v.pipe(
    text,
    v.regex(
      /^https?:\/\/[^\s/@?#]+(?:\/[^\s@?#]*)?$/,
      'must be an http(s) URL without user, query or fragment, such as https://host/v2',
    ),
  ),
);

const publicKey = v.optional(
  v.pipe(
    text,
    v.regex(
      /^(?:ssh-ed25519|ssh-rsa|ecdsa-sha2-\S+|sk-\S+) [A-Za-z0-9+/]+=*(?: [^\r\n]*)?$/,
      "must be a public key in one line, such as ssh-ed25519 AAAA…, the content of the key's .pub file",
    ),
  ),
);

const USD_MESSAGE = 'must be a number of US dollars from 0.01 to 1000000, such as 25 or 0.50';

const usd = v.optional(
  v.pipe(
    text,
    v.regex(/^\d+(\.\d+)?$/, USD_MESSAGE),
    v.transform(Number),
    v.minValue(0.01, USD_MESSAGE),
    v.maxValue(1e6, USD_MESSAGE),
  ),
);

/** Where machines come from, and what they may cost. Names are those of AIBrix where it has the setting, too. */
export const LEASE_SETTINGS = {
  provisioners: {
    doc: 'Where engines come from: static (ENGINE_URLS), or machines leased of runpod, lambdaCloud, kubernetes or several of them in the order in which they are asked. Unset: static when ENGINE_URLS is set.',
    env: 'PROVISIONER',
    default: '',
    schema: provisioners,
  },
  sshKeyFile: {
    doc: 'Private key without a passphrase with which machines are logged in to, leased ones and those that batches name; nobody else may read the file.',
    env: 'AIBRIX_BATCH_SSH_KEY_FILE',
    also: ['BATCH_SSH_KEY_FILE'],
    isRare: true,
    default: undefined,
    schema: v.optional(text),
  },
  runpodApiKey: {
    doc: 'Key of the RunPod account; it must be allowed to manage pods.',
    env: 'RUNPOD_API_KEY',
    isRare: true,
    default: undefined,
    schema: bearerToken,
    secret: true,
  },
  runpodSshPublicKey: {
    doc: 'Public half of AIBRIX_BATCH_SSH_KEY_FILE, which pods let in. Unset: it is derived from that file.',
    env: 'RUNPOD_SSH_PUBLIC_KEY',
    isRare: true,
    default: undefined,
    schema: publicKey,
  },
  runpodBaseUrl: {
    doc: "RunPod's API, which ends in /v1 or /v2 or in neither. Unset: RunPod's own.",
    env: 'RUNPOD_BASE_URL',
    isRare: true,
    default: undefined,
    schema: baseUrl,
  },
  runpodApiVersion: {
    doc: "RunPod's REST API, v1 or v2. Unset: as RUNPOD_BASE_URL ends, else v2.",
    env: 'RUNPOD_API_VERSION',
    isRare: true,
    default: undefined,
    schema: v.optional(oneOf(['v1', 'v2'])),
  },
  runpodDataCenters: {
    doc: 'Comma-separated data centers of RunPod in which machines may be whose job names no region. Unset: any.',
    env: 'RUNPOD_DATA_CENTERS',
    isRare: true,
    default: '',
    schema: places,
  },
  runpodImage: {
    doc: "Image of pods, in which openssh-server can be installed and the engine is on PATH. Unset: the template's engine.image.",
    env: 'RUNPOD_IMAGE',
    isRare: true,
    default: undefined,
    schema: word,
  },
  runpodCloudType: {
    doc: 'Whose machines RunPod rents out: SECURE are those of data centers, COMMUNITY those of others.',
    env: 'RUNPOD_CLOUD_TYPE',
    isRare: true,
    default: 'SECURE',
    schema: oneOf(['SECURE', 'COMMUNITY']),
  },
  runpodNetworkVolume: {
    doc: 'Network volume of RunPod, by id or name, that keeps model weights; machines are where it is. Unset: none.',
    env: 'RUNPOD_NETWORK_VOLUME_ID',
    isRare: true,
    default: undefined,
    schema: word,
  },
  lambdaCloudApiKey: {
    doc: 'Key of the Lambda Cloud account.',
    env: 'LAMBDA_CLOUD_API_KEY',
    isRare: true,
    default: undefined,
    schema: bearerToken,
    secret: true,
  },
  lambdaCloudSshKeys: {
    doc: 'Comma-separated names of SSH keys of the Lambda Cloud account; instances let all of them in, and AIBRIX_BATCH_SSH_KEY_FILE.',
    env: 'LAMBDA_CLOUD_SSH_KEYS',
    isRare: true,
    default: '',
    schema: names,
  },
  lambdaCloudBaseUrl: {
    doc: "Lambda Cloud's API. Unset: its own.",
    env: 'LAMBDA_CLOUD_BASE_URL',
    isRare: true,
    default: undefined,
    schema: baseUrl,
  },
  lambdaCloudRegions: {
    doc: 'Region of Lambda Cloud, or several in order of preference, in which alone machines may be. Unset: any.',
    env: 'LAMBDA_CLOUD_REGION',
    isRare: true,
    default: '',
    schema: places,
  },
  lambdaCloudFileSystem: {
    doc: 'File system of Lambda Cloud, by id or name, that keeps model weights; machines are in its region. Unset: none.',
    env: 'LAMBDA_CLOUD_FILE_SYSTEM',
    isRare: true,
    default: undefined,
    schema: word,
  },
  defaultTemplate: {
    doc: 'Deployment template, by name, of jobs that lease machines and name none.',
    env: 'DEFAULT_BATCH_MODEL_DEPLOYMENT_TEMPLATE',
    isRare: true,
    default: undefined,
    schema: v.optional(text),
  },
  planningPolicy: {
    doc: 'Which of the machines that fit is leased: simple takes the first provider of PROVISIONER that has one, cheapest goes by price, fastest by what was measured of earlier jobs.',
    env: 'PLANNING_POLICY',
    isRare: true,
    default: 'simple',
    schema: oneOf(PLANNING_POLICIES),
  },
  plannerWorkerCount: {
    doc: 'Records that a process plans, leases for and looks after at once, of each kind. Unset: 10 that are planned, and 50 each of the others.',
    env: 'PLANNER_WORKER_COUNT',
    isRare: true,
    default: undefined,
    schema: v.optional(whole(1, 1_000)),
  },
  capacityWait: {
    doc: 'How long a job waits for a machine where none is to be had, before it ends as resource_failed.',
    env: 'CAPACITY_WAIT',
    isRare: true,
    default: '15m',
    schema: duration(0),
  },
  maxLeases: {
    doc: 'Most machines that are leased at the same time, for all jobs together.',
    env: 'MAX_LEASES',
    isRare: true,
    default: '50',
    schema: whole(1, 10_000),
  },
  keepWarmSeconds: {
    doc: 'How long a machine that no job needs is kept, and paid for, in case that one with the same template comes.',
    env: 'KEEP_WARM_SECONDS',
    isRare: true,
    default: '0',
    schema: whole(0, 86_400),
  },
  pauseRelease: {
    doc: 'Seconds after which a paused job gives its leased machines back; it gets others when it is resumed.',
    env: 'PAUSE_RELEASE_SECONDS',
    isRare: true,
    default: '60',
    schema: whole(0, 86_400),
  },
  maxCostUsd: {
    doc: 'Most US dollars that the machines of a job may cost, where it does not say (max_cost_usd). Unset: any.',
    env: 'MAX_COST_USD',
    isRare: true,
    default: undefined,
    schema: usd,
  },
  maxIdleMinutes: {
    doc: 'Most minutes that the machines of a job may be paid for without a line to answer, where it does not say (max_idle_minutes). Unset: any.',
    env: 'MAX_IDLE_MINUTES',
    isRare: true,
    default: undefined,
    schema: v.optional(whole(1, 525_600)),
  },
} as const satisfies Record<string, Setting<v.GenericSchema<string | undefined, unknown>>>;

interface LeaseValues {
  readonly roles: readonly string[];
  readonly engineUrls: readonly string[];
  readonly metadataServiceUrl?: string | undefined;
  readonly provisioners: readonly Provider[];
  readonly sshKeyFile?: string | undefined;
  readonly runpodApiKey?: string | undefined;
  readonly runpodSshPublicKey?: string | undefined;
  readonly lambdaCloudApiKey?: string | undefined;
  readonly lambdaCloudSshKeys: readonly string[];
}

/** What each provider cannot do without, and is not set; as AIBrix has it. */
const LACKS: Record<LeaseProvider, (values: LeaseValues) => string[]> = {
  runpod: ({ runpodApiKey, runpodSshPublicKey, sshKeyFile }) => [
    ...(runpodApiKey === undefined ? ['RUNPOD_API_KEY'] : []),
    ...(runpodSshPublicKey === undefined && sshKeyFile === undefined
      ? ['RUNPOD_SSH_PUBLIC_KEY']
      : []),
  ],
  lambdaCloud: ({ lambdaCloudApiKey, lambdaCloudSshKeys }) => [
    ...(lambdaCloudApiKey === undefined ? ['LAMBDA_CLOUD_API_KEY'] : []),
    ...(lambdaCloudSshKeys.length === 0 ? ['LAMBDA_CLOUD_SSH_KEYS'] : []),
  ],
  // Where it finds its credentials is found out when the API server is asked first.
  kubernetes: () => [],
};

const MISSING = 'resource manager init: missing credential:';

/** What PROVISIONER names and the other settings do not let it have, each with the mend. */
export function leaseConflicts(values: LeaseValues): string[] {
  const { provisioners: enabled, engineUrls, roles, sshKeyFile } = values;
  if (enabled.includes('static')) {
    const lacks = 'PROVISIONER=static needs ENGINE_URLS, such as http://localhost:8000.';
    // A metadata service may have engines of its own.
    const hasEngines = engineUrls.length > 0 || values.metadataServiceUrl !== undefined;
    return hasEngines ? [] : [lacks];
  }
  const problems = LEASE_PROVIDERS.filter((provider) => enabled.includes(provider)).flatMap(
    (provider) => {
      const lacks = LACKS[provider](values);
      if (lacks.length === 0) return [];
      return `${MISSING} ${provider} needs ${lacks.join(' and ')}: set ${lacks.length === 1 ? 'it' : 'them'}, or take ${provider} out of PROVISIONER.`;
    },
  );
  // Who only answers requests, or sweeps, logs in to no machine.
  const logsIn = enabled.some((each) => machineProvider(each) !== null);
  if (logsIn && sshKeyFile === undefined && roles.includes('worker')) {
    problems.push(
      `${MISSING} leased machines are logged in to with AIBRIX_BATCH_SSH_KEY_FILE: name a private key there, such as ssh-keygen -t ed25519 -N '' -f <file> makes.`,
    );
  }
  return problems;
}
