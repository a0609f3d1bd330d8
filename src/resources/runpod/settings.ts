import { invalidInput } from '../../domain/errors.ts';

export const API_VERSIONS = ['v1', 'v2'] as const;
export type ApiVersion = (typeof API_VERSIONS)[number];

export const CLOUD_TYPES = ['SECURE', 'COMMUNITY'] as const;
export type CloudType = (typeof CLOUD_TYPES)[number];

/** What `RUNPOD_…` variables say of the account and of how it is asked. */
export interface RunPodSettings {
  /** `RUNPOD_API_KEY`; never logged. */
  apiKey: string;
  /** `RUNPOD_BASE_URL`, with or without `/v1` or `/v2` at its end; null: RunPod's own. */
  baseUrl: string | null;
  /** `RUNPOD_API_VERSION`; null: as the base URL ends, else v2. */
  apiVersion: ApiVersion | null;
  /** `RUNPOD_CLOUD_TYPE` */
  cloudType: CloudType;
  /** `RUNPOD_DATA_CENTERS`: where machines may be whose wish names no region; empty: anywhere. */
  dataCenters: readonly string[];
  /** `RUNPOD_PROXY`: the port that RunPod's public proxy leads to; absent: none. */
  publicPort?: number;
  /** Time limit of one request, ms; 30 s unless given. */
  timeoutMs?: number;
}

export interface RunPodApi {
  version: ApiVersion;
  /** Without a slash at its end. */
  base: string;
}

const OWN = {
  // RunPod announced that v1 answers 410 from 2026-11-15 on ("Migrate from REST API v1").
  v1: 'https://rest.runpod.io/v1',
  v2: 'https://api.runpod.io/v2',
} as const satisfies Record<ApiVersion, string>;

/** Which dialect is spoken, and where. Throws InvalidInput where the two settings contradict each other. */
export function apiOf({
  baseUrl,
  apiVersion,
}: Pick<RunPodSettings, 'baseUrl' | 'apiVersion'>): RunPodApi {
  if (baseUrl === null) {
    const version = apiVersion ?? 'v2';
    return { version, base: OWN[version] };
  }
  const url = URL.canParse(baseUrl) ? new URL(baseUrl) : null;
  if (url === null || !/^https?:$/.test(url.protocol) || url.search !== '' || url.hash !== '') {
    const message = `RUNPOD_BASE_URL must be an http(s) URL without query, such as ${OWN.v2}.`;
    throw invalidInput('lease.invalid_settings', message);
  }
  const base = baseUrl.replace(/\/+$/, '');
  const named = API_VERSIONS.find((version) =>
    url.pathname.replace(/\/+$/, '').endsWith(`/${version}`),
  );
  if (named === undefined) {
    const version = apiVersion ?? 'v2';
    return { version, base: `${base}/${version}` };
  }
  if (apiVersion !== null && apiVersion !== named) {
    const message = `RUNPOD_API_VERSION is ${apiVersion}, but RUNPOD_BASE_URL ends in /${named}: unset one of them.`;
    throw invalidInput('lease.invalid_settings', message);
  }
  return { version: named, base };
}
