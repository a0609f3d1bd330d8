import * as v from 'valibot';
import { webhookKey } from '../src/domain/webhook.ts';
import { QUEUE_NAMES } from '../src/domain/job.ts';
import { BATCH_WORKER_SETTINGS } from './batch-worker.ts';
import { ENGINES_SETTINGS } from './engines.ts';
import {
  text,
  oneOf,
  listOf,
  whole,
  bytes,
  duration,
  rateLimit,
  redisUrl,
  engineUrls,
  serviceUrl,
  weights,
  address,
  bearerToken,
  isRedisUrl,
  STORE_MESSAGE,
} from './kinds.ts';
import type { Setting } from './kinds.ts';
import { KUBERNETES_SETTINGS } from './kubernetes.ts';
import { LEASE_SETTINGS } from './lease.ts';
import { PLACES_SETTINGS } from './places.ts';
import { RETENTION_SETTINGS } from './retention.ts';
import { STORAGE_SETTINGS } from './storage.ts';

/** Roles that a process may have. */
export const ROLES = ['api', 'worker', 'sweeper'] as const;
export type Role = (typeof ROLES)[number];

/** Every setting; the one reader of the environment is load.ts. */
export const SETTINGS = {
  httpAddr: {
    doc: 'Where the API listens. There is no authentication yet: keep it on loopback.',
    env: 'HTTP_ADDR',
    default: '127.0.0.1:8080',
    schema: address,
  },
  dataDir: {
    doc: 'Folder of the embedded Redis, local storage and temporary files.',
    env: 'DATA_DIR',
    default: '.sluice',
    schema: v.pipe(text, v.minLength(1, 'must be a folder')),
  },
  redisUrl: {
    doc: 'Redis for records and queues. Unset: an embedded redis-server in DATA_DIR.',
    env: 'REDIS_URL',
    default: undefined,
    schema: redisUrl,
    secret: true,
  },
  storeUri: {
    doc: 'Redis for the records, if not the one of REDIS_URL.',
    env: 'STORE_URI',
    isRare: true,
    default: undefined,
    schema: v.optional(v.pipe(text, v.check(isRedisUrl, STORE_MESSAGE))),
    secret: true,
  },
  redisFsync: {
    doc: 'appendfsync of the embedded Redis. `everysec` is faster on slow disks, but a power cut may lose acknowledged jobs of the last second.',
    env: 'REDIS_FSYNC',
    isRare: true,
    default: 'always',
    schema: oneOf(['always', 'everysec']),
  },
  roles: {
    doc: 'What this process does.',
    env: 'ROLES',
    default: ROLES.join(','),
    schema: listOf(ROLES),
  },
  queues: {
    doc: 'Queues that a worker serves.',
    env: 'QUEUES',
    isRare: true,
    default: QUEUE_NAMES.join(','),
    schema: listOf(QUEUE_NAMES),
  },
  workerProcesses: {
    doc: 'Worker processes that this one starts and keeps up, each with a MEMORY_BUDGET of its own. 0: it works itself.',
    env: 'WORKER_PROCESSES',
    default: '0',
    schema: whole(0, 256),
  },
  crashApart: {
    doc: 'How far apart deaths of worker processes with the same line alone in hand are at least, for three of them to end it as worker_crashed.',
    env: 'CRASH_APART',
    isRare: true,
    default: '10s',
    schema: duration(0),
  },
  logLevel: {
    doc: 'Least level that is logged.',
    env: 'LOG_LEVEL',
    isRare: true,
    default: 'info',
    schema: v.pipe(
      text,
      v.toLowerCase(),
      v.picklist(
        ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'],
        'must be one of trace, debug, info, warn, error, fatal, silent',
      ),
    ),
  },
  ...LEASE_SETTINGS,
  ...KUBERNETES_SETTINGS,
  engineUrls: {
    doc: 'Comma-separated base URLs of engines that are already running (vLLM or compatible).',
    env: 'ENGINE_URLS',
    default: '',
    schema: engineUrls,
  },
  metadataServiceUrl: {
    doc: 'Base URL of a metadata service (AIBrix, or another Sluice) that runs the batches in place of this server, which sends it their inputs, follows them and copies their results. Unset: they run here.',
    env: 'METADATA_SERVICE_URL',
    isRare: true,
    default: undefined,
    schema: serviceUrl,
  },
  metadataServiceApiKey: {
    doc: 'Sent to METADATA_SERVICE_URL as a bearer token.',
    env: 'METADATA_SERVICE_API_KEY',
    isRare: true,
    default: undefined,
    schema: bearerToken,
    secret: true,
  },
  engineWeights: {
    doc: 'How much each of ENGINE_URLS takes compared with the others, in their order, such as 2,1. Unset: alike.',
    env: 'ENGINE_WEIGHTS',
    isRare: true,
    default: '',
    schema: weights,
  },
  engineRequestsPerSecond: {
    doc: 'Most requests a second that each engine is sent, by all workers together. Unset: no limit.',
    env: 'ENGINE_REQUESTS_PER_SECOND',
    isRare: true,
    default: undefined,
    schema: rateLimit,
  },
  engineTokensPerMinute: {
    doc: 'Most tokens a minute, read and written, that each engine is asked for. Unset: no limit.',
    env: 'ENGINE_TOKENS_PER_MINUTE',
    isRare: true,
    default: undefined,
    schema: rateLimit,
  },
  keyRequestsPerSecond: {
    doc: 'Most requests a second that are sent with ENGINE_API_KEY, to all engines together. Unset: no limit.',
    env: 'KEY_REQUESTS_PER_SECOND',
    isRare: true,
    default: undefined,
    schema: rateLimit,
  },
  keyTokensPerMinute: {
    doc: 'Most tokens a minute that are asked for with ENGINE_API_KEY, of all engines together. Unset: no limit.',
    env: 'KEY_TOKENS_PER_MINUTE',
    isRare: true,
    default: undefined,
    schema: rateLimit,
  },
  engineApiKey: {
    doc: 'Sent to the engines of ENGINE_URLS as a bearer token.',
    env: 'ENGINE_API_KEY',
    default: undefined,
    schema: bearerToken,
    secret: true,
  },
  ...ENGINES_SETTINGS,
  ...STORAGE_SETTINGS,
  ...PLACES_SETTINGS,
  ...RETENTION_SETTINGS,
  ...BATCH_WORKER_SETTINGS,
  maxFileBytes: {
    doc: 'Largest file that may be uploaded.',
    env: 'MAX_FILE_BYTES',
    default: '512MiB',
    schema: bytes(1),
  },
  maxUploadBytes: {
    doc: 'Largest file that may come in parts through /v1/uploads.',
    env: 'MAX_UPLOAD_BYTES',
    isRare: true,
    default: '8GiB',
    schema: bytes(1),
  },
  maxBatchFileBytes: {
    doc: 'Largest input file of a batch.',
    env: 'MAX_BATCH_FILE_BYTES',
    default: '200MiB',
    schema: bytes(1),
  },
  maxBatchLines: {
    doc: 'Most requests in one batch.',
    env: 'MAX_BATCH_LINES',
    default: '50000',
    schema: whole(1, 1_000_000_000),
  },
  maxLineBytes: {
    doc: 'Longest line of an input file.',
    env: 'MAX_LINE_BYTES',
    isRare: true,
    default: '10MiB',
    schema: bytes(1_024),
  },
  maxConcurrency: {
    doc: 'Most lines of a job in flight at one engine, where the job does not say (aibrix.client.max_concurrency).',
    env: 'MAX_CONCURRENCY',
    isRare: true,
    default: '1024',
    schema: whole(1, 16_384),
  },
  memoryBudget: {
    doc: 'Bytes of requests, answers and open segments that a worker process holds.',
    env: 'MEMORY_BUDGET',
    isRare: true,
    default: '128MiB',
    schema: bytes(16 * 2 ** 20),
  },
  maxResponseBytes: {
    doc: 'Longest answer of an engine; a longer one fails its line.',
    env: 'MAX_RESPONSE_BYTES',
    isRare: true,
    default: '64MiB',
    schema: bytes(1_024),
  },
  connectTimeout: {
    doc: 'How long an engine may take to accept a connection.',
    env: 'CONNECT_TIMEOUT',
    isRare: true,
    default: '10s',
    schema: duration(100),
  },
  requestTimeout: {
    doc: 'How long an engine may take until the first byte of an answer.',
    env: 'REQUEST_TIMEOUT',
    isRare: true,
    default: '15m',
    schema: duration(100),
  },
  byteTimeout: {
    doc: 'How long an engine may stay silent between two bytes of an answer.',
    env: 'BYTE_TIMEOUT',
    isRare: true,
    default: '5m',
    schema: duration(100),
  },
  answerTimeout: {
    doc: 'How long one attempt at a line may take in all. A job that says so itself (aibrix.client.request_timeout_seconds) is bound by neither this nor REQUEST_TIMEOUT.',
    env: 'ANSWER_TIMEOUT',
    isRare: true,
    default: '1h',
    schema: duration(100),
  },
  liveStreams: {
    doc: 'Event streams that an API process keeps open at once; over it the answer is 503 with Retry-After.',
    env: 'LIVE_STREAMS',
    isRare: true,
    default: '1000',
    schema: whole(1, 100_000),
  },
  webhookSecret: {
    doc: "Signs the events of jobs' own webhooks (aibrix.webhook, webhook): whsec_ and 24 to 64 random bytes in base64.",
    env: 'WEBHOOK_SECRET',
    default: undefined,
    schema: v.optional(
      v.pipe(
        text,
        v.check(
          (value) => webhookKey(value) !== null,
          'must be whsec_ and 24 to 64 bytes in base64, such as echo whsec_$(openssl rand -base64 32) prints',
        ),
      ),
    ),
    secret: true,
  },
  webhookAllowPrivate: {
    doc: 'Whether webhooks may go to loopback and private addresses, which users of the API could otherwise not reach.',
    env: 'WEBHOOK_ALLOW_PRIVATE',
    isRare: true,
    default: 'false',
    schema: v.pipe(
      oneOf(['true', 'false']),
      v.transform((value) => value === 'true'),
    ),
  },
  webhookGiveUp: {
    doc: 'How long an event is tried again, ever more rarely, while its webhook does not take it.',
    env: 'WEBHOOK_GIVE_UP',
    isRare: true,
    default: '24h',
    schema: duration(0),
  },
  serverUrl: {
    doc: 'The server that commands such as `sluice verify` ask. Unset: the one of HTTP_ADDR on this machine.',
    env: 'SLUICE_URL',
    isRare: true,
    default: undefined,
    schema: v.optional(
      v.pipe(text, v.regex(/^https?:\/\/[^\s/]/, 'must be a URL such as http://127.0.0.1:8080')),
    ),
  },
  serverApiKey: {
    doc: 'What such commands show the server as a bearer token.',
    env: 'SLUICE_API_KEY',
    isRare: true,
    default: undefined,
    schema: bearerToken,
    secret: true,
  },
  shutdownGrace: {
    doc: 'How long lines in flight may still be answered after SIGTERM or Ctrl-C.',
    env: 'SHUTDOWN_GRACE',
    default: '5s',
    schema: duration(0),
  },
} as const satisfies Record<string, Setting<v.GenericSchema<string | undefined, unknown>>>;

export type SettingName = keyof typeof SETTINGS;
export type Settings = {
  readonly [K in SettingName]: v.InferOutput<(typeof SETTINGS)[K]['schema']>;
};
